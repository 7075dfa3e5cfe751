"""The benchmarks as one explicit table: where each comes from, how its text is built, how it is measured.

Identifiers are those of ir_datasets (its catalogue; `beir/webis-touche2020/v2` is the version BEIR
ships). Checksums are md5 sums that the publishers state: of BEIR's archives in BEIR's own README, of
MS MARCO's and TREC's files in ir_datasets' list of downloads. Those of the embedded SciFact are the
sha256 of the files in this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from raylab.experiment.config import LONGEST_TEXT, Encoding

_LEVEL = re.compile(r"\(rel=(\d+)\)")


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
    def binary_level(self) -> int:
        """The grade from which on a passage is relevant to measures that know no grades (recall)."""
        return max((int(level) for level in _LEVEL.findall(" ".join(self.measures))), default=1)

    @property
    def search_depth(self) -> int:
        """Hits that an index is searched for, so that ``run_depth`` are left."""
        return self.run_depth + 1 if self.drop_own_document else self.run_depth


MSMARCO_DEV = Protocol(("RR@10", "R@1000", "nDCG@10"), 1000, "RR@10")
"""Binary, about one positive a query."""

TREC_DL = Protocol(("nDCG@10", "R(rel=2)@1000", "RR(rel=2)@10"), 1000, "nDCG@10")
"""Graded 0 to 3; the track counts a passage as relevant from 2 on, nDCG takes the grade as gain."""

BEIR = Protocol(("nDCG@10", "RR@10", "R@100"), 100, "nDCG@10")

BEIR_OWN_DOCUMENT = Protocol(("nDCG@10", "RR@10", "R@100"), 100, "nDCG@10", drop_own_document=True)
"""The queries of ArguAna and Quora are passages of their collections."""


@dataclass(frozen=True)
class Split:
    """One split: its ir_datasets id (none: of a collection beside this one), protocol, grading."""

    ir_datasets: str | None
    protocol: Protocol = BEIR
    graded: bool = False


@dataclass(frozen=True)
class Benchmark:
    """One collection. ``text``: the fields that make a passage's text, joined by one space.

    ``archive_md5``: of the published archive ``NAME.zip``. ``file_md5``: of single published files,
    by their names in an MS MARCO folder. ``file_sha256``: of every file of an embedded copy.
    ``in_beir_mean``: whether it is one of the 13 sets whose mean is called BEIR. ``empty_passages``: how many
    of the published archive have neither title nor text. ``missing_passages``: how many passages its judgements
    for evaluation name that it lacks. ``query_length`` and ``passage_length``: tokens that texts are cut to, as
    2502.15526 encoded the collection.
    """

    name: str
    passages: str
    splits: Mapping[str, Split]
    text: tuple[str, ...] = ("title", "text")
    archive_md5: str | None = None
    file_md5: Mapping[str, str] = field(default_factory=dict)
    file_sha256: Mapping[str, str] = field(default_factory=dict)
    in_beir_mean: bool = False
    query_length: int = LONGEST_TEXT
    passage_length: int = LONGEST_TEXT
    empty_passages: int = 0
    missing_passages: int = 0

    @property
    def embedded(self) -> bool:
        return bool(self.file_sha256)


def _beir(
    name: str,
    splits: str,
    archive_md5: str,
    protocol: Protocol = BEIR,
    graded: bool = False,
    **more,
) -> Benchmark:
    """One of BEIR's 13 sets; ir_datasets names a split below its set only where that has several."""
    names = splits.split()
    ids = {s: f"beir/{name}/{s}" if len(names) > 1 else f"beir/{name}" for s in names}
    ids = {s: more.pop("ir_datasets", dataset) for s, dataset in ids.items()}
    found = {s: Split(dataset, protocol, graded) for s, dataset in ids.items()}
    passages = found["test"].ir_datasets if len(names) == 1 else f"beir/{name}"
    assert passages is not None
    return Benchmark(name, passages, found, archive_md5=archive_md5, in_beir_mean=True, **more)


_EMBEDDED_SCIFACT = {
    "corpus.jsonl.gz": "ef051f6f7960e2b01ea40900a81446b68e799a5254714c7d74a92f4090b5d3df",
    "queries.jsonl.gz": "f753929067ac5b6f3aeace1740937571e61d17f92f48607d5470d7d0a03a505a",
    "qrels/train.tsv": "a53f2114831916c096b6c37d9e54da68cef4efdcdbd5ed46533601af972acf1d",
    "qrels/test.tsv": "0864bb985e0ca2367ba217977e72004d549054b2b06666ed9d4825ac7c21284c",
}

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "msmarco",
            "msmarco-passage",
            {
                "train": Split("msmarco-passage/train"),
                "dev": Split("msmarco-passage/dev/small", MSMARCO_DEV),
                "dl19": Split("msmarco-passage/trec-dl-2019/judged", TREC_DL, graded=True),
                "dl20": Split("msmarco-passage/trec-dl-2020/judged", TREC_DL, graded=True),
                "dl21": Split(None, TREC_DL, graded=True),  # of MS MARCO v2, in slices that hold it
            },
            text=("text",),
            query_length=64,
            passage_length=192,
            file_md5={
                "qrels.train.tsv": "733fb9fe12d93e497f7289409316eccf",
                "qrels.dl19.tsv": "2f4be390198da108f6845c822e5ada14",
                "qrels.dl20.tsv": "0355ccee7509ac0463e8278186cdd8d1",
                "queries.dl19.tsv.gz": "eda71eccbe4d251af83150abe065368c",
                "queries.dl20.tsv.gz": "00a406fb0d14ed3752d70d1e4eb98600",
            },
        ),
        _beir(
            "arguana",
            "test",
            "8ad3e3c2a5867cdced806d6503f29b99",
            BEIR_OWN_DOCUMENT,
            missing_passages=5,  # counted in issue 5021 of MTEB
        ),
        _beir("climate-fever", "test", "8b66f0a9126c521bae2bde127b4dc99d"),
        _beir("dbpedia-entity", "dev test", "c2a39eb420a3164af735795df012ac2c", graded=True),
        _beir("fever", "train dev test", "5a818580227bfb4b35bb6fa46d9b6c03"),
        # Pyserini's index of it, which passes over empty passages, has 57,600 of 57,638.
        _beir("fiqa", "train dev test", "17918ed23cd04fb15047f73e6c3bd9d9", empty_passages=38),
        _beir("hotpotqa", "train dev test", "f412724f78b0d91183a0e86805e16114"),
        _beir("nfcorpus", "train dev test", "a89dba18a62ef92f7d323ec890a0d38d", graded=True),
        _beir("nq", "test", "d4d3d2e48787a744b6f6e691ff534307"),
        _beir("quora", "dev test", "18fb154900ba42a600f84b839c173167", BEIR_OWN_DOCUMENT),
        _beir("scidocs", "test", "38121350fc3a4d2f48850f6aff52e4a9"),
        _beir(
            "scifact",
            "train test",
            "5f7d1de60b170fc8027bb7898e2efca1",
            file_sha256=_EMBEDDED_SCIFACT,
        ),
        _beir(
            "trec-covid",
            "test",
            "ce62140cb23feb9becf6270d0d1fe6d1",
            graded=True,
            empty_passages=1,  # likewise: 171,331 of 171,332
        ),
        _beir(
            "webis-touche2020",
            "test",
            "46f650ba5a527fc69e0a6521c5a23563",
            graded=True,
            ir_datasets="beir/webis-touche2020/v2",
        ),
    )
}

BEIR_SETS = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.in_beir_mean)
"""The 13 sets whose mean nDCG@10 on the split test is called BEIR (2502.15526, Evaluation)."""


def held_out_splits(collection: str, splits: Iterable[str]) -> tuple[str, ...]:
    """Of a collection's splits those that a model trained elsewhere is measured on.

    The split test where there is one; else all that are not for training. Of MS MARCO dev, which is its
    published measure, and the tracks.
    """
    splits = [split for split in splits if split != "train"]
    return ("test",) if "test" in splits else tuple(splits)


def find_benchmark(collection: str) -> Benchmark | None:
    """The benchmark of that name; `msmarco-...` is MS MARCO (a slice of it, say)."""
    family = "msmarco" if collection.startswith("msmarco-") else collection
    return BENCHMARKS.get(family)


def encoding_for(encoding: Encoding, collection: str) -> Encoding:
    """An encoding with the collection's lengths, by name, where it has none of its own."""
    benchmark = find_benchmark(collection)
    query_length, passage_length = encoding.query_limit, encoding.passage_limit
    if benchmark and encoding.query_length is None:
        query_length = benchmark.query_length
    if benchmark and encoding.passage_length is None:
        passage_length = benchmark.passage_length
    return encoding.changed(query_length=query_length, passage_length=passage_length)


def protocol(collection: str, split: str) -> Protocol:
    """The protocol of a collection's split, by name; what the table lacks is measured as BEIR is."""
    benchmark = find_benchmark(collection)
    known = benchmark.splits.get(split) if benchmark else None
    if known:
        return known.protocol
    # A split of one's own (a validation part) keeps the quirk that its collection has in all splits.
    drops_own = benchmark and all(s.protocol.drop_own_document for s in benchmark.splits.values())
    return BEIR_OWN_DOCUMENT if drops_own else BEIR
