"""`raylab watch` as it is typed: it serves, needs no Ray, ends with who started it, and refuses clearly."""

import json
import re
import socket
import subprocess
import sys
import urllib.request

import pytest
from typer.testing import CliRunner

from raylab.cli.main import app
from raylab.cli.watch import beside

RAYLAB = [sys.executable, "-m", "raylab.cli.main", "watch"]


def refused(*arguments: str) -> str:
    ended = CliRunner().invoke(app, ["watch", *arguments])
    assert ended.exit_code == 2
    assert "Traceback" not in ended.stderr
    return " ".join(ended.stderr.split())


def test_it_serves_a_storage_until_who_started_it_ends(tmp_path):
    lab = tmp_path / "lab"
    command = [*RAYLAB, "--storage", str(lab), "--port", "0", "--until-stdin-ends"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        with urllib.request.urlopen(f"{address}api/state", timeout=30) as answer:
            assert json.load(answer)["state"]["storage"] == str(lab)
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    assert not lab.exists()


def test_beside_a_driver_it_has_a_low_priority_and_ends_with_the_block(tmp_path, capsys):
    with beside(str(tmp_path)):
        address = re.search(r"http://\S+", capsys.readouterr().out)[0]
        for _ in range(100):
            try:
                with urllib.request.urlopen(address, timeout=30) as answer:
                    assert b"Laboratory" in answer.read()
                break
            except OSError:
                subprocess.run(["sleep", "0.2"], check=True)
        else:
            pytest.fail("the page did not come")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)


def test_watching_imports_neither_ray_nor_torch():
    code = (
        "import sys, raylab.cli.main, raylab.live.server, raylab.live.results, raylab.report.charts.quality;"
        "print([m for m in ('ray', 'torch', 'transformers') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_bad_input_is_one_clear_line(tmp_path):
    storage = ("--storage", str(tmp_path))
    assert "--host 0.0.0.0: others reach it, so it needs --token" in refused(
        *storage, "--host", "0.0.0.0"
    )
    assert "16 printable ASCII characters" in refused(*storage, "--token", "short")
    assert "--port 70000: it must be 0 to 65535" in refused(*storage, "--port", "70000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--host 127.0.0.1 --port {port}: Address already in use" in refused(
            *storage, "--port", port
        )
