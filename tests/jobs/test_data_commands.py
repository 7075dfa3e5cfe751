"""`raylab data mine` and `data teach` on Ray: what they write, and that a killed one goes on."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylab.stages.mine import Mining, mine
from raylab.stages.score import teach
from raylab.stages.shards import local_pool
from raylab.stages.teach import make_groups
from raylab.stages.teaching import Teaching
from raylab.storage.store import Store
from tests.jobs.commands import run_disturbed, run_here
from tests.jobs.test_crash import processes, start, wait_for, wait_until_gone
from tests.stages.collections import committed

DEPTH = ("--depth", "5", "--random", "3")
MINING = Mining(5, 3)


def data(action: str, collection: Path, lab: Path, out: Path, *more: str) -> list[str]:
    module = [sys.executable, "-m", "raylab.cli.main", "data", action]
    where = ["--collection", str(collection), "--storage", str(lab), "--out", str(out)]
    return [*module, *where, *DEPTH, "--actors", "1", *more]


@pytest.fixture(scope="module")
def expected(tmp_path_factory, collection_folder, teacher_folder):
    """(scores, groups under a margin) as they are made in one process, without Ray."""
    store = Store(str(tmp_path_factory.mktemp("expected")))
    collection = committed(store, collection_folder)
    settings = (str(teacher_folder), None, 1)
    teaching = Teaching(store, collection, MINING, *settings, pool=local_pool)
    mined = mine(store, collection, MINING, 1, pool=local_pool)
    scores = pq.read_table(store.local(teach(teaching, mined)) / "scores.parquet")
    with_margin = Teaching(store, collection, MINING, *settings, margin=0.0, pool=local_pool)
    groups = store.local(make_groups(with_margin))
    return scores, pq.read_table(groups / "groups-00000.parquet")


def assert_same(made: pa.Table, expected: pa.Table, *scores: str) -> None:
    """Equal but for the last bits of scores, which depend on the threads of a process."""
    assert made.drop_columns(scores).equals(expected.drop_columns(scores))
    for name in scores:
        pair = [
            np.concatenate([np.atleast_1d(one) for one in t[name].to_pylist()])
            for t in (made, expected)
        ]
        np.testing.assert_allclose(*pair, atol=1e-6)


@pytest.mark.chaos
@pytest.mark.slow
def test_a_killed_command_goes_on_and_writes_the_same(
    ray_cluster, tmp_path, collection_folder, teacher_folder, expected
):
    lab, out = tmp_path / "lab", tmp_path / "scores.parquet"
    arguments = data("teach", collection_folder, lab, out, "--teacher", str(teacher_folder))
    driver = start(arguments, tmp_path)
    wait_for(lambda: next(iter((lab / "candidates").glob("*/manifest.json")), None), driver)
    children = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_until_gone(children)
    assert not out.exists()
    run_here(arguments)
    scores, groups = expected
    assert_same(pq.read_table(out), scores, "score")
    assert list(tmp_path.glob(".*")) == []

    # The same storage: candidates and scores are there already, and the groups are made from them.
    out = tmp_path / "groups.parquet"
    more = ("--teacher", str(teacher_folder), "--margin", "0")
    told = run_here(data("mine", collection_folder, lab, out, *more))
    assert f"{len(groups)} groups in {out}" in told
    assert_same(pq.read_table(out), groups, "positive_score", "negative_scores")


@pytest.mark.chaos
@pytest.mark.slow
def test_a_killed_actor_is_replaced(
    ray_cluster, tmp_path, collection_folder, teacher_folder, expected
):
    """In `make test`, tests/jobs/test_evaluate.py kills one that encodes."""
    lab, out = tmp_path / "lab", tmp_path / "scores.parquet"

    def disturb(driver) -> None:
        for _ in ("mining", "scoring"):
            actors = wait_for(lambda: processes(driver, "ray::_Worker.work"), driver)
            actors[0].kill()
            psutil.wait_procs(actors[:1])
            wait_for(lambda: any((lab / "candidates").glob("*/manifest.json")), driver)

    teach = data("teach", collection_folder, lab, out, "--teacher", str(teacher_folder))
    run_disturbed(teach, disturb)
    assert_same(pq.read_table(out), expected[0], "score")


def test_bad_options_end_in_one_line(tmp_path, collection_folder, teacher_folder):
    lab, out = tmp_path / "lab", tmp_path / "out.parquet"
    (tmp_path / "cl.jsonl").write_text('{"question": "q", "pos_pid": "1", "neg_pids": ["2"]}\n')
    for more, words in (
        (("--margin", "1"), "--margin: it needs --teacher"),
        (("--source", str(tmp_path / "cl.jsonl")), "training groups, not a ranking"),
        (("--source", str(teacher_folder)), "holds no retriever checkpoint"),
        (("--teacher", str(tmp_path / "cl.jsonl")), "scored by a model, not by a file"),
    ):
        told = run_here(data("mine", collection_folder, lab, out, *more), expect=2)
        assert told.startswith("error: ")
        assert words in told
        assert len(told.splitlines()) == 1
        assert not lab.exists()
