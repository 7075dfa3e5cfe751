"""What tests on Ray share: one cluster and one small finished laboratory."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ray.cluster_utils import Cluster

from raylab.data.tokens import write_store
from raylab.experiment.execution import Execution
from raylab.jobs import cluster
from raylab.pipeline import driver
from raylab.pipeline import retrieval as retrieve
from raylab.stages.tokenise import tokens_address
from raylab.stages.work import Worker, following
from tests.jobs.commands import command, run_here
from tests.stages.collections import committed_source

CELLS = ("sparse-tiny-cl", "sparse-tiny-cl+kd", "dense-tiny-cl", "dense-tiny-kd")


_NODES: list[Cluster] = []  # of `two_nodes`, while it runs


def _end_nodes() -> None:
    while _NODES:
        _NODES.pop().shutdown()


@pytest.fixture(scope="session")
def nothing_in_advance():
    """Clusters start no workers before there is work: those would lack the variables that ours have, and idle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        yield


@pytest.fixture(scope="session")
def two_nodes(nothing_in_advance):
    """A head without CPUs and a node of one CPU, for tests that join them; it ends before `ray_cluster` starts."""
    small = {"object_store_memory": 10**8}
    made = Cluster(True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    _NODES.append(made)
    made.add_node(num_cpus=1, **small)
    made.wait_for_nodes()
    yield made
    _end_nodes()


@pytest.fixture(scope="session")
def ray_cluster(s3_server, nothing_in_advance):
    """The cluster of this process: what runs in it (`run_here`, `raylab.run`) joins instead of starting its own."""
    _end_nodes()
    often = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*often)
        patch.setitem(cluster._WORKER_ENVIRONMENT, *often)
        # A process of each run that waits for a cloud to take its node away.
        patch.setitem(cluster._WORKER_ENVIRONMENT, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        with cluster.connect(Execution()):
            yield


@dataclass(frozen=True)
class Finished:
    """A grid that has run: its storage, its command line, and what it printed."""

    lab: Path
    arguments: list[str]
    output: str


@pytest.fixture(scope="session")
def finished_grid(
    ray_cluster, tmp_path_factory, collection_folder, ladder_file, teacher_folder
) -> Finished:
    """A grid of four cells, every head and objective, run once a session; what changes it takes a copy.

    Two groups of workers train at once, as by default; one actor measures (tests/jobs/test_evaluate.py has two).
    Its runs last some seconds, so that there is time to kill one.
    """
    lab = tmp_path_factory.mktemp("grid") / "lab"
    options = ("--cells", ",".join(CELLS), "--budget", "3e10", "--encoders", "1")
    arguments = command(collection_folder, ladder_file, teacher_folder, lab, *options)
    return Finished(lab, arguments, run_here(arguments))


def _tokenised(store, collection, tokenizer, *_):
    table = pq.read_table(store.local(collection) / "passages").sort_by("passage_id").to_pydict()
    texts = [f"{a} {b}" for a, b in zip(table["title"], table["text"], strict=True)]
    address = tokens_address(collection, tokenizer)
    with store.draft(address) as draft:
        own = table["passage_id"], tokenizer.encode(texts), [0] * len(texts)
        draft.meta["passages"] = write_store(draft.path / "passages", [own], tokenizer.dtype)
    return store.committed(address)


@pytest.fixture
def in_this_process(monkeypatch):
    """What `raylab search` does on Ray, by the stages' own functions one after the other, without the seconds that
    every actor takes to start."""

    def work_all(store, execution, tasks, finished, say):
        worker, queue = Worker(store, execution), list(tasks)
        while queue:
            task = following(None, queue)
            queue[:0] = finished(task, worker.work(task))

    monkeypatch.setattr(
        retrieve, "ingest", lambda store, source, *_: committed_source(store, source)
    )
    monkeypatch.setattr(retrieve, "tokenise", _tokenised)
    monkeypatch.setattr(retrieve, "work_all", work_all)
    monkeypatch.setattr(driver, "take_over", lambda *_: None)
