"""Measures per query by trec_eval (through pytrec_eval), named as ir_measures names them; and measures of one's own.

trec_eval sorts a run by score descending, then by passage id descending, and reads scores as
float32. A ``Run`` is already ordered without ties, and trec_eval gets the ranks as scores, so
the order measured is the run's own.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import pytrec_eval

from raylab.data.faults import CollectionError
from raylab.evaluation.runs import Run
from raylab.experiment.config import ConfigError, check
from raylab.experiment.measures import OwnMeasure
from raylab.experiment.references import load_reference


@dataclass(frozen=True)
class Measure:
    """What trec_eval measures.

    ``trec_name``, ``trec_name_at_k``: trec_eval's names without a cutoff and with one; None: it has none.
    ``levels``: whether ``(rel=g)`` may say from which grade on a passage is relevant.
    """

    name: str
    trec_name: str | None = None
    trec_name_at_k: str | None = None
    levels: bool = True

    def __str__(self) -> str:
        """How it is spelt, such as ``AP[(rel=g)][@k]``."""
        cutoff = "@k" if self.trec_name is None else "[@k]" if self.trec_name_at_k else ""
        return self.name + "[(rel=g)]" * self.levels + cutoff


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("nDCG", "ndcg", "ndcg_cut", levels=False),
        Measure("RR", "recip_rank", "recip_rank"),
        Measure("R", None, "recall"),
        Measure("AP", "map", "map_cut"),
        Measure("P", None, "P"),
        Measure("Success", None, "success"),
        Measure("Rprec", "Rprec"),
        Measure("Bpref", "bpref"),
        Measure("infAP", "infAP"),
        Measure("SetP", "set_P"),
        Measure("SetR", "set_recall"),
        Measure("SetF", "set_F"),
    )
}
_NAME = re.compile(r"(?P<kind>[A-Za-z]+)(\(rel=(?P<level>[1-9]\d*)\))?(@(?P<cutoff>[1-9]\d*))?")
_OTHER_NAMES = {"mrr": "RR", "recall": "R", "map": "AP", "precision": "P", "hit": "Success"}
_QUERIES_TOGETHER = 500
_SHOWN_QUERIES = 5


@dataclass(frozen=True)
class _NamedMeasure:
    """A measure with the level and the cutoff of its name."""

    measure: Measure
    level: int
    cutoff: int | None

    @property
    def depth(self) -> int | None:
        """Ranks of the run to hand over: trec_eval's reciprocal rank has no cutoff of its own."""
        return self.cutoff if self.measure.name == "RR" else None

    @property
    def trec_request(self) -> str:
        plain, cut = self.measure.trec_name, self.measure.trec_name_at_k
        if plain is not None and (self.cutoff is None or plain == cut):
            return plain
        return f"{cut}.{self.cutoff}"

    @property
    def trec_answer(self) -> str:
        return self.trec_request.replace(".", "_")


def evaluate(
    run: Run, qrels: Mapping[str, Mapping[str, int]], measures: Sequence[str | OwnMeasure]
) -> dict[str, dict[str, float]]:
    """Value of each measure for each query of ``qrels``: ``{measure: {query id: value}}``.

    Measures: ``nDCG@10`` (gain = grade, discount log2, ideal over all judged passages), ``RR@10``,
    ``R@1000``, ``AP``, ``P@5``, ``Success@1``, ``Rprec``, ``Bpref``, ``infAP``, ``SetP``, ``SetR``,
    ``SetF``, what else is in ``MEASURES``, and measures of one's own; ``(rel=2)`` counts as relevant what is
    graded 2 or above (else 1). As in ``trec_eval -c``, a query that the run lacks, or that has no relevant
    passage, counts 0, and one that is not judged is left out; ``coverage`` names them. One's own measure of a query
    with hits is what its function says.

    Raises:
        ConfigError: a measure is not known; one's own cannot be loaded, or gives what is no finite number.
        CollectionError: no qrels; a run that shares no query with the qrels although it has some.
    """
    parsed = {name: _parse(name) for name in measures if isinstance(name, str)}
    own = [measure for measure in measures if isinstance(measure, OwnMeasure)]
    check_own(own)
    if not qrels:
        raise CollectionError("qrels are empty: there is nothing to evaluate against")
    shared = sorted(qrels.keys() & run.keys())
    if run and not shared:
        raise CollectionError(
            f"no query of the run (such as {next(iter(run))!r}) is judged in the qrels "
            f"(such as {next(iter(qrels))!r}); these are not of the same collection"
        )
    values = {_name(measure): dict.fromkeys(qrels, 0.0) for measure in measures}
    for measure in own:
        for query_id in filter(run.get, shared):
            passage_ids = run[query_id].passage_ids[: measure.cutoff].tolist()
            values[measure.name][query_id] = _own_value(measure, passage_ids, qrels[query_id])
    for level, depth in sorted({(named.level, named.depth) for named in parsed.values()}, key=str):
        group = {
            n: named for n, named in parsed.items() if (named.level, named.depth) == (level, depth)
        }
        requests = {named.trec_request for named in group.values()}
        for block in _blocks(shared):
            answers = pytrec_eval.RelevanceEvaluator(
                {query_id: dict(qrels[query_id]) for query_id in block}, requests, level
            ).evaluate({query_id: _rank_scores(run, query_id, depth) for query_id in block})
            for name, named in group.items():
                for query_id, answer in answers.items():
                    values[name][query_id] = answer[named.trec_answer]
    return values


def check_own(measures: Sequence[OwnMeasure]) -> None:
    """Raise ConfigError unless the function of every measure can be loaded and none bears a name of trec_eval's."""
    for measure in measures:
        taken = _match(measure.name) is not None
        check(not taken, "measure.name", measure.name, "another name: this is one of trec_eval's")
        load_reference(measure.function)


def _own_value(measure: OwnMeasure, passage_ids: Sequence[str], grades: Mapping[str, int]) -> float:
    value = float(load_reference(measure.function)(passage_ids, grades))
    check(math.isfinite(value), f"measure {measure.name}", value, "a finite number of every query")
    return value


def _name(measure: str | OwnMeasure) -> str:
    return measure if isinstance(measure, str) else measure.name


@dataclass(frozen=True)
class Coverage:
    """What a mean over queries is over, by query id in ascending order.

    ``queries``: the judged ones, over which every mean goes. Of these, those ``without_relevant``
    passages at the level asked for, and those ``missing`` from the run (or there without a hit),
    count 0. ``unjudged``: queries of the run that are left out.
    """

    queries: tuple[str, ...]
    without_relevant: tuple[str, ...]
    missing: tuple[str, ...]
    unjudged: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            f"{len(self.queries)} judged queries",
            _counted(self.without_relevant, "without a relevant passage, counted as 0"),
            _counted(self.missing, "missing from the run, counted as 0"),
            _counted(self.unjudged, "of the run without judgement, left out"),
        ]
        return "; ".join(filter(None, parts))


def _counted(query_ids: Sequence[str], kind: str) -> str:
    if not query_ids:
        return ""
    shown = ", ".join(query_ids[:_SHOWN_QUERIES])
    return f"{len(query_ids)} {kind} ({shown}{', ...' * (len(query_ids) > _SHOWN_QUERIES)})"


def coverage(run: Run, qrels: Mapping[str, Mapping[str, int]], level: int = 1) -> Coverage:
    """The queries that the means of ``evaluate`` are over; relevant is what is graded ``level``."""
    judged = sorted(qrels)
    return Coverage(
        tuple(judged),
        tuple(q for q in judged if max(qrels[q].values(), default=0) < level),
        tuple(q for q in judged if not run.get(q)),
        tuple(q for q in run if q not in qrels),
    )


def binary_level(measures: Sequence[str]) -> int:
    """The highest grade that a measure asks for, ``(rel=g)``; else 1. ConfigError as ``evaluate``."""
    return max((_parse(name).level for name in measures), default=1)


def _parse(name: str) -> _NamedMeasure:
    named = _match(name)
    if named is None:
        right = _right_name(name)
        raise ConfigError(
            f"unknown measure {name!r}; {f'did you mean {right}? ' if right else ''}"
            f"known are {', '.join(map(str, MEASURES.values()))} with k, g >= 1, "
            "for instance nDCG@10, RR@10, R(rel=2)@1000"
        )
    return named


def _match(name: str) -> _NamedMeasure | None:
    match = _NAME.fullmatch(name)
    measure = MEASURES.get(match["kind"]) if match else None
    if match is None or measure is None:
        return None
    level, cutoff = match["level"], match["cutoff"]
    known = measure.trec_name_at_k if cutoff else measure.trec_name
    if not known or (level and not measure.levels):
        return None
    return _NamedMeasure(measure, int(level or 1), int(cutoff) if cutoff else None)


def _right_name(name: str) -> str | None:
    """The name that was meant: of another case, of the same measure elsewhere, or nearly the same."""
    kind, rest = re.fullmatch(r"\s*([A-Za-z]*)(.*?)\s*", name, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    known = {own.lower(): own for own in MEASURES} | _OTHER_NAMES
    near = get_close_matches(kind.lower(), known, 1, 0.75)
    right = f"{known[near[0]]}{rest}" if near else ""
    return right if _match(right) else None


def _rank_scores(run: Run, query_id: str, depth: int | None) -> dict[str, float]:
    ids = run[query_id].passage_ids[:depth].tolist()
    return {passage_id: float(len(ids) - rank) for rank, passage_id in enumerate(ids)}


def _blocks(query_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(query_ids), _QUERIES_TOGETHER):
        yield query_ids[start : start + _QUERIES_TOGETHER]
