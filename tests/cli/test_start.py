"""What `raylab` offers, that it starts at once, and that a bug looks like a bug."""

import importlib
import inspect
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from raylab import __version__
from raylab.cli.errors import EXIT_CODES, LaboratoryCommand, LaboratoryGroup, exit_code, one_line
from raylab.cli.main import app
from raylab.data.faults import CollectionError
from raylab.experiment.config import ConfigError
from raylab.jobs.starting import ClusterError
from raylab.storage.artifacts import DamagedArtifact, StorageError

COMMANDS = {
    "run", "plan", "status", "report", "evaluate", "compare", "beir", "search", "encode", "index",
    "fit", "export", "check", "data", "watch", "log", "doctor",
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
        (ClusterError("x"), 2),
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


TABLES = ["results.parquet", "per_query.parquet", "ledger.parquet"]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("damage", ["cut", "noise", "other columns", "empty"])
@pytest.mark.parametrize(
    "command",
    [["report"], ["beir", "LAB"], ["compare", "a", "b"], ["export", "a-seed0", "OUT"], ["fit"]],
)
def test_damaged_tables_are_one_line_in_every_command(command, damage, name, tmp_path):
    lab = tmp_path / "lab"
    lab.mkdir()
    sink = io.BytesIO()
    pq.write_table(pa.table({"other": [1] * 1_000}), sink)
    whole = sink.getvalue()
    contents = {"cut": whole[:-9], "noise": b"x" * 200, "other columns": whole, "empty": b""}
    (lab / name).write_bytes(contents[damage])
    typed = [{"LAB": str(lab), "OUT": str(tmp_path / "out")}.get(one, one) for one in command]
    storage = [] if command[0] == "beir" else ["--storage", str(lab)]
    done = CliRunner().invoke(app, [*typed, *storage])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(lab) in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["FILE", "FILE/below", "/proc/x"])
def test_an_export_onto_what_is_no_folder_is_one_line(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")

    def writes(storage: str, run: str, folder: Path) -> int:
        folder.mkdir(parents=True)
        return 0

    monkeypatch.setattr("raylab.pipeline.export.export_retriever", writes)
    place = place.replace("FILE", str(tmp_path / "file"))
    done = CliRunner().invoke(app, ["export", "a-seed0", place, "--storage", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: FOLDER {place}: it ")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("error", "address", "words"),
    [
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /a"), None, "set RAY_TMPDIR to a"),
        (Exception("The current node timed out during startup."), None, "timed out during startup"),
        (ConnectionError("refused"), "auto", "RAY_ADDRESS=auto"),
        (None, "127.0.0.1:1", "no cluster answers at RAY_ADDRESS=127.0.0.1:1"),
        (None, "ray://127.0.0.1:1", "no cluster answers at RAY_ADDRESS=ray://127.0.0.1:1"),
    ],
)
def test_ray_that_does_not_start_is_one_line_and_leaves_no_storage(
    error, address, words, tmp_path, monkeypatch, collection_folder
):
    def fails(**_):
        assert error is not None
        raise error

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.init", fails)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    lab = tmp_path / "lab"
    arguments = ["data", "ingest", str(collection_folder), "--storage", str(lab), "--no-tokens"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: Ray cannot start: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not lab.exists()


@pytest.mark.parametrize(
    ("message", "option"),
    [
        ("encoders = -1: it must be 0 or more", "--encoders = -1"),
        ("encoding.top_k_query = -1: it must be", "--top-k-query = -1"),
        ("budget 'nan': it must be", "--budget 'nan'"),
        ("somewhere = 3: it must be", "somewhere = 3"),
    ],
)
def test_a_field_is_called_by_its_option(message, option):
    assert one_line(ConfigError(message)).startswith(option)


def test_ids_are_whole_in_a_pipe(tmp_path):
    name = "a-system-with-a-name-" + "x" * 200
    for run in (name, "b"):
        (tmp_path / run).write_text("q Q0 p 1 1.0 x\nr Q0 o 1 1.0 x\n")
    (tmp_path / "qrels").write_text("q 0 p 1\nr 0 p 1\n")
    files = [str(tmp_path / one) for one in (name, "b", "qrels")]
    done = CliRunner().invoke(app, ["compare", *files, "--draws", "10"])
    assert done.exit_code == 0, done.output
    assert name in done.stdout
    assert "..." not in done.stdout


@pytest.mark.parametrize("command", [["run"], ["data", "ingest", "scifact"]])
@pytest.mark.parametrize("storage", ["FILE/lab", "/proc/lab"])
def test_a_storage_that_cannot_be_written_to_is_one_line(command, storage, tmp_path):
    (tmp_path / "file").write_text("")
    storage = storage.replace("FILE", str(tmp_path / "file"))
    done = CliRunner().invoke(app, [*command, "--storage", storage])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --storage {storage}: it cannot be written to (")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
