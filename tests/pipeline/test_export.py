"""`raylab export` gives a folder with the grid's measures on its card, and refuses what it cannot give."""

import pytest
import yaml
from typer.testing import CliRunner

from raylab.cli.main import app
from raylab.experiment.config import Backbone, Encoding, Lora
from raylab.experiment.heads import DENSE
from raylab.models.backbone import add_lora
from raylab.models.checkpoint import save_retriever
from raylab.models.hub import load_base, state_to_save
from raylab.models.retriever import Retriever
from raylab.storage.artifacts import Address
from raylab.storage.store import Store
from raylab.storage.tables import RESULTS, Result, write_table
from tests.tables import result

RUN = "dense-tiny-cl-seed0"


@pytest.fixture
def storage(model_folder, tmp_path):
    """A storage with one trained run, and the results table of its grid."""
    store = Store(str(tmp_path / "lab"))
    backbone = Backbone("tiny", str(model_folder))
    model, tokenizer = load_base(backbone, None)
    model = add_lora(model, Lora(rank=2))
    address = Address("retriever", RUN, {"cell": RUN}, {})
    with store.draft(address) as draft:
        save_retriever(
            draft.path,
            model,
            state_to_save(model),
            tokenizer,
            backbone,
            DENSE,
            Encoding(),
            {"name": RUN},
        )
    row = {
        "kind": "trained",
        "system": "dense-tiny-cl",
        "head": "dense",
        "seed": 0,
        "collection": "toy",
        "split": "test",
        "measure": "nDCG@10",
        "value": 0.4321,
        "ci_low": 0.4,
        "ci_high": 0.46,
        "fingerprint": address.fingerprint,
    }
    untrained = {**row, "kind": "untrained", "value": 0.1, "seed": None}
    write_table(store, RESULTS, [result(**row), result(**untrained)], Result)
    return store.root


def invoke(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_folder_is_a_retriever_with_its_own_measures(storage, tmp_path):
    out = tmp_path / "out"
    done = invoke(RUN, out, "--storage", storage)
    assert done.exit_code == 0, done.output
    assert Retriever.load(out).encode_queries(["cell gene"]).shape == (1, 32)
    card = (out / "README.md").read_text()
    assert "| toy | test | nDCG@10 | 0.4321 | 0.4000 to 0.4600 |" in card
    assert "0.1000" not in card  # the untrained row is not this retriever's
    index = yaml.safe_load(card.split("---\n")[1])["model-index"][0]
    assert index["results"][0]["metrics"] == [{"type": "nDCG@10", "value": 0.4321}]


@pytest.mark.parametrize(
    ("run", "folder", "message"),
    [
        ("dense-tiny-kd-seed0", "out", "no trained run 'dense-tiny-kd-seed0'; there are: " + RUN),
        (RUN, "full", "it must not exist, or be empty"),
    ],
)
def test_it_refuses_with_one_clear_error(storage, tmp_path, run, folder, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = invoke(run, tmp_path / folder, "--storage", storage)
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_a_storage_without_results_is_named(tmp_path):
    done = invoke(RUN, tmp_path / "out", "--storage", tmp_path / "empty")
    assert (done.exit_code, "no results.parquet there" in done.output) == (2, True)
