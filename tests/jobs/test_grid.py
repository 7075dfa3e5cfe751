"""The whole chain on Ray: every stage real, on a tiny collection, from the experiment's own command line."""

from pathlib import Path

import pandas as pd
import pytest

from tests.jobs.commands import command, measures, run


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory, collection_folder, ladder_file, teacher_folder
) -> tuple[Path, list[str], str]:
    """A grid of six cells, run once: (storage, command, output)."""
    folder = tmp_path_factory.mktemp("grid")
    arguments = command(collection_folder, ladder_file, teacher_folder, folder / "lab")
    return folder / "lab", arguments, run(arguments, folder)


def test_the_table_has_a_row_for_every_system_split_and_measure(finished):
    lab, _, _ = finished
    table = pd.read_parquet(lab / "results.parquet")
    systems = {f"{h}-tiny-{o}" for h in ("sparse", "dense") for o in ("cl", "kd", "cl+kd")}
    systems |= {"untrained-sparse-tiny", "untrained-dense-tiny", "BM25"}
    assert set(table["system"]) == systems
    assert set(table["split"]) == {"test", "valid"}
    measured = table[table["measure"] != "CE@256"]
    assert len(measured) == 9 * 2 * 3
    entropy = table[table["measure"] == "CE@256"]
    assert set(entropy["system"]) == systems - {"BM25"}
    assert len(entropy) == 8 * 2
    assert (table["ci_low"] <= table["value"]).all()
    assert (table["value"] <= table["ci_high"]).all()
    trained = table[table["kind"] == "trained"]
    # The contract: planned and spent within 2 %, cells of one budget within 1 % of each other.
    assert (trained["spent_flops"] / trained["budget_flops"] - 1).abs().max() <= 0.02
    assert trained["spent_flops"].max() / trained["spent_flops"].min() <= 1.01


def test_values_are_the_means_of_the_per_query_values(finished):
    lab, _, _ = finished
    table = pd.read_parquet(lab / "results.parquet")
    keys = ["system", "split", "measure"]
    means = pd.read_parquet(lab / "per_query.parquet").groupby(keys)["value"].mean()
    assert table.set_index(keys)["value"].sort_index().to_numpy() == pytest.approx(
        means.sort_index().to_numpy()
    )


def test_the_end_says_where_everything_is(finished):
    lab, _, output = finished
    for file in (
        "results.parquet",
        "report/index.html",
        "report/scaling.png",
        "report/scaling.svg",
    ):
        assert (lab / file).exists()
        assert file in output
    assert "cells 6/6" in output
    assert "Last result" not in output  # Tune is silent


def test_the_ledger_has_every_stage(finished):
    lab, _, _ = finished
    ledger = pd.read_parquet(lab / "ledger.parquet")
    assert set(ledger["stage"]) == {
        "collection",
        "tokens",
        "groups",
        "backbone",
        "retriever",
        "embeddings",
        "embedding-part",
        "index",
        "run",
        "measures",
        "profile",
    }
    assert (ledger.loc[ledger["stage"] == "retriever", "flops"] > 0).all()


def test_the_same_command_again_does_nothing(finished):
    lab, arguments, _ = finished
    before = {p: p.stat().st_mtime_ns for p in lab.rglob("manifest.json")}
    table = measures(lab)
    output = run(arguments, lab.parent)
    assert "everything was done already" in output
    assert {p: p.stat().st_mtime_ns for p in lab.rglob("manifest.json")} == before
    pd.testing.assert_frame_equal(measures(lab), table)


def test_a_damaged_checkpoint_is_named_and_made_again_with_the_same_result(finished):
    lab, arguments, _ = finished
    table = measures(lab)
    weights = next((lab / "retriever").glob("dense-tiny-cl-*/attempt-*/model.safetensors"))
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(bytes(damaged))
    output = run(arguments, lab.parent)
    assert "damaged artifact retriever/dense-tiny-cl-seed0" in output
    assert "model.safetensors does not match its checksum" in output
    pd.testing.assert_frame_equal(measures(lab), table)
