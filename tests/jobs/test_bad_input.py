"""Bad input on the experiment's own command line: one clear line, status 2, and nothing left behind."""

import json
import shutil

import pytest

from tests.jobs.commands import command, run, run_here

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def damaged(collection_folder, tmp_path):
    """A copy of the tiny collection to damage."""
    return shutil.copytree(collection_folder, tmp_path / "damaged")


def refusal(arguments: list[str], lab, alone: bool = False) -> str:
    """Run (`alone`: in a process of its own), and give the one error line; the storage must not be
    there, or be as empty as before."""
    existed = lab.exists()
    output = run(arguments, lab.parent, expect=2) if alone else run_here(arguments, expect=2)
    assert "Traceback" not in output, output[-4000:]
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, output[-4000:]
    assert output.rstrip().endswith(errors[0]), output[-4000:]  # nothing runs on below it
    if existed:
        assert list(lab.iterdir()) == []
    else:
        assert not lab.exists(), sorted(lab.rglob("*"))
    return errors[0].removeprefix("error: ")


def append(path, *lines: str) -> int:
    """Append lines; the number of the last one."""
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    return len(path.read_text().splitlines())


# ------------------------------------------------------ found before Ray starts


def test_a_missing_collection(tmp_path, ladder_file, teacher_folder):
    lab = tmp_path / "lab"
    arguments = command(tmp_path / "nowhere", ladder_file, teacher_folder, lab)
    message = refusal(arguments, lab, alone=True)
    assert message.startswith(f"no collection '{tmp_path / 'nowhere'}'")
    assert "corpus.jsonl" in message
    assert "collection.tsv" in message


def test_a_malformed_line_near_the_start(damaged, tmp_path, ladder_file, teacher_folder):
    """Within the first passages, which the plan reads; the storage that was there stays as it was."""
    lab = tmp_path / "lab"
    lab.mkdir()
    line = append(damaged / "corpus.jsonl", '{"_id": "p900", "text": ')
    message = refusal(command(damaged, ladder_file, teacher_folder, lab), lab)
    assert message.startswith(f"{damaged / 'corpus.jsonl'}:{line}: not JSON")
    assert "one object a line" in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--budget", "1000"],
            ["budget 1e+03 FLOPs is too small for", "one step costs", "must be at least that"],
        ),
        (["--sizes", "70b"], ["unknown size '70b'", "ladder 'tiny' has tiny"]),
        (["--cells", "sparse-*-mse"], ["--cells 'sparse-*-mse' matches none", "sparse-tiny-cl+kd"]),
    ],
)
def test_options_that_cannot_be(
    options, words, collection_folder, tmp_path, ladder_file, teacher_folder
):
    lab = tmp_path / "lab"
    message = refusal(command(collection_folder, ladder_file, teacher_folder, lab, *options), lab)
    for word in words:
        assert word in message


def test_distillation_without_a_teacher(collection_folder, tmp_path, ladder_file):
    """Only an embedded collection ships scores; the message says both ways out."""
    lab = tmp_path / "lab"
    message = refusal(command(collection_folder, ladder_file, None, lab), lab)
    assert "KD need teacher scores" in message
    assert "name a teacher (a model folder, a hub id or a Parquet file of scores)" in message
    assert "leave out the objectives that need one" in message


@pytest.mark.parametrize("name", ["no-teacher", "no-scores.parquet"])
def test_a_missing_teacher(name, collection_folder, tmp_path, ladder_file):
    lab = tmp_path / "lab"
    message = refusal(command(collection_folder, ladder_file, tmp_path / name, lab), lab)
    assert message.startswith(f"--teacher {tmp_path / name}: ")


# ------------------------------------------- inside the passages: found by Ray Data


def test_a_training_judgement_of_an_unknown_passage(damaged, tmp_path, ladder_file, teacher_folder):
    lab = tmp_path / "lab"
    lab.mkdir()
    qrels = damaged / "qrels" / "train.tsv"
    query_id = qrels.read_text().splitlines()[1].split()[0]
    line = append(qrels, f"{query_id}\tp999\t1")
    message = refusal(command(damaged, ladder_file, teacher_folder, lab), lab)
    assert message == f"{qrels}:{line}: unknown passage 'p999'; it must be in corpus.jsonl"


def test_a_duplicate_passage(damaged, tmp_path, ladder_file, teacher_folder):
    """The two may be far apart in the file, and in different blocks of Ray Data: both are named."""
    lab = tmp_path / "lab"
    line = append(damaged / "corpus.jsonl", json.dumps({"_id": "p004", "text": "again"}))
    message = refusal(command(damaged, ladder_file, teacher_folder, lab), lab)
    assert message.startswith(f"{damaged / 'corpus.jsonl'}:{line}: duplicate passage id 'p004'")
    assert "(first at line 5)" in message


def test_a_malformed_line_beyond_what_the_plan_reads(
    damaged, tmp_path, ladder_file, teacher_folder
):
    lab = tmp_path / "lab"
    more = [json.dumps({"_id": f"x{i:04d}", "text": "cell gene"}) for i in range(1_000)]
    line = append(damaged / "corpus.jsonl", *more, json.dumps({"_id": "y", "text": 7}))
    message = refusal(command(damaged, ladder_file, teacher_folder, lab), lab)
    assert message == f"{damaged / 'corpus.jsonl'}:{line}: 'text' is 7; it must be a string"
