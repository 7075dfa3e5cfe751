"""Where a collection's files are: an embedded one, a folder or archive anywhere, or ir_datasets.

    BEIR layout       corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv (header line)
    MS MARCO layout   collection.tsv, queries.SPLIT.tsv, qrels.SPLIT.tsv (4 columns),
                      optionally train_passages.tsv: passages of the training split that must
                      stay out of the evaluation index
    Parquet           corpus.parquet, queries.parquet, qrels/SPLIT.parquet, with BEIR's column names

Every file may end in `.gz` or `.zst`; `corpus/` may be a folder of shards instead of one file. A
folder is a local path or any fsspec address; `NAME.zip` is an archive as BEIR publishes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import fsspec

from raylab.data import irds
from raylab.data.faults import CollectionError
from raylab.data.files import below, digest, is_local, name_of
from raylab.data.registry import BENCHMARKS, Benchmark

EMBEDDED = {
    name: Path(__file__).parent.parent / "assets" / name
    for name, benchmark in BENCHMARKS.items()
    if benchmark.embedded
}
_ENDINGS = ("", ".gz", ".zst")


@dataclass(frozen=True)
class Source:
    """Which files make a collection, by address."""

    name: str
    passages: tuple[str, ...]
    train_passages: tuple[str, ...]
    queries: dict[str, str]  # split -> file; BEIR names the same file for every split
    qrels: dict[str, str]
    embedded: bool = False
    archive: str | None = None

    @property
    def files(self) -> list[str]:
        passages = [*self.passages, *self.train_passages]
        return [*passages, *dict.fromkeys(self.queries.values()), *self.qrels.values()]

    def identity(self) -> dict[str, object]:
        """Content, not location: the checksum of every file under the part it plays."""
        sums = {
            address: irds.identity(address) if irds.is_irds(address) else digest(address)
            for address in self.files
        }
        named: dict[str, object] = {}
        parts = {"passages": self.passages, "train_passages": self.train_passages}
        for role, addresses in parts.items():
            if addresses:
                named[role] = (
                    sums[addresses[0]] if len(addresses) == 1 else [sums[a] for a in addresses]
                )
        named |= {f"queries.{s}": sums[a] for s, a in self.queries.items()}
        named |= {f"qrels.{s}": sums[a] for s, a in self.qrels.items()}
        return {"files": named, "layout": 1}

    def verify(self) -> list[str]:
        """Compare with published checksums, where there are any: the names of what agrees.

        Raises:
            CollectionError: an archive or an embedded file that is not the published one. Single
                files of MS MARCO may be a user's own selection: one that differs is only not listed.
        """
        benchmark = BENCHMARKS.get(self.name)
        if benchmark is None:
            return []
        verified = []
        if self.archive and benchmark.archive_md5:
            md5 = digest(self.archive, "md5")
            if md5 != benchmark.archive_md5:
                raise CollectionError(
                    f"{self.archive}: md5 {md5}, not the published {benchmark.archive_md5}; "
                    "fetch it again, or unpack it under another name if it is meant to differ"
                )
            verified.append(name_of(self.archive))
        if self.embedded:
            verified += self._verified_embedded(benchmark)
        for address in self.files:
            published = benchmark.file_md5.get(name_of(address))
            if published and digest(address, "md5") == published:
                verified.append(name_of(address))
        return verified

    def _verified_embedded(self, benchmark: Benchmark) -> list[str]:
        for name, expected in benchmark.file_sha256.items():
            path = EMBEDDED[self.name] / name
            if digest(path) != expected:
                raise CollectionError(f"{path}: not the file that raylab ships; install it again")
        return list(benchmark.file_sha256)


def open_collection(name: str) -> Source:
    """Find a collection.

    ``name``: an embedded one's; a folder's or `.zip` archive's path or fsspec address, in one of the
    layouts above; or `irds:` with a benchmark's name or an ir_datasets id. A benchmark's bare name
    is looked for in ir_datasets when there is no such folder.

    Raises:
        CollectionError: no such collection or folder, or files that the layout needs are missing.
    """
    if name in EMBEDDED:
        return _in_folder(name, str(EMBEDDED[name]), embedded=True)
    if irds.is_irds(name):
        return _in_irds(name.removeprefix(irds.PREFIX))
    if is_local(name):
        path = Path(name)
        if path.is_file() and path.suffix == ".zip":
            return _in_archive(str(path.resolve()))
        if path.is_dir():
            return _in_folder(
                path.resolve().name, str(path.resolve())
            )  # workers have folders of their own
        if name in BENCHMARKS and irds.installed():
            return _in_irds(name)
        raise CollectionError(
            f"no collection {name!r}: give {', '.join(EMBEDDED)}, or a folder with "
            "corpus.jsonl[.gz] (BEIR layout) or collection.tsv[.gz] (MS MARCO layout)"
            + (", or install ir_datasets, which has it" if name in BENCHMARKS else "")
        )
    return _in_folder(name_of(name) or name, _with_absolute_links(name))


def _with_absolute_links(address: str) -> str:
    """A chained address whose plain paths are absolute: workers have folders of their own."""
    links = address.split("::")
    return "::".join(
        link if "://" in link or (i == 0 and len(links) == 1) else str(Path(link).resolve())
        for i, link in enumerate(links)
    )


def _in_irds(dataset: str) -> Source:
    split = irds.splits(dataset)
    name = dataset if dataset in BENCHMARKS else dataset.replace("/", "-")
    return Source(name, (irds.passages(dataset),), (), split, split)


def _in_archive(path: str) -> Source:
    """A zip archive with one folder, as BEIR publishes them."""
    name = Path(path).stem
    inside = _listing(f"zip://::{path}")
    folder = name if name in inside else inside[0] if len(inside) == 1 else ""
    return _in_folder(name, f"zip://{folder}::{path}", archive=path)


def _listing(folder: str) -> list[str]:
    """The names in a folder, sorted.

    Raises:
        CollectionError: it cannot be listed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(folder)
        return sorted(name_of(entry) for entry in fs.ls(path, detail=False))
    except Exception as error:  # every protocol has errors of its own
        message = " ".join(str(error).split())[:200]
        raise CollectionError(
            f"{folder}: cannot be listed ({type(error).__name__}: {message})"
        ) from None


def _in_folder(
    name: str, folder: str, embedded: bool = False, archive: str | None = None
) -> Source:
    here = _listing(folder)
    corpus = _one_of(folder, here, "corpus.jsonl", "corpus.parquet", "corpus")
    collection = _one_of(folder, here, "collection.tsv")
    if corpus and collection:
        raise _both(folder, corpus, collection)
    if corpus:
        path = below(folder, corpus)
        passages = _shards(path) if corpus == "corpus" else (path,)
        queries = _one_of(folder, here, "queries.jsonl", "queries.parquet")
        if queries is None:
            raise CollectionError(f"{folder}: queries.jsonl[.gz] is missing")
        splits = _splits(folder, here)
        known = dict.fromkeys(splits, below(folder, queries))
        return Source(name, passages, (), known, splits, embedded, archive)
    if collection:
        qrels = _split_files(folder, here, "qrels")
        if not qrels:
            raise CollectionError(f"{folder}: no qrels; an MS MARCO folder has qrels.SPLIT.tsv")
        queries = {
            split: _required(
                folder, here, f"queries.{file.split('.', 1)[1].partition('.tsv')[0]}.tsv"
            )
            for split, file in qrels.items()
        }
        extra = _one_of(folder, here, "train_passages.tsv")
        return Source(
            name,
            (below(folder, collection),),
            (below(folder, extra),) if extra else (),
            queries,
            {split: below(folder, file) for split, file in qrels.items()},
            embedded,
            archive,
        )
    raise CollectionError(
        f"{folder}: neither corpus.jsonl[.gz] (BEIR layout) nor collection.tsv[.gz] (MS MARCO layout)"
    )


def _splits(folder: str, here: list[str]) -> dict[str, str]:
    qrels = below(folder, "qrels")
    splits: dict[str, str] = {}
    for name in _listing(qrels) if "qrels" in here else []:
        stem, _, ending = name.partition(".")
        if not stem or ending not in ("tsv", "tsv.gz", "tsv.zst", "parquet"):
            continue
        if stem in splits:
            raise _both(qrels, splits[stem], name)
        splits[stem] = name
    if not splits:
        raise CollectionError(f"{folder}: no qrels; a BEIR folder has qrels/SPLIT.tsv")
    return {split: below(qrels, name) for split, name in splits.items()}


def _split_files(folder: str, here: list[str], kind: str) -> dict[str, str]:
    """Split -> the name of its file; `dev.small`, as MS MARCO names its 6,980 queries, is `dev`."""
    files: dict[str, str] = {}
    for name in here:
        stem, dot, ending = name.partition(".tsv")
        stem_kind, _, split = stem.partition(".")
        if stem_kind != kind or not split or not dot or ending not in _ENDINGS:
            continue
        split = split.removesuffix(".small")
        if split in files:
            raise CollectionError(
                f"{folder}: {files[split]} and {name} are both split {split!r}; keep one"
            )
        files[split] = name
    return files


def _shards(folder: str) -> tuple[str, ...]:
    names = [n for n in _listing(folder) if ".jsonl" in n or n.endswith(".parquet")]
    if not names:
        raise CollectionError(f"{folder}: no shard; they are *.jsonl[.gz] or *.parquet")
    stems: dict[str, str] = {}
    for name in names:
        stem = name.removesuffix(".parquet").partition(".jsonl")[0]
        if stem in stems:
            raise _both(folder, stems[stem], name)
        stems[stem] = name
    return tuple(below(folder, name) for name in names)


def _one_of(folder: str, here: list[str], *names: str) -> str | None:
    """The file or folder of these names that is there, compressed or not; None where there is none.

    Raises:
        CollectionError: there are several.
    """
    there = [name + ending for name in names for ending in _ENDINGS if name + ending in here]
    if len(there) > 1:
        raise _both(folder, *there[:2])
    return there[0] if there else None


def _both(folder: str, one: str, other: str) -> CollectionError:
    return CollectionError(f"{folder}: {one} and {other} are both there, for one thing; keep one")


def _required(folder: str, here: list[str], name: str) -> str:
    file = _one_of(folder, here, name)
    if file is None:
        raise CollectionError(f"{folder}: {name}[.gz] is missing")
    return below(folder, file)
