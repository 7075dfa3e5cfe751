"""An object storage on this machine."""

import pytest

from benchmarks.s3_server import BUCKET, Server
from raylab.storage.store import Store


@pytest.fixture
def s3(s3_server: Server, tmp_path):
    """A node's store on the server, and a clean slate of what was asked."""
    s3_server.disturb()
    store = Store(f"s3://{BUCKET}/{tmp_path.name}", cache=str(tmp_path / "node"))
    s3_server.asked()
    return store
