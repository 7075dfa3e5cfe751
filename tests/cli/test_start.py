"""What `raylab` offers, that it starts at once, and that a bug looks like a bug."""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from raylab import __version__
from raylab.cli.errors import EXIT_CODES, LaboratoryCommand, LaboratoryGroup, exit_code
from raylab.cli.main import app
from raylab.data.faults import CollectionError
from raylab.experiment.config import ConfigError
from raylab.storage.artifacts import DamagedArtifact, StorageError

COMMANDS = {
    "run", "plan", "status", "report", "evaluate", "compare", "beir", "search", "encode", "index",
    "fit", "export", "data",
}  # fmt: skip
HEAVY = ("torch", "ray", "transformers", "pandas", "scipy")


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, command) of every command and group below."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from walk(below, (*path, name))


def test_no_command_stands_twice():
    group: Any = typer.main.get_command(app)
    assert set(group.commands) == COMMANDS
    assert set(group.commands["data"].commands) == {"list", "ingest", "mine", "teach"}
    names = [path[-1] for path, command in walk(group) if path]
    assert len(set(names)) == len(names)


def test_every_command_argument_and_option_has_a_help_text():
    for path, command in walk(typer.main.get_command(app)):
        assert command.help, path
        for parameter in command.params:
            assert parameter.help, (path, parameter.name)


def test_the_version_is_the_packages():
    assert CliRunner().invoke(app, ["--version"]).output == f"raylab {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["data", "list"]])
def test_help_imports_nothing_that_takes_seconds(arguments):
    code = (
        "import sys\nfrom raylab.cli.main import app\n"
        f"try: app({arguments!r})\nexcept SystemExit as end: assert not end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


# ----------------------------------------------------------------------------------- errors


def test_the_errors_that_are_named_are_there():
    for name in EXIT_CODES:
        module, _, kind = name.rpartition(".")
        assert inspect.isclass(getattr(importlib.import_module(module), kind)), name


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("x"), 2),
        (CollectionError("x"), 2),
        (StorageError("x", "full"), 1),
        (DamagedArtifact("x", "cut"), 1),
        (ValueError("x"), None),
        (KeyError("x"), None),
        (OSError("x"), None),
    ],
)
def test_only_the_laboratorys_errors_have_a_status(error, status):
    assert exit_code(error) == status


@pytest.mark.parametrize("kind", [LaboratoryCommand, LaboratoryGroup])
def test_an_error_is_one_line_and_a_bug_keeps_its_traceback(kind):
    def fail(bug: bool = False) -> None:
        raise TypeError("a bug") if bug else ConfigError("several\n  lines")

    small = typer.Typer(pretty_exceptions_enable=False)
    if kind is LaboratoryGroup:
        small = typer.Typer(pretty_exceptions_enable=False, cls=kind)
        small.callback()(lambda: None)
        small.command("fail")(fail)
        arguments = ["fail"]
    else:
        small.command(cls=kind)(fail)
        arguments = []
    refused = CliRunner().invoke(small, arguments)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "error: several lines\n"
    bug = CliRunner().invoke(small, [*arguments, "--bug"])
    assert isinstance(bug.exception, TypeError)


def test_a_bug_in_a_command_is_no_bad_input(monkeypatch, tmp_path):
    """Commands caught every ValueError once, and a bug looked like a mistake of the user's."""

    def broken(*_):
        raise ValueError("a bug")

    monkeypatch.setattr("raylab.evaluation.measures.evaluate", broken)
    (tmp_path / "run").write_text("q Q0 p 1 1.0 x\n")
    (tmp_path / "qrels").write_text("q 0 p 1\n")
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), str(tmp_path / "qrels")])
    assert isinstance(done.exception, ValueError)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "--storage", "nokind://x"], "--storage nokind://x: "),
        (["report", "--storage", "FOLDER"], "no results.parquet there"),
        (["export", "a-seed0", "FILE", "--storage", "FOLDER"], "it is a file"),
        (["evaluate", "RUN", "QRELS", "--per-query", "/proc/x.tsv"], "--per-query /proc/x.tsv: "),
        (["evaluate", "RUN", "QRELS", "--per-query", "x.zst"], "plain files and .gz"),
        (["evaluate", "RUN", "QRELS", "--confidence", "nan"], "--confidence: "),
    ],
)
def test_files_and_storages_that_cannot_be_are_one_line(arguments, words, tmp_path):
    (tmp_path / "run").write_text("q Q0 p 1 1.0 x\n")
    (tmp_path / "qrels").write_text("q 0 p 1\n")
    names = {"FOLDER": tmp_path, "FILE": __file__}
    names |= {"RUN": tmp_path / "run", "QRELS": tmp_path / "qrels"}
    done = CliRunner().invoke(app, [str(names.get(one, one)) for one in arguments])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_table_is_one_line(tmp_path):
    (tmp_path / "stages.json").write_text(
        '[{"kind": "ingest", "name": "n", "path": "collection/n", "inputs": []}]'
    )
    (tmp_path / "collection" / "n").mkdir(parents=True)
    (tmp_path / "collection" / "n" / "manifest.json").write_text("{}")
    (tmp_path / "ledger.parquet").write_bytes(b"PAR1 cut")
    done = CliRunner().invoke(app, ["status", "--storage", str(tmp_path)])
    assert done.exit_code == 2
    assert "ledger.parquet: not a whole table" in done.stderr


@pytest.mark.parametrize("command", [["run"], ["data", "ingest", "scifact"]])
@pytest.mark.parametrize("storage", ["FILE/lab", "/proc/lab"])
def test_a_storage_that_cannot_be_written_to_is_one_line(command, storage, tmp_path):
    (tmp_path / "file").write_text("")
    storage = storage.replace("FILE", str(tmp_path / "file"))
    done = CliRunner().invoke(app, [*command, "--storage", storage])
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {storage} cannot be written: ")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
