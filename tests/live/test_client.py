"""The API's first client: states as they come, on after a server that was started again, and clear refusals."""

import time

import pytest

from raylab.experiment.config import ConfigError
from raylab.live.client import events, line_of, states
from tests.live.conftest import half_way
from tests.live.serving import TOKEN, served

pytestmark = pytest.mark.long


def test_events_are_read_whatever_stands_between_them():
    lines = [
        ": still here\n",
        "\n",
        "id: 1\n",
        "event: state\n",
        'data: {"a": ": b"}\n',
        "\n",
        "id: 2\n",
    ]
    assert list(events(lines)) == [("1", '{"a": ": b"}')]


def test_it_says_what_changes_and_goes_on_with_another_server(tmp_path):
    recorded = half_way(tmp_path / "lab", time.time())
    with served(recorded.store) as address:
        port = int(address.rpartition(":")[2])
        told = states(address)
        first = next(told)
        assert line_of(first).startswith("running | train 1/4 | cells 1/3 | 1 running")
    recorded.driver(time.time(), "failed", "no more\x1b[2J")
    with served(recorded.store, port=port):
        last = next(told)
    assert last["driver"]["state"] == "failed"
    assert "\x1b" not in line_of(last)


def test_another_token_and_no_server_are_said(tmp_path):
    recorded = half_way(tmp_path / "lab", time.time())
    with served(recorded.store, TOKEN) as address:
        assert next(states(address, TOKEN))["collection"] == "scifact"
        with pytest.raises(ConfigError, match="401"):
            next(states(address, "another"))
    with pytest.raises(ConfigError, match="cannot be reached"):
        next(states(address, tries=1))
    with pytest.raises(ConfigError, match="must be as http"):
        next(states("nowhere"))
