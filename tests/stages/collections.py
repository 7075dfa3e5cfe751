"""A collection in a store, without Ray."""

from pathlib import Path

from raylab.data.ingest import collection_address, write_collection
from raylab.data.sources import Source, open_collection
from raylab.storage.artifacts import Artifact
from raylab.storage.store import Store


def committed(store: Store, folder: Path) -> Artifact:
    """The collection artifact of a folder."""
    return committed_source(store, open_collection(str(folder)))


def committed_source(store: Store, source: Source) -> Artifact:
    address = collection_address(source)
    with store.draft(address) as draft:
        draft.meta.update(write_collection(draft.path, source))
    return store.committed(address)
