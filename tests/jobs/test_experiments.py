"""The other experiments' files, on a tiny ladder: what they change reaches training, and the table names it."""

import sys

import pandas as pd
import pytest

from tests.jobs.commands import ROOT, run_here

CELLS = "dense-tiny-cl,*-cl-causal,dense-tiny-cl-no-mntp"
NAMES = {
    "dense-tiny-cl",
    "dense-tiny-cl-no-mntp",
    "dense-tiny-cl-causal",
    "sparse-tiny-cl-causal",
}


@pytest.mark.slow
def test_ablations_of_the_start_and_corruption_train_and_are_told_apart(
    ray_cluster, tmp_path, collection_folder, ladder_file
):
    lab = tmp_path / "lab"
    arguments = [
        *(sys.executable, str(ROOT / "experiments" / "ablations.py"), "--plain"),
        *("--collection", str(collection_folder), "--ladder", str(ladder_file)),
        *("--sizes", "tiny", "--storage", str(lab), "--budget", "2e10", "--cells", CELLS),
    ]
    run_here(arguments)
    table = pd.read_parquet(lab / "results.parquet")
    trained = table[table["kind"] == "trained"].drop_duplicates("system").set_index("system")
    assert set(trained.index) == NAMES
    assert trained.loc["dense-tiny-cl-no-mntp", "variant"] == "no-mntp"
    assert trained["fingerprint"].is_unique
    untrained = set(table.loc[table["kind"] == "untrained", "system"])
    assert "untrained-dense-tiny-causal" in untrained
    ledger = pd.read_parquet(lab / "ledger.parquet")
    # Without MNTP; causal, and the recipe's, where a cell begins with them.
    assert (ledger["stage"] == "backbone").sum() == 3
    command = (lab / "command.txt").read_text()
    assert command.startswith("python experiments/ablations.py --plain")
