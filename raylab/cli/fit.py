"""`raylab fit`: scaling laws of a storage's results, what they forecast, and the paper's claims."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raylab.cli.files import output_stream, stored_table
from raylab.cli.shared import Storage
from raylab.experiment.config import ConfigError

if TYPE_CHECKING:
    from raylab.scaling import (
        Claim,
        DomainDifference,
        Envelope,
        Facts,
        Fit,
        Forecast,
        Interval,
        Optimum,
        Series,
        Study,
    )

console = Console(width=None if sys.stdout.isatty() else 200)


def fit(
    storage: Storage = "lab",
    measure: Annotated[
        list[str] | None, typer.Option(help="CE@256 or nDCG@10, more than once for more; both")
    ] = None,
    law: Annotated[
        str, typer.Option(help="by its name, such as chinchilla (a wrong name lists them), or all")
    ] = "all",
    head: Annotated[str | None, typer.Option(help="sparse or dense")] = None,
    objective: Annotated[str | None, typer.Option(help="cl, kd or cl+kd")] = None,
    collection: Annotated[str | None, typer.Option(help="by its name in the results")] = None,
    split: Annotated[str | None, typer.Option(help="such as test or valid")] = None,
    variant: Annotated[
        str | None, typer.Option(help="a glob; default the plain recipe and isoFLOP budgets")
    ] = None,
    data: Annotated[str, typer.Option(help="D: tokens or examples")] = "tokens",
    curves: Annotated[
        bool,
        typer.Option(
            "--curves",
            help="from held-out curves: many points a run, laws of N and D, and the envelope",
        ),
    ] = False,
    margin: Annotated[
        float, typer.Option(help="nDCG@10 per decade of N within which KD is flat")
    ] = 0.02,
    draws: Annotated[int, typer.Option(min=2, help="of the hierarchical bootstrap")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of those draws")] = 0,
    out: Annotated[Path | None, typer.Option(help="write every estimate here (CSV)")] = None,
) -> None:
    """Fit scaling laws to the trained runs, forecast the largest, find optima, test the claims.

    Where the runs were measured out of domain too, every slope and exponent stands beside its own in domain.
    Every interval is of the hierarchical bootstrap: sizes, runs and branches, then queries. L(N) is fitted
    a budget at a time and L(D) a size at a time; targets are losses: CE@256, and 1 - nDCG@10.
    """
    from raylab.scaling import LAWS, Study, claims, macro_means, series
    from raylab.scaling.points import D_CHOICES, MEASURES
    from raylab.storage.tables import PER_QUERY, RESULTS

    if law != "all" and law not in LAWS:
        raise ConfigError(f"--law {law}: it must be all or one of {', '.join(LAWS)}")
    if data not in D_CHOICES:
        raise ConfigError(f"--data {data}: it must be one of {', '.join(D_CHOICES)}")
    if curves:
        given = {"head": head, "objective": objective, "collection": collection}
        _fit_curves(storage, law, data, draws, seed, out, given | {"variant": variant})
        return
    results, per_query = stored_table(storage, RESULTS), stored_table(storage, PER_QUERY)
    chosen: dict[str, Any] = {
        "head": head, "objective": objective, "collection": collection, "split": split,
        "variant": variant,
    }  # fmt: skip
    chosen_series = series(results, per_query, measure or MEASURES, **chosen)
    if not chosen_series:
        given = {"measure": measure, **chosen}
        described = ", ".join(f"{n} {v}" for n, v in given.items() if v is not None)
        raise ConfigError(f"{storage}: no trained run with values of {described or 'a measure'}")
    study = Study(draws, data, seed)
    every = [*chosen_series, *macro_means(chosen_series)]
    for one in every:
        for name in _laws(law, one):
            study.add(one, name)
    study.compare_domains(every)
    study.claims += claims(results, per_query, margin=margin, draws=draws, seed=seed, **chosen)
    _write(study, out)
    _show(study)


def _fit_curves(
    storage: str,
    law: str,
    data: str,
    draws: int,
    seed: int,
    out: Path | None,
    chosen: dict[str, Any],
) -> None:
    from raylab.scaling import LAWS, Study, curve_series, envelopes, find_law
    from raylab.storage.tables import CURVES

    if data != "tokens":
        raise ConfigError(f"--data {data}: curves have tokens alone")
    every = curve_series(stored_table(storage, CURVES), **chosen)
    if not every:
        described = ", ".join(f"{n} {v}" for n, v in chosen.items() if v is not None)
        raise ConfigError(f"{storage}: no held-out point{f' of {described}' if described else ''}")
    names = [name for name, one in LAWS.items() if one.covariates == ("N", "D")]
    if law != "all" and law not in names:
        raise ConfigError(f"--law {law}: of curves it must be all or one of {', '.join(names)}")
    study = Study(draws, data, seed)
    for one in every:
        for name in names if law == "all" else [law]:
            study.fit_points(one, find_law(name))
    found, refused = envelopes(every, draws, seed)
    _write(study, out)
    if found:
        columns = ("series", "exponent of N in C", "df", "FLOPs", "size", "held-out CE")
        _print("envelope of the curves", columns, map(_envelope, found))
    for line in refused:
        print(f"no envelope: {line}")
    _show(study)


def _envelope(one: Envelope) -> tuple[str, ...]:
    """What lies lowest: a line each time the size changes."""
    changes = [0, *(i for i in range(1, len(one.sizes_C)) if one.sizes_C[i] != one.sizes_C[i - 1])]
    ends = "\nreaches the smallest or largest size" if one.open_ends else ""
    return (
        one.series.name,
        f"{_interval(one.exponent)}{ends}",
        str(one.degrees_of_freedom),
        "\n".join(f"from {_number(one.flops_C[i])}" for i in changes),
        "\n".join(one.sizes_C[i] for i in changes),
        "\n".join(_number(one.loss_C[i]) for i in changes),
    )


def _write(study: Study, out: Path | None) -> None:
    if out is not None:
        with output_stream("--out", out) as stream:
            stream.write(_csv(study).encode())


def _csv(study: Study) -> str:
    from raylab.scaling import COLUMNS, rows

    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for estimate in study.made():
        writer.writerows(rows(estimate))
    return buffer.getvalue()


def _laws(law: str, one: Series) -> list[str]:
    from raylab.scaling import LAWS

    if law != "all":
        return [law]
    return [own.name for own in LAWS.values() if one.head == "sparse" or not own.sparse_only]


# ------------------------------------------------------------------------------- what is printed


def _show(study: Study) -> None:
    if study.fits:
        _print("fits", ("series", "law", "N", "parameters", "R2", "counts"), map(_fit, study.fits))
    if study.forecasts:
        columns = ("series", "law", "held out", "predicted", "measured", "error", "held")
        _print("forecasts", columns, (row for one in study.forecasts for row in _forecast(one)))
    if study.optima:
        columns = ("series", "law", "N", "budget", "method", "N*", "D*", "exponent", "place")
        _print("isoFLOP optima", columns, map(_optimum, study.optima))
    if study.claims:
        columns = ("claim", "of", "estimate", "verdict", "counts")
        _print("claims", columns, map(_claim, study.claims))
    if study.domains:
        columns = (
            "of",
            "out of domain",
            "in domain",
            "value in, out, out less in",
            "verdict",
            "counts",
        )
        _print("in domain and out of domain", columns, map(_domains, study.domains))
    for refused in study.refused:
        what = "" if refused.what == "fit" else f"{refused.named}: "
        print(f"not fitted: {refused.series.name}: {what}{refused.reason}")
    # Also of what was refused: that so few runs were left may be why.
    sources = [*study.fits, *(refused.series for refused in study.refused)]
    for line in dict.fromkeys(line for one in sources for line in one.excluded):
        print(f"excluded: {line}")
    print(
        f"Intervals: percentiles of {study.draws:,} hierarchical bootstrap draws (sizes, runs and branches, then "
        "queries); 95 %, of flatness 90 %. R: runs, P: design points, S: seeds, Q: queries, df: degrees of freedom, of "
        "the coarsest clusters whose runs share noise."
    )


def _print(title: str, columns: Sequence[str], rows: Iterator[tuple[str, ...]] | map) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    print()


def _number(value: float) -> str:
    return f"{value:.4g}"


def _interval(one: Any) -> str:
    if one.low != one.low and one.high != one.high:
        return _number(one.value)
    return f"{_number(one.value)} [{_number(one.low)}, {_number(one.high)}]"


def _name(one: Facts) -> str:
    parts = (one.head, one.objective, one.collection, one.split, one.measure, one.where)
    return " ".join(part for part in parts if part)


def _counts(one: Any) -> str:
    facts = f"R {one.n_runs} P {one.points} S {len(one.seeds)} Q {one.n_queries}"
    return f"{facts}\ndf {one.degrees_of_freedom:.3g} of {one.clusters}"


def _fit(one: Fit) -> tuple[str, ...]:
    window = "\n".join(
        f"{name} {_number(low)} to {_number(high)}"
        for name, (low, high) in one.window.items()
        if low == low
    )
    parameters = "\n".join(
        f"{name} {_interval(own)}{' at its bound' if name in one.at_bounds else ''}"
        for name, own in one.parameters.items()
    )
    counts = f"{_counts(one)}\n{window}"
    return _name(one), one.law, one.n, parameters, f"{one.r_squared:.4f}", counts


def _forecast(one: Forecast) -> Iterator[tuple[str, ...]]:
    for own in one.predictions:
        budget = f" at {_number(own.budget_flops)}" if own.budget_flops else ""
        yield (
            _name(one),
            one.law,
            f"{one.hold_out}: {own.size}{budget}",
            _interval(own.predicted),
            _number(own.measured),
            f"{own.relative_error:+.1%}",
            "yes" if own.held else "no",
        )


def _optimum(one: Optimum) -> tuple[str, ...]:
    return (
        _name(one),
        one.law,
        one.n,
        _number(one.budget_flops),
        one.method,
        _tried(one.tried_n),
        _tried(one.tried_d),
        "" if one.exponent is None else _interval(one.exponent),
        _place(one),
    )


def _tried(one: Interval | None) -> str:
    """What lies beyond the sizes tried has no number."""
    return "" if one is None else _interval(one).replace("nan", "beyond")


def _place(one: Optimum) -> str:
    if one.method == "parabola" and one.place != "vertex":
        return (
            f"no vertex, better {'at the smallest' if one.place == 'below' else 'at the largest'}"
        )
    return f"{one.place} the sizes tried" if one.place in ("below", "above") else one.place


def _claim(one: Claim) -> tuple[str, ...]:
    estimate = one.reason or _interval(one.estimate)
    if one.p == one.p:
        estimate += f"\np {one.p:.2g} (Holm)"
    of = f"{_name(one)} {one.size}".strip()
    family = f"\nfamily of {one.family}: {one.question}" if one.question else ""
    return one.claim, of, estimate, one.verdict, f"{_counts(one)}{family}"


def _domains(one: DomainDifference) -> tuple[str, ...]:
    values = "\n".join(map(_interval, (one.inside, one.outside, one.difference)))
    of = f"{one.quantity} of {one.law}" if one.law else one.quantity
    return (
        of,
        _name(one),
        one.against,
        values,
        f"{one.verdict}, margin {one.margin:g}",
        _counts(one),
    )
