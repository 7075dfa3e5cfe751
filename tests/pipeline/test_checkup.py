"""What a node tells becomes a pass, or a failure that says what to do."""

import dataclasses
import errno
import os

import pytest

from raylab.experiment.config import Backbone, ConfigError
from raylab.jobs.doctor import NodeReport, SumReport
from raylab.pipeline import checkup
from raylab.pipeline.checkup import check_cheaply, checks, gpus_check, sum_check
from raylab.stages.inspection import PROBES, inspect_node
from raylab.storage.store import Store

GPU = "NVIDIA H100 80GB HBM3, {}, 81559 MiB"


@pytest.fixture
def told(tmp_path):
    """What this node really tells."""
    store = Store(str(tmp_path / "lab"))
    store.put_bytes(f"{PROBES}/driver", b"")
    return inspect_node(store, f"{PROBES}/driver")


def report(told, skew=0.0, **changes):
    return NodeReport("node-1", dataclasses.replace(told, **changes), "", skew)


def failed(reports, disk_gib=0.0, gpu=False, shared=True):
    found = checks(reports, disk_gib, gpu, shared)
    assert all(check.remedy for check in found if not check.passed)
    return {check.name: check.seen for check in found if not check.passed}


def test_a_fit_node_passes(told):
    assert failed([report(told)]) == {}
    assert set(told.latency_ms) == {"write", "read", "list"}
    assert told.sees_driver


@pytest.mark.parametrize(
    ("changes", "name", "seen"),
    [
        ({"sees_driver": False}, "storage", "what the driver wrote is not there"),
        ({"storage": "Access Denied"}, "storage", "Access Denied"),
        ({"shared_memory_bytes": 64 * 2**20}, "shared memory", "0.1 GiB"),
        ({"models": {"8b": "gated"}}, "model 8b", "gated"),
        ({"skew": -7.0}, "clock", "-7.0 s"),
        ({"disk_free_bytes": 2**30}, "disk", "1 GiB free in"),
    ],
)
def test_what_a_run_would_stumble_over_fails(told, changes, name, seen):
    found = failed([report(told, **changes)], disk_gib=1.5)
    assert set(found) == {name}
    assert seen in found[name]


def test_another_version_is_named(told):
    other = told.versions | {"ray": "2.9.0", "torch": "not installed"}
    assert failed([report(told, versions=other)])["versions"].startswith("ray 2.9.0, not 2.60")


def test_a_node_without_raylab_fails_and_the_others_are_told_of(told):
    absent = NodeReport("node-2", None, "ModuleNotFoundError: No module named 'raylab'", 0.0)
    assert failed([report(told), absent]) == {"raylab runs": absent.error}


def test_gpus_must_be_there_and_of_one_driver(told):
    assert not gpus_check([report(told)]).passed
    one, other = GPU.format("580.65.06"), GPU.format("535.1")
    assert gpus_check([report(told, gpus=(one, one))]).passed
    mixed = gpus_check([report(told, gpus=(one,)), report(told, gpus=(other,))])
    assert not mixed.passed
    assert "535.1, 580.65.06" in mixed.seen


def test_the_sum_passes_with_its_bandwidth_or_says_what_failed():
    assert sum_check(SumReport(1, "gloo", 0.0, "")).passed
    assert "16 processes, 180.00 GB/s" in sum_check(SumReport(16, "nccl", 1.8e11, "")).seen
    assert not sum_check(SumReport(16, "nccl", 0.0, "no answer in 180 s")).passed


def test_a_storage_that_cannot_be_written_to_is_the_nodes_own_word(tmp_path, monkeypatch):
    store = Store(str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Store, "put_bytes", full)
    assert "No space left" in inspect_node(store, "doctor/x").storage


def test_models_that_are_not_there_are_told(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr("raylab.data.hub_fault.get_session", lambda: None)  # no hub is reached
    sizes = [
        Backbone("here", str(model_folder)),
        Backbone("gone", "/nowhere/model"),
        Backbone("hub", "acme/x"),
    ]
    told = inspect_node(Store(str(tmp_path)), "doctor/x", sizes)
    assert told.models["here"] == ""
    assert told.models["gone"] == "there is no folder /nowhere/model"
    assert "the hub cannot be reached" in told.models["hub"]


def test_a_run_is_refused_by_the_cheap_checks(told, tmp_path, monkeypatch):
    monkeypatch.setattr(checkup, "look_at", lambda store, quick: [report(told, sees_driver=False)])
    with pytest.raises(ConfigError, match=r"node node-1: storage: .* every node mounts"):
        check_cheaply(Store(str(tmp_path)))
