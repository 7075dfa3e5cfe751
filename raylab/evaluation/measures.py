"""Measures per query by trec_eval (through pytrec_eval), named as ir_measures names them.

trec_eval sorts a run by score descending, then by passage id descending, and reads scores as
float32. A ``Run`` is already ordered without ties, and trec_eval is handed the ranks as scores, so
the order measured is the run's own.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytrec_eval

from raylab.data.faults import CollectionError
from raylab.evaluation.runs import Run
from raylab.experiment.config import ConfigError

_NAME = re.compile(r"(?P<kind>[A-Za-z]+)(\(rel=(?P<level>\d+)\))?(@(?P<cutoff>[1-9]\d*))?")
_TREC_NAMES = {
    # kind: (name without a cutoff, name with one)
    "nDCG": ("ndcg", "ndcg_cut"),
    "RR": ("recip_rank", "recip_rank"),
    "R": (None, "recall"),
    "AP": ("map", "map_cut"),
    "P": (None, "P"),
    "Success": (None, "success"),
    "Rprec": ("Rprec", None),
    "Bpref": ("bpref", None),
    "infAP": ("infAP", None),
    "SetP": ("set_P", None),
    "SetR": ("set_recall", None),
    "SetF": ("set_F", None),
}


def _form(kind: str) -> str:
    plain, cut = _TREC_NAMES[kind]
    level = "" if kind == "nDCG" else "[(rel=g)]"
    return kind + level + ("@k" if plain is None else "" if cut is None else "[@k]")


_KNOWN = ", ".join(map(_form, _TREC_NAMES))
_QUERIES_TOGETHER = 500
_SHOWN_QUERIES = 5


@dataclass(frozen=True)
class _Measure:
    kind: str
    level: int
    cutoff: int | None

    @property
    def depth(self) -> int | None:
        """Ranks of the run to hand over: trec_eval's reciprocal rank has no cutoff of its own."""
        return self.cutoff if self.kind == "RR" else None

    @property
    def trec_request(self) -> str:
        plain, cut = _TREC_NAMES[self.kind]
        if plain is not None and (self.cutoff is None or plain == cut):
            return plain
        return f"{cut}.{self.cutoff}"

    @property
    def trec_answer(self) -> str:
        return self.trec_request.replace(".", "_")


def evaluate(
    run: Run, qrels: Mapping[str, Mapping[str, int]], measures: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Value of each measure for each query of ``qrels``: ``{measure: {query id: value}}``.

    Measures: ``nDCG@10`` (gain = grade, discount log2, ideal over all judged passages), ``RR@10``,
    ``R@1000``, ``AP``, ``P@5``, ``Success@1``, ``Rprec``, ``Bpref``, ``infAP``, ``SetP``, ``SetR``,
    ``SetF``; ``(rel=2)`` counts as relevant what is graded 2 or above (else 1). As in
    ``trec_eval -c``, a query that the run lacks, or that has no relevant passage, counts 0, and one
    that is not judged is left out; ``coverage`` names them. Raises ConfigError for a measure that is
    not known, CollectionError for no qrels and for a run that shares no query with the qrels although it
    has some.
    """
    parsed = {name: _parse(name) for name in measures}
    if not qrels:
        raise CollectionError("qrels are empty: there is nothing to evaluate against")
    shared = sorted(qrels.keys() & run.keys())
    if run and not shared:
        raise CollectionError(
            f"no query of the run (such as {next(iter(run))!r}) is judged in the qrels "
            f"(such as {next(iter(qrels))!r}); these are not of the same collection"
        )
    values = {name: dict.fromkeys(qrels, 0.0) for name in measures}
    for level, depth in sorted(
        {(measure.level, measure.depth) for measure in parsed.values()}, key=str
    ):
        group = {n: m for n, m in parsed.items() if (m.level, m.depth) == (level, depth)}
        requests = {measure.trec_request for measure in group.values()}
        for block in _blocks(shared):
            answers = pytrec_eval.RelevanceEvaluator(
                {query_id: dict(qrels[query_id]) for query_id in block}, requests, level
            ).evaluate({query_id: _rank_scores(run, query_id, depth) for query_id in block})
            for name, measure in group.items():
                for query_id, answer in answers.items():
                    values[name][query_id] = answer[measure.trec_answer]
    return values


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


def _parse(name: str) -> _Measure:
    match = _NAME.fullmatch(name)
    if match and match["kind"] in _TREC_NAMES:
        plain, cut = _TREC_NAMES[match["kind"]]
        has_level, has_cutoff = match["level"] is not None, match["cutoff"] is not None
        level = int(match["level"] or 1)
        known = cut if has_cutoff else plain
        if known and level >= 1 and not (has_level and match["kind"] == "nDCG"):
            cutoff = int(match["cutoff"]) if has_cutoff else None
            return _Measure(match["kind"], level, cutoff)
    raise ConfigError(
        f"unknown measure {name!r}; known are {_KNOWN} with k, g >= 1, "
        "for instance nDCG@10, RR@10, R(rel=2)@1000"
    )


def _rank_scores(run: Run, query_id: str, depth: int | None) -> dict[str, float]:
    ids = run[query_id].passage_ids[:depth].tolist()
    return {passage_id: float(len(ids) - rank) for rank, passage_id in enumerate(ids)}


def _blocks(query_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(query_ids), _QUERIES_TOGETHER):
        yield query_ids[start : start + _QUERIES_TOGETHER]
