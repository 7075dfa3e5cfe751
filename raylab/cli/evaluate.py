"""`raylab evaluate | compare | beir`: measure runs and compare systems, from files alone."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from raylab.cli.files import output_stream, stored_table
from raylab.cli.shared import console as wide_console
from raylab.data.registry import BENCHMARKS, Protocol, find_benchmark
from raylab.experiment.config import ConfigError

if TYPE_CHECKING:
    from raylab.evaluation.measures import Coverage
    from raylab.evaluation.runs import Run
    from raylab.evaluation.significance import Comparison, PerQuery

console = wide_console()
DEFAULT_MEASURES = ("nDCG@10", "RR@10", "R@1000")

_Measures = Annotated[
    str | None, typer.Option(help="named as in ir_measures, such as 'nDCG@10 RR@10 R(rel=2)@1000'")
]
_Protocol = Annotated[
    str | None,
    typer.Option(
        help="COLLECTION/SPLIT, such as msmarco/dl19: its measures, its depth, and the query's own "
        "document dropped where it says so"
    ),
]


def evaluate(
    run: Annotated[Path, typer.Argument(help="TREC run: query Q0 passage rank score tag")],
    qrels: Annotated[Path, typer.Argument(help="TREC qrels, or BEIR's, or Parquet")],
    measures: _Measures = None,
    protocol: _Protocol = None,
    per_query: Annotated[
        Path | None, typer.Option(help="write query_id, measure, value here (TSV)")
    ] = None,
    confidence: Annotated[float, typer.Option(help="of the intervals")] = 0.95,
) -> None:
    """Measure a run as trec_eval does: means over the judged queries with bootstrap intervals.

    Files may be plain or end in .gz. Equal scores are ordered by passage id, highest first.
    """
    from raylab.data.collections import read_qrels
    from raylab.evaluation.intervals import mean_interval
    from raylab.evaluation.measures import binary_level, coverage
    from raylab.evaluation.measures import evaluate as measure_run

    _check_confidence(confidence)
    rules = _rules(protocol)
    names = _names(measures, rules)
    judged, ranked = read_qrels(qrels), _read(run, rules)
    values = measure_run(ranked, judged, names)
    rows = []
    for name in names:
        mean, low, high = mean_interval(list(values[name].values()), confidence)
        rows.append((name, f"{mean:.4f}", f"[{low:.4f}, {high:.4f}]"))
    if per_query is not None:
        _write_per_query(per_query, values)
    notes = {level: coverage(ranked, judged, level) for level in (1, binary_level(names))}
    _print_table(("measure", "mean", f"{confidence:.0%} interval"), rows)
    same = len({str(note) for note in notes.values()}) == 1
    for level, note in list(notes.items())[: 1 if same else None]:
        print(note if same else f"relevant from grade {level} on: {note}")


def compare(
    files: Annotated[
        list[str],
        typer.Argument(help="RUN_A RUN_B [...] QRELS; with --storage, names of systems there"),
    ],
    measures: _Measures = None,
    protocol: _Protocol = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="compare the others with the first alone")
    ] = False,
    storage: Annotated[
        str | None, typer.Option(help="of a grid: compare its systems, on every split of it")
    ] = None,
    split: Annotated[str | None, typer.Option(help="with --storage: on this split alone")] = None,
    confidence: Annotated[float, typer.Option(help="of the intervals")] = 0.95,
    draws: Annotated[int, typer.Option(min=1, help="of the randomisation test")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="of those draws")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="write every figure in full precision here (CSV)")
    ] = None,
) -> None:
    """Compare systems query by query: paired tests corrected for their family, and effect sizes.

    Every pair on every measure of every split is one comparison; all of them are the family.
    """
    from raylab.evaluation.significance import compare as compare_systems

    _check_confidence(confidence)
    if storage is None:
        if split is not None:
            raise ConfigError("--split: it needs --storage")
        values, notes = _values_of_runs(files, measures, protocol)
    else:
        if protocol is not None:
            raise ConfigError("--protocol: not with --storage, whose splits have their own")
        values, notes = _values_of_storage(storage, files, measures, split), {}
    systems = list(next(iter(values.values())))
    pairs = [(systems[0], other) for other in systems[1:]] if baseline else None
    comparisons = compare_systems(values, pairs, confidence, draws, seed)
    if out is not None:
        with output_stream("--out", out) as stream:
            stream.write(_csv(comparisons).encode())
    _show(comparisons, values, systems, confidence, draws)
    for system, note in notes.items():
        print(f"{system}: {note}")


def beir(
    storages: Annotated[
        list[str], typer.Argument(help="storages of grids on BEIR's sets, one or more")
    ],
    measure: Annotated[str, typer.Option(help="that of the mean")] = "nDCG@10",
    partial: Annotated[
        bool, typer.Option("--partial", help="fewer than the 13 sets are wanted; says which lack")
    ] = False,
) -> None:
    """Mean over BEIR's 13 sets (their split test) of every system that the storages hold."""
    from raylab.data.registry import BEIR_SETS
    from raylab.evaluation.beir import beir_mean

    values: dict[str, dict[str, float]] = {}
    for storage in storages:
        for row in _stored(storage, "results.parquet"):
            name = row["collection"]
            if (row["measure"], row["split"]) != (measure, "test") or name not in BEIR_SETS:
                continue
            system = _seeded(row["system"], row["seed"])
            if values.setdefault(system, {}).setdefault(name, row["value"]) != row["value"]:
                raise ConfigError(f"{storage}: another {measure} of {system} on {name}")
    if not values:
        raise ConfigError(f"{', '.join(storages)}: no {measure} on a test split of BEIR there")
    means = {system: beir_mean(by_set, partial) for system, by_set in values.items()}
    for system, mean in means.items():
        print(f"{system}  {measure} {mean}")


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(
            f"--confidence: confidence is {confidence}; it must lie between 0 and 1, such as 0.95"
        )


# ------------------------------------------------------------------------------ what is compared


def _rules(protocol: str | None) -> Protocol | None:
    if protocol is None:
        return None
    name, _, split = protocol.partition("/")
    benchmark = find_benchmark(name)
    if benchmark is None:
        raise ConfigError(f"--protocol {protocol}: no {name!r}; there are {', '.join(BENCHMARKS)}")
    if split not in benchmark.splits:
        splits = ", ".join(f"{name}/{known}" for known in benchmark.splits)
        raise ConfigError(f"--protocol {protocol}: it must be one of {splits}")
    return benchmark.splits[split].protocol


def _names(measures: str | None, rules: Protocol | None) -> list[str]:
    names = [] if measures is None else measures.replace(",", " ").split()
    if measures is not None and not names:
        raise ConfigError("--measures: none is named, such as 'nDCG@10 RR@10'")
    return list(dict.fromkeys(names or (rules.measures if rules else DEFAULT_MEASURES)))


def _read(path: str | Path, rules: Protocol | None) -> Run:
    from raylab.evaluation.runs import cut, drop_own_document, read_run

    run = read_run(path)
    if rules is None:
        return run
    if rules.drop_own_document:
        run = drop_own_document(run)
    return cut(run, rules.run_depth)


def _values_of_runs(
    files: Sequence[str], measures: str | None, protocol: str | None
) -> tuple[dict[tuple[str, str], PerQuery], dict[str, Coverage]]:
    """Per-query values of runs, and of those that lack queries, or have others, which."""
    from raylab.data.collections import read_qrels
    from raylab.evaluation.measures import coverage
    from raylab.evaluation.measures import evaluate as measure_run

    if len(files) < 3:
        raise ConfigError("compare needs two runs or more and, last, their qrels")
    *runs, qrels = files
    rules = _rules(protocol)
    names = _names(measures, rules)
    judged = read_qrels(qrels)
    where = protocol or Path(qrels).name
    values: dict[tuple[str, str], dict[str, Mapping[str, float]]] = {(where, n): {} for n in names}
    notes: dict[str, Coverage] = {}
    for system, path in _systems(runs).items():
        ranked = _read(path, rules)
        for name, by_query in measure_run(ranked, judged, names).items():
            values[where, name][system] = by_query
        note = coverage(ranked, judged)
        if note.missing or note.unjudged:
            notes[system] = note
    return dict(values), notes


def _systems(paths: Sequence[str]) -> dict[str, str]:
    """Paths by the short name of their run, or by themselves where short names are the same."""
    if len(set(paths)) < len(paths):
        repeated = next(path for place, path in enumerate(paths) if path in paths[:place])
        raise ConfigError(f"{repeated} is named twice")
    short = {path: Path(path).name.removesuffix(".gz").removesuffix(".trec") for path in paths}
    unique = len(set(short.values())) == len(paths)
    return {short[path] if unique else path: path for path in paths}


def _values_of_storage(
    storage: str, systems: Sequence[str], measures: str | None, split: str | None
) -> dict[tuple[str, str], PerQuery]:
    """Per-query values of the systems by (collection and split, measure); means over their seeds."""
    from raylab.data.registry import protocol

    if len(systems) < 2 or len(set(systems)) < len(systems):
        raise ConfigError("compare needs two systems or more, each named once")
    seen: dict[tuple[str, str, str], dict[str, dict[str, list[float]]]] = {}
    known: dict[str, None] = {}
    for row in _stored(storage, "per_query.parquet"):
        at = row["collection"], row["split"], row["measure"]
        known[row["system"]] = None
        for name in dict.fromkeys((row["system"], _seeded(row["system"], row["seed"]))):
            if name in systems and split in (None, row["split"]):
                by_query = seen.setdefault(at, {}).setdefault(name, {})
                by_query.setdefault(row["query_id"], []).append(row["value"])
    values: dict[tuple[str, str], PerQuery] = {}
    for (collection, part, measure), by_system in seen.items():
        _check_seeds(f"{collection} {part} {measure}", by_system)
        wanted = _names(measures, None) if measures else [protocol(collection, part).primary]
        if measure in wanted:
            values[f"{collection} {part}", measure] = {
                name: {query_id: fmean(of_seeds) for query_id, of_seeds in by_system[name].items()}
                for name in systems
                if name in by_system
            }
    named = {name for by_name in values.values() for name in by_name}
    for name in systems:
        if name not in named:
            where = f"{storage}{f', split {split!r}' if split else ''}"
            raise ConfigError(
                f"{where}: no {measures or 'values'} of {name!r} there; it has {', '.join(known)}"
            )
    return values


def _check_seeds(where: str, by_system: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """A mean over seeds is of the same seeds for every query."""
    for name, by_query in by_system.items():
        most = max(map(len, by_query.values()))
        fewer = [query_id for query_id, of_seeds in by_query.items() if len(of_seeds) < most]
        if fewer:
            raise ConfigError(
                f"{where}: query {fewer[0]!r} of {name!r} has values of {len(by_query[fewer[0]])} of {most} "
                "seeds; a mean over seeds is over the same queries"
            )


def _seeded(system: str, seed: float | None) -> str:
    return system if seed is None or seed != seed else f"{system}-seed{int(seed)}"


def _stored(storage: str, name: str) -> list[dict[str, Any]]:
    table = stored_table(storage, name)
    columns = {str(column): table[column].tolist() for column in table.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# ------------------------------------------------------------------------------- what is printed


def _write_per_query(path: Path, values: Mapping[str, Mapping[str, float]]) -> None:
    lines = [
        f"{query_id}\t{measure}\t{value!r}\n"
        for measure, by_query in values.items()
        for query_id, value in sorted(by_query.items())
    ]
    with output_stream("--per-query", path) as stream:
        stream.write("".join(["query_id\tmeasure\tvalue\n", *lines]).encode())


def _csv(comparisons: Sequence[Comparison]) -> str:
    buffer = io.StringIO()
    names = [field.name for field in dataclasses.fields(comparisons[0])]
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(one) for one in comparisons)
    return buffer.getvalue()


def _print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        left = name in ("", "pair", "measure", "system")
        table.add_column(Text(name), justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _show(
    comparisons: Sequence[Comparison],
    values: Mapping[tuple[str, str], PerQuery],
    systems: Sequence[str],
    confidence: float,
    draws: int,
) -> None:
    letters = {system: _letter(place) for place, system in enumerate(systems)}
    for where in dict.fromkeys(where for where, _ in values):
        measures = [measure for at, measure in values if at == where]
        means = [
            (letter, system, *(f"{fmean(values[where, m][system].values()):.4f}" for m in measures))
            for system, letter in letters.items()
        ]
        of_collection = [one for one in comparisons if one.where == where]
        effects, tests = [], []
        for one in of_collection:
            key = (f"{letters[one.b]} - {letters[one.a]}", one.measure)
            difference = f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"
            effect = f"{one.effect:+.2f} [{one.effect_low:+.2f}, {one.effect_high:+.2f}]"
            effects.append((*key, difference, effect))
            corrected = (one.p_t_bonferroni, one.p_t_holm)
            randomised = (one.p_random, one.p_random_bonferroni, one.p_random_holm)
            tests.append((*key, *(f"{p:.2g}" for p in (one.p_t, *corrected, *randomised))))
        within = f"[{confidence:.0%}]"
        print(f"{where}: {of_collection[0].queries} queries")
        _print_table(("", "system", *measures), means)
        print()
        _print_table(("pair", "measure", f"difference {within}", f"Cohen's d {within}"), effects)
        print()
        names = ("pair", "measure", "t-test p", "Bonf.", "Holm", "random. p", "Bonf.", "Holm")
        _print_table(names, tests)
        print()
    exact = sum(one.exact for one in comparisons)
    print(
        f"Family: {comparisons[0].family} comparison(s), for which Bonferroni and Holm correct; intervals "
        "are of each alone.\nTwo-sided paired t-test; paired randomisation test, "
        f"{exact} exact, {len(comparisons) - exact} by {draws:,} draws of signs."
    )


def _letter(place: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)
