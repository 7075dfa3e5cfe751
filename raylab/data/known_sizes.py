"""How large the named benchmarks are: what a plan needs of a collection that is not on this machine.

Counts of passages, of judged queries and of judgements, and the bytes of the longest passage id, are those of
ir_datasets' catalogue (0.6.3). Mean words are those of BEIR's table 1 (2104.08663); words stand between
white space, and a passage's are those of title and text. The spread, the standard deviation of the logarithm of a
length, is measured where it says so and assumed elsewhere; it decides how much a length limit cuts off. On MS MARCO,
NFCorpus and SciFact the tokens that are left of a text are right to 2.5 % (benchmarks/known_sizes.py; docs/log.md,
2026-11-29).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import fsspec
import numpy as np

from raylab.data import irds
from raylab.data.files import is_local, name_of
from raylab.data.registry import BENCHMARKS
from raylab.data.sources import EMBEDDED, Source, open_collection

_QUANTILES = 1_000
BYTES_A_WORD = 6.1
"""UTF-8 bytes of English text for a word and the space after it, as in MS MARCO; 7.0 in SciFact."""


@dataclass(frozen=True)
class Words:
    """How long texts are, in words: a lognormal distribution of this mean and spread."""

    mean: float
    spread: float

    def lengths(self) -> np.ndarray:
        """Float [1000]: lengths at as many equal steps of probability, with that mean."""
        steps = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        normal = NormalDist()
        lengths = np.exp([self.spread * normal.inv_cdf(step) for step in steps])
        return lengths * (self.mean / lengths.mean())


@dataclass(frozen=True)
class SplitSize:
    """Judged queries of a split, and judgements above 0."""

    queries: int
    relevant: int


@dataclass(frozen=True)
class KnownSize:
    """One benchmark. ``id_bytes``: of its longest passage id."""

    passages: int
    passage_words: Words
    query_words: Words
    splits: Mapping[str, SplitSize]
    id_bytes: int


def _size(
    passages: int,
    passage_words: tuple[float, float],
    query_words: tuple[float, float],
    id_bytes: int,
    **splits: tuple[int, int],
) -> KnownSize:
    sizes = {split: SplitSize(*counts) for split, counts in splits.items()}
    return KnownSize(passages, Words(*passage_words), Words(*query_words), sizes, id_bytes)


KNOWN_SIZES: dict[str, KnownSize] = {
    "msmarco": _size(
        8_841_823,
        (55.98, 0.39),  # its spread is measured
        (5.96, 0.42),  # its spread is measured
        7,
        train=(502_939, 532_761),
        dev=(6_980, 7_437),
        dl19=(43, 4_102),
        dl20=(54, 3_606),
    ),
    "arguana": _size(8_674, (166.80, 0.55), (192.98, 0.55), 47, test=(1_406, 1_406)),
    "climate-fever": _size(5_416_593, (84.76, 0.80), (20.13, 0.40), 221, test=(1_535, 4_681)),
    "dbpedia-entity": _size(
        4_635_922, (49.68, 0.75), (5.39, 0.45), 200, dev=(67, 1_405), test=(400, 15_286)
    ),
    "fever": _size(
        5_416_568,
        (84.76, 0.80),
        (8.13, 0.35),
        221,
        train=(109_810, 140_085),
        dev=(6_666, 8_079),
        test=(6_666, 7_937),
    ),
    "fiqa": _size(
        57_638,
        (132.32, 0.85),
        (10.77, 0.45),
        6,
        train=(5_500, 14_166),
        dev=(500, 1_238),
        test=(648, 1_706),
    ),
    "hotpotqa": _size(
        5_233_329,
        (46.30, 0.65),
        (17.61, 0.45),
        8,
        train=(85_000, 170_000),
        dev=(5_447, 10_894),
        test=(7_405, 14_810),
    ),
    "nfcorpus": _size(
        3_633,
        (232.26, 0.37),  # its spread is measured
        (3.30, 0.75),  # its spread is measured
        8,
        train=(2_590, 110_575),
        dev=(324, 11_385),
        test=(323, 12_334),
    ),
    "nq": _size(2_681_468, (78.88, 0.65), (9.16, 0.20), 10, test=(3_452, 4_201)),
    "quora": _size(
        522_931, (11.44, 0.45), (9.53, 0.45), 6, dev=(5_000, 7_626), test=(10_000, 15_675)
    ),
    "scidocs": _size(25_657, (176.19, 0.50), (9.38, 0.40), 40, test=(1_000, 4_928)),
    "scifact": _size(
        5_183,
        (213.63, 0.37),  # its spread is measured
        (12.37, 0.39),  # its spread is measured
        9,
        train=(809, 919),
        test=(300, 339),
    ),
    "trec-covid": _size(171_332, (160.77, 0.90), (10.60, 0.35), 8, test=(50, 24_673)),
    "webis-touche2020": _size(382_545, (292.37, 1.00), (6.55, 0.30), 39, test=(49, 932)),
}
"""By the name of the benchmark: MS MARCO, and the 13 sets of BEIR."""


@dataclass(frozen=True)
class KnownCollection:
    """A named benchmark that a run will find at ``address``, and that is not looked at here."""

    name: str
    address: str
    size: KnownSize


def known_collection(address: str) -> KnownCollection | None:
    """The named benchmark at an address, by the last part of it; None of any other collection.

    `msmarco`, `DIR/msmarco`, `s3://bucket/nfcorpus.zip`, `irds:fiqa`, `irds:msmarco-passage/train`.
    """
    if irds.is_irds(address):
        dataset = address.removeprefix(irds.PREFIX)
        name = next((n for n, b in BENCHMARKS.items() if _holds(n, b.passages, dataset)), dataset)
    else:
        name = (name_of(address) or address).removesuffix(".zip")
    size = KNOWN_SIZES.get(name)
    return None if size is None else KnownCollection(name, address, size)


def _holds(name: str, passages: str, dataset: str) -> bool:
    return dataset in (name, passages) or dataset.startswith(f"{passages}/")


def open_or_known(address: str) -> Source | KnownCollection:
    """A collection that is there, or a named benchmark that is not: for plans, which need only its size.

    What ir_datasets would download is not asked for: a named benchmark by `irds:` is always a known one.

    Raises:
        CollectionError: neither; or files that are there and are no collection.
    """
    known = known_collection(address)
    if known is None or _is_there(address):
        return open_collection(address)
    return known


def _is_there(address: str) -> bool:
    if irds.is_irds(address):
        return False
    if address in EMBEDDED:
        return True
    if is_local(address):
        return Path(address).expanduser().exists()
    try:
        fs, path = fsspec.core.url_to_fs(address)
        return fs.exists(path)
    except Exception:  # every protocol has errors of its own, such as no network or no credentials
        return False
