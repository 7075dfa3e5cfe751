"""Approximate sparse retrieval for serving, by Seismic (Bruch et al., SIGIR 2024), from the same shards.

Optional: the library is pyseismic-lsr, and is imported only when an index is built or opened. Its
aim is the best few passages of a query; its recall falls with depth. What it returns always comes
with its recall: `SeismicIndex.measured_search`.

The library keeps a passage's own representation whole, impacts as float16, and scores with that;
what may be lost is which passages it looks at. It keeps 16-bit terms in its plain classes, which
are taken up to a vocabulary of 65,536, and 32-bit terms in those named LV.

Shapes: Q queries, N passages, V terms, k hits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylab.index.agreement import MeasuredAnswer, measured_search
from raylab.index.files import described, made_files, open_array
from raylab.index.kernels.ids import MISSING_ID, rank_ids
from raylab.index.kernels.topk import check_k
from raylab.index.postings import inspect
from raylab.index.shards import Source, SparseShard, opened_sparse
from raylab.index.sparse import SparseIndex, SparseRows, query_rows
from raylab.storage.artifacts import sha256_of

_FORMAT = "raylab.seismic.2"
_NAME = "passages"
_LIBRARY_FILE = f"{_NAME}.index.seismic"  # the library adds the ending
_FILES = ("ids.npy", _LIBRARY_FILE, "index.json")
_MISSING = "Seismic is not installed: pip install 'raylab[serving]', or 'pyseismic-lsr>=0.5.4'"
_MOST_SHORT_TERMS = 65_536
_MOST_PASSAGE_TERMS = 65_535  # the library packs their number into 16 bits
_PIECE = 65_536  # passages given to the library at a time
_QUERY_BLOCK = 1024


@dataclass(frozen=True)
class SeismicSettings:
    """What is built, and how hard it is searched; the names and defaults are the library's.

    Built: ``n_postings`` a term on average, the smallest impacts of the collection being left out,
    and at most ``max_fraction`` times as many of one term; ``centroid_fraction`` clusters a
    posting, of at least ``min_cluster_size`` passages, by their ``doc_cut`` largest impacts; a
    cluster's summary keeps ``summary_energy`` of its sum.

    Searched: the lists of the ``query_cut`` heaviest terms of a query; a cluster is skipped if its
    summary scores below ``heap_factor`` times the k-th best score so far (0: none is skipped);
    ``sorted``: a query's first list from the best summary on.
    """

    n_postings: int = 3500
    max_fraction: float = 1.5
    centroid_fraction: float = 0.1
    min_cluster_size: int = 2
    doc_cut: int = 15
    summary_energy: float = 0.4
    query_cut: int = 10
    heap_factor: float = 0.7
    sorted: bool = True

    def __post_init__(self) -> None:
        for name in ("n_postings", "min_cluster_size", "doc_cut", "query_cut"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least 1")
        for name in ("centroid_fraction", "summary_energy"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name} is {value!r}; it must be above 0 and at most 1")
        if not 1 <= self.max_fraction < math.inf:
            raise ValueError(f"max_fraction is {self.max_fraction!r}; it must be at least 1")
        if not 0 <= self.heap_factor < math.inf:
            raise ValueError(f"heap_factor is {self.heap_factor!r}; it must be at least 0")


class SeismicIndex:
    """A Seismic index of passages, keyed by their ids; make one with ``build`` or ``load``.

    ``ids``: bytes [N], descending. ``index``: the library's own, of the passages with an impact
    above 0. ``settings`` may be replaced: the search follows.
    """

    def __init__(
        self, ids: np.ndarray, vocabulary_size: int, index: Any, settings: SeismicSettings
    ):
        self.ids, self.vocabulary_size = ids, vocabulary_size
        self.index, self.settings = index, settings

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def build(
        cls,
        shards: Iterable[Source],
        settings: SeismicSettings = SeismicSettings(),
        *,
        threads: int = 1,
    ) -> SeismicIndex:
        """Index (ids [n] str, matrix [n, V] scipy sparse) pairs, or folders of embedding shards.

        The library holds the whole collection in memory and reports its steps on standard output.
        The build is slow: benchmarks/README.md. Raises ValueError as ``SparseIndex.build``, and for
        impacts that float16 cannot hold and passages of more than 65,535 terms; ImportError where
        the library is missing.
        """
        _check_threads(threads)
        with opened_sparse(shards) as opened:
            ids, _ = rank_ids([shard.ids for shard in opened])
            for shard in opened:
                inspect(shard)
            n_terms = opened[0].vocabulary_size
            dataset, kind = _classes(n_terms)
            passages = dataset(dim=n_terms)
            for shard in opened:
                for piece in _pieces(shard):
                    passages.add_documents_by_id(*piece)
        index = kind.build_from_dataset(
            passages,
            n_postings=settings.n_postings,
            max_fraction=settings.max_fraction,
            centroid_fraction=settings.centroid_fraction,
            min_cluster_size=settings.min_cluster_size,
            doc_cut=settings.doc_cut,
            summary_energy=settings.summary_energy,
            num_threads=threads,
        )
        return cls(ids, n_terms, index, settings)

    def save(self, directory: str | Path) -> None:
        """Write ``passages.index.seismic`` (the library's own file, of passage ids), the ids and
        ``index.json`` into ``directory``."""
        directory = Path(directory)
        with made_files(directory, _FILES):
            np.save(directory / "ids.npy", self.ids)
            self.index.save(str(directory / _NAME))
            description = {
                "format": _FORMAT,
                **self._counts(),
                "sha256": sha256_of(directory / _LIBRARY_FILE),
                "settings": asdict(self.settings),
            }
            (directory / "index.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> SeismicIndex:
        """Read a saved index; FileNotFoundError or ValueError for a wrong file.

        The library trusts its file, so the file's checksum is verified before.
        """
        directory = Path(directory)
        description = described(directory, _FORMAT, "a Seismic index")
        path = directory / _LIBRARY_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing from the index")
        sha256 = sha256_of(path)
        if sha256 != description.pop("sha256", None):
            raise ValueError(f"{path}: not whole: its sha256 is {sha256}, not that of index.json")
        ids = open_array(directory / "ids.npy")
        try:
            settings = SeismicSettings(**description.pop("settings"))
            n_terms = int(description["vocabulary_size"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{directory / 'index.json'}: not of a Seismic index: {error}"
            ) from error
        try:
            index = _classes(n_terms)[1].load(str(path))
        except OSError as error:
            raise ValueError(f"{path}: not a whole Seismic index: {error}") from error
        loaded = cls(ids, n_terms, index, settings)
        if loaded._counts() != description:
            raise ValueError(
                f"{directory}: the files hold {loaded._counts()}; index.json says {description}"
            )
        return loaded

    def search(
        self, queries: SparseRows, k: int, *, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """k passages of each query, perhaps not the best: (ids [Q, k] str, scores [Q, k] float32).

        Scores are the library's: sums over all terms of query and passage, impacts rounded to
        float16. A passage without a common term is no hit; order and padding are those of the
        package. ``threads``: how many the library starts. Raises ValueError as
        ``SparseIndex.search``.
        """
        k = check_k(k)
        _check_threads(threads)
        weights = query_rows(queries, self.vocabulary_size)
        if not weights.data.all():
            weights = weights.copy()
            weights.eliminate_zeros()
        ids_Qk = np.full((weights.shape[0], k), MISSING_ID, dtype=f"U{self.ids.dtype.itemsize}")
        scores_Qk = np.full((weights.shape[0], k), -np.inf, dtype=np.float32)
        asked = np.flatnonzero(np.diff(weights.indptr))
        for start in range(0, len(asked), _QUERY_BLOCK):
            block = asked[start : start + _QUERY_BLOCK]
            for query, hits in self._search(weights, block, min(k, len(self)), threads):
                ids_Qk[query, : len(hits)] = [passage_id for _, passage_id in hits]
                scores_Qk[query, : len(hits)] = [score for score, _ in hits]
        over = ~(scores_Qk < np.inf).all(axis=1)
        if over.any():
            raise ValueError(
                f"query {int(over.argmax())}: a score overflows float32; scale the weights down"
            )
        return ids_Qk, scores_Qk

    def _search(
        self, weights: SparseRows, asked: np.ndarray, depth: int, threads: int
    ) -> Iterator[tuple[int, list[tuple[float, str]]]]:
        """(row, its hits as (score, id), in order), in the library's order of rows."""
        string = _library().get_seismic_string()
        rows = [slice(*weights.indptr[row : row + 2]) for row in asked]
        answers = self.index.batch_search(
            asked.astype(string),
            [weights.indices[row].astype(string) for row in rows],
            [weights.data[row] for row in rows],
            k=depth,
            query_cut=self.settings.query_cut,
            heap_factor=self.settings.heap_factor,
            sorted=self.settings.sorted,
            num_threads=threads,
        )
        for answer in answers:
            # Rows come in any order, so every hit has its row; one without hits is only empty.
            hits = [(score, passage_id) for _, score, passage_id in answer if not score <= 0]
            if hits:
                yield int(answer[0][0]), sorted(hits, reverse=True)

    def measured_search(
        self, exact: SparseIndex, queries: SparseRows, k: int, sample: int = 100
    ) -> MeasuredAnswer:
        """``search``, with its agreement with ``exact`` on queries evenly spread among these.

        ``sample``: at most so many queries are searched exactly. Raises ValueError as ``search``,
        for no queries, and for an exact index of other passages.
        """
        weights = query_rows(queries, self.vocabulary_size)
        return measured_search(self, exact, weights, k, sample)

    def _counts(self) -> dict[str, int]:
        return {
            "passages": len(self),
            "vocabulary_size": self.vocabulary_size,
            "represented": self.index.len,  # passages with an impact above 0
            "postings": self.index.nnz,
        }


def _library() -> Any:
    try:
        import seismic
    except ImportError as error:
        raise ImportError(_MISSING) from error
    if not hasattr(getattr(seismic, "SeismicDatasetLV", None), "add_documents_by_id"):
        raise ImportError(f"{_MISSING} (found instead: {seismic!r})")
    return seismic


def _classes(vocabulary_size: int) -> tuple[Any, Any]:
    """The library's classes of passages and of an index whose terms hold this vocabulary."""
    library = _library()
    if vocabulary_size <= _MOST_SHORT_TERMS:
        return library.SeismicDataset, library.SeismicIndex
    return library.SeismicDatasetLV, library.SeismicIndexLV


def _pieces(
    shard: SparseShard,
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray, np.ndarray]]:
    """(ids, terms int64, impacts float32, offsets int64) of the shard's rows, a piece at a time.

    What float16 rounds to 0 is left out.
    """
    for first in range(0, len(shard.ids), _PIECE):
        ids = np.strings.decode(shard.ids[first : first + _PIECE], "utf-8").tolist()
        indptr = np.asarray(shard.indptr[first : first + _PIECE + 1], dtype=np.int64)
        part = slice(indptr[0], indptr[-1])
        impacts = np.asarray(shard.impacts[part], dtype=np.float32)
        with np.errstate(over="ignore"):
            halves = impacts.astype(np.float16)
        if np.isinf(halves).any():
            row = int(np.searchsorted(indptr - indptr[0], int(halves.argmax()), side="right")) - 1
            raise ValueError(
                f"{shard.name}, passage {ids[row]!r}: an impact of {impacts.max():g} does not fit "
                "float16, as which Seismic keeps it"
            )
        kept = halves > 0
        offsets = np.concatenate([[0], np.cumsum(kept)])[indptr - indptr[0]]
        terms = np.diff(offsets)
        if terms.max() > _MOST_PASSAGE_TERMS:
            raise ValueError(
                f"{shard.name}, passage {ids[int(terms.argmax())]!r} has {terms.max()} terms; "
                f"Seismic takes up to {_MOST_PASSAGE_TERMS}"
            )
        yield ids, np.asarray(shard.terms[part], dtype=np.int64)[kept], impacts[kept], offsets


def _check_threads(threads: int) -> None:
    if threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1")
