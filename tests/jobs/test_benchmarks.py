"""The benchmark commands that run on Ray: a smoke at toy shapes."""

import pytest

from tests.test_benchmarks import printed_by


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["ingest.py", "--smoke"], "| 300 | both |"),
        (["encoding.py", "--smoke", "--heads", "dense"], "| dense | actor through Ray |"),
    ],
    ids=["ingest", "encoding"],
)
def test_the_command_prints_its_table(command, told, ray_cluster, monkeypatch, capsys):
    assert told in printed_by(command, monkeypatch, capsys)
