"""The figures of the paper's whole table (docs/collections.md) are what the command beside them prints."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylab.cli.main import app

pytest.importorskip("s3fs", reason="the command names an object storage: raylab[s3]")

ROOT = Path(__file__).resolve().parents[2]
SECTION = (
    (ROOT / "docs" / "collections.md")
    .read_text()
    .partition("## The paper's whole table")[2]
    .partition("\n## ")[0]
)
(COMMAND,) = re.findall(r"^raylab (plan .*)$", SECTION, re.MULTILINE)
ROWS = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", SECTION, re.MULTILINE)


def printed(*more: str) -> str:
    done = CliRunner().invoke(app, [*shlex.split(COMMAND), *more])
    assert done.exit_code == 0, done.output
    return done.output


def figures(output: str) -> list[str]:
    """Device hours, price, hours of the whole, bytes with and without an index."""
    patterns = (
        r"([\d,.]+) device hours",
        r"device hours, ([\d,.]+) at",
        r"on \d+ of them: ([\d.]+) h",
        r"in all │ ([\d.,]+ \wB) │",
        r"in all │ [\d.,]+ \wB │ ([\d.,]+ \wB) │",
    )
    output = " ".join(output.split())
    return [re.search(pattern, output).group(1) for pattern in patterns]


def test_two_devices_are_shown():
    assert [device for device, _ in ROWS] == ["h100", "a100-80gb"]


@pytest.mark.parametrize(("device", "shown"), ROWS, ids=[device for device, _ in ROWS])
def test_the_table_is_what_the_command_prints(device, shown):
    hours, price, whole, stored, without = figures(printed("--device", device))
    assert shown.split(" | ") == [hours, price.partition(".")[0], whole, stored, without]


def test_what_pruning_would_store():
    (options, stored) = re.search(
        r"`(--top-k-query[^`]+)`[^.]+fits into ([\d.]+ TB)", SECTION
    ).groups()
    assert figures(printed(*options.split()))[3] == stored


def test_the_run_and_its_plan_are_of_one_grid():
    """Every option that says what is computed stands in both commands, but what a plan does without."""
    (run,) = re.findall(r"experiments/grid.py (.*)$", SECTION, re.MULTILINE)
    executed = {"--plain", "--teacher", "--beir-root", "--concurrent", "--encoders", "--no-index"}
    planned = {"--device", "--devices", "--gpu-hour-rate"}

    def options(command: str) -> dict[str, str]:
        words = shlex.split(command)
        pairs = zip(words, [*words[1:], ""], strict=True)
        return {o: "" if v.startswith("--") else v for o, v in pairs if o.startswith("--")}

    ours, theirs = options(run), options(COMMAND)
    assert {o: v for o, v in ours.items() if o not in executed} == {
        o: v for o, v in theirs.items() if o not in planned
    }
