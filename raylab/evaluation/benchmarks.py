"""How each benchmark is measured: its measures, the depth of its runs, its quirks."""

from dataclasses import dataclass

from raylab.evaluation.runs import Ranking, Run


@dataclass(frozen=True)
class Protocol:
    """How runs on one split of one collection are made and measured.

    ``measures``: names as in ``raylab.evaluation.measures``. ``primary``: the one reported first,
    also among ``measures``. ``run_depth``: hits kept a query. ``drop_own_document``: queries are
    themselves passages of the collection; search one deeper and call ``drop_own_document``.
    """

    measures: tuple[str, ...]
    run_depth: int
    primary: str
    drop_own_document: bool = False

    def __post_init__(self):
        if self.primary not in self.measures:
            raise ValueError(f"primary {self.primary!r} is not among measures {self.measures}")
        if self.run_depth < 1:
            raise ValueError(f"run_depth is {self.run_depth}; it must be at least 1")

    @property
    def search_depth(self) -> int:
        """Hits to ask of an index so that ``run_depth`` are left."""
        return self.run_depth + 1 if self.drop_own_document else self.run_depth


MSMARCO_DEV = Protocol(("RR@10", "R@1000", "nDCG@10"), 1000, "RR@10")
"""Binary, about one positive a query."""

TREC_DL = Protocol(("nDCG@10", "R(rel=2)@1000", "RR(rel=2)@10"), 1000, "nDCG@10")
"""Graded 0 to 3; the track counts a passage as relevant from 2 on, nDCG takes the grade as gain."""

BEIR = Protocol(("nDCG@10", "RR@10", "R@100"), 100, "nDCG@10")

BEIR_OWN_DOCUMENT = Protocol(("nDCG@10", "RR@10", "R@100"), 100, "nDCG@10", drop_own_document=True)
"""The queries of ArguAna and Quora are passages of their collections."""

_MSMARCO_SPLITS = {"dev": MSMARCO_DEV, "dl19": TREC_DL, "dl20": TREC_DL, "dl21": TREC_DL}
_OWN_DOCUMENT = frozenset({"arguana", "quora"})


def protocol(collection: str, split: str) -> Protocol:
    """The protocol of a collection's split, by name.

    MS MARCO is any collection named ``msmarco`` or ``msmarco-...``, its splits ``dev``, ``dl19``,
    ``dl20`` and ``dl21``. ``arguana`` and ``quora`` drop a query's own document. Everything else is
    measured as BEIR is.
    """
    if collection == "msmarco" or collection.startswith("msmarco-"):
        return _MSMARCO_SPLITS.get(split, BEIR)
    return BEIR_OWN_DOCUMENT if collection in _OWN_DOCUMENT else BEIR


def drop_own_document(run: Run) -> Run:
    """The run without the hits whose passage id is the id of their query."""
    return Run({query_id: _without(ranking, query_id) for query_id, ranking in run.items()})


def _without(ranking: Ranking, passage_id: str) -> Ranking:
    kept = ranking.passage_ids != passage_id
    return Ranking(ranking.passage_ids[kept], ranking.scores[kept])
