"""The pool of actors: every task once, whatever dies, and no task waits for a machine that never comes."""

import os
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.core.generated import autoscaler_pb2

from raylab.experiment.config import ConfigError
from raylab.jobs.pool import Feed, run_on_actors


@pytest.fixture(scope="module")
def cluster(two_nodes):
    """Of one CPU, to which this process is connected."""
    ray.init(address=two_nodes.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield two_nodes
    finally:
        ray.shutdown()


@ray.remote(num_cpus=1)
class Worker:
    def ready(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def do(self, task: str, folder: str) -> tuple[str, int]:
        tried = os.path.join(folder, task)
        if task.startswith("deadly") or (task.startswith("dies") and not os.path.exists(tried)):
            open(tried, "w").close()
            os._exit(1)
        if task == "wrong":
            raise ConfigError("wrong = 1: it must be right")
        if task.startswith("stays"):
            node, leaves = ray.get_runtime_context().get_node_id(), Path(folder, "leaves")
            with open(tried, "a") as begun:
                begun.write(f"{node}\n")
            while node == leaves.read_text():  # for ever on that node
                time.sleep(0.1)
        time.sleep(0.2)
        return task, os.getpid()


def run(tasks, limit, folder, finished=lambda task, result: None):
    done = []

    def noted(task, result):
        done.append((task, result))
        finished(task, result)

    run_on_actors(
        lambda: Worker.remote(),
        tasks,
        limit,
        lambda actor, task: actor.do.remote(task, str(folder)),
        noted,
    )
    return done


def test_every_task_is_done_once_though_actors_die_and_fewer_fit_than_are_asked_for(
    cluster, tmp_path
):
    """Four actors are wanted, one CPU is there: none of the tasks may wait for the other three."""
    tasks = ["a", "dies-1", "b", "dies-2", "c"]
    done = run(tasks, lambda: 4, tmp_path)
    assert sorted(task for task, _ in done) == sorted(tasks)
    assert all(result[0] == task for task, result in done)


def test_a_task_that_actors_keep_dying_of_ends_it_and_an_error_is_the_tasks_own(cluster, tmp_path):
    with pytest.raises(RuntimeError, match="5 actors died of the same task"):
        run(["a", "deadly"], lambda: 1, tmp_path)
    with pytest.raises(ConfigError, match=r"^wrong = 1: it must be right$"):
        run(["wrong"], lambda: 1, tmp_path)
    assert run([], lambda: 1, tmp_path) == []


def test_a_feed_is_served_as_it_comes_on_what_is_free_until_it_is_closed(cluster, tmp_path):
    """As encoding beside training: nothing is begun while no device is free, and what waits is let go."""
    feed, free, early = Feed(), [1], threading.Event()

    def finished(task, result):
        if task == "b":
            free[0] = 0
            feed.add(["waits"])
            early.set()

    def work():
        done.extend(run(feed, lambda: free[0], tmp_path, finished))

    done: list = []
    thread = threading.Thread(target=work)
    thread.start()
    feed.add(["a", "b"])
    assert early.wait(60)
    time.sleep(1.5)
    assert thread.is_alive()
    assert not (tmp_path / "waits").exists()
    feed.close()
    thread.join(30)
    assert [task for task, _ in done] == ["a", "b"]


def test_it_grows_and_shrinks_with_the_cluster(cluster, tmp_path):
    """A node comes while it works, and goes again: both are seen, nothing is lost or done twice."""
    nodes = []

    def finished(task, result):
        if task == "t03":
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=10**8))
        if task == "t30" and nodes:
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    tasks = [f"t{n:02d}" for n in range(45)]
    done = run(tasks, lambda: int(ray.cluster_resources().get("CPU", 1)), tmp_path, finished)
    assert sorted(task for task, _ in done) == tasks
    assert len({pid for _, (_, pid) in done}) >= 2


def test_work_leaves_a_node_before_it_is_taken_away(cluster, tmp_path):
    """What was begun there is done elsewhere after its notice, long before its end; idle, it may go."""
    node = cluster.add_node(num_cpus=1, object_store_memory=10**8)
    tasks, ends_at = ["stays-1", "stays-2"], int(time.time() + 600)
    (tmp_path / "leaves").write_text(node.node_id)

    def give_notice() -> None:
        while not any(node.node_id in begun.read_text() for begun in tmp_path.glob("stays-*")):
            time.sleep(0.1)
        reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
        client = ray._raylet.GcsClient(address=cluster.address)
        assert client.drain_node(node.node_id, reason, "taken back", 1_000 * ends_at)[0]

    thread = threading.Thread(target=give_notice, daemon=True)
    thread.start()
    try:
        done = run(tasks, lambda: 2, tmp_path)
        thread.join(30)
        assert sorted(task for task, _ in done) == tasks
        ended_on = [(tmp_path / task).read_text().split()[-1] for task in tasks]
        assert node.node_id not in ended_on
        assert time.time() < ends_at - 300
    finally:
        cluster.remove_node(node, allow_graceful=False)
