"""Measures per query by trec_eval (through pytrec_eval), named as ir_measures names them.

trec_eval sorts a run by score descending, then by passage id descending, and reads scores as
float32. A ``Run`` is already ordered without ties, and trec_eval is handed the ranks as scores, so
the order measured is the run's own.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytrec_eval

from raylab.evaluation.runs import Run

_NAME = re.compile(r"(?P<kind>[A-Za-z]+)(\(rel=(?P<level>\d+)\))?(@(?P<cutoff>[1-9]\d*))?")
_TREC_NAMES = {
    # kind: (name without a cutoff, name with one)
    "nDCG": ("ndcg", "ndcg_cut"),
    "RR": ("recip_rank", "recip_rank"),
    "R": (None, "recall"),
    "AP": ("map", "map_cut"),
}
_KNOWN = "nDCG[@k], RR[(rel=g)][@k], R[(rel=g)]@k, AP[(rel=g)][@k]"
_QUERIES_TOGETHER = 500


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
        if self.cutoff is None or plain == cut:
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
    ``R@1000``, ``AP``; ``(rel=2)`` counts as relevant what is graded 2 or above (else 1). A query
    that the run lacks, or that has no relevant passage, counts 0; one that is not judged is left
    out. Raises ValueError for a measure that is not known, no qrels, and a run that shares no query
    with the qrels although it has some.
    """
    parsed = {name: _parse(name) for name in measures}
    if not qrels:
        raise ValueError("qrels are empty: there is nothing to evaluate against")
    shared = sorted(qrels.keys() & run.keys())
    if run and not shared:
        raise ValueError(
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


def _parse(name: str) -> _Measure:
    match = _NAME.fullmatch(name)
    if match and match["kind"] in _TREC_NAMES:
        plain, _ = _TREC_NAMES[match["kind"]]
        has_level, has_cutoff = match["level"] is not None, match["cutoff"] is not None
        level = int(match["level"] or 1)
        if (has_cutoff or plain) and level >= 1 and not (has_level and match["kind"] == "nDCG"):
            cutoff = int(match["cutoff"]) if has_cutoff else None
            return _Measure(match["kind"], level, cutoff)
    raise ValueError(
        f"unknown measure {name!r}; known are {_KNOWN} with k, g >= 1, "
        "for instance nDCG@10, RR@10, R(rel=2)@1000"
    )


def _rank_scores(run: Run, query_id: str, depth: int | None) -> dict[str, float]:
    ids = run[query_id].passage_ids[:depth].tolist()
    return {passage_id: float(len(ids) - rank) for rank, passage_id in enumerate(ids)}


def _blocks(query_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(query_ids), _QUERIES_TOGETHER):
        yield query_ids[start : start + _QUERIES_TOGETHER]
