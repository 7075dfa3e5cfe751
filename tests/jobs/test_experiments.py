"""The other experiments' files, on a tiny ladder: what they change reaches training, and the table names it."""

import sys

import pandas as pd

from tests.jobs.commands import ROOT, run


def test_ablations_of_the_start_and_corruption_train_and_are_told_apart(
    tmp_path, collection_folder, ladder_file
):
    lab = tmp_path / "lab"
    arguments = [
        *(sys.executable, str(ROOT / "experiments" / "ablations.py"), "--plain"),
        *("--collection", str(collection_folder), "--ladder", str(ladder_file)),
        *("--sizes", "tiny", "--storage", str(lab), "--budget", "2e10"),
        *("--cells", "dense-tiny-cl,*-cl-causal,dense-tiny-cl-no-mntp"),
    ]
    run(arguments, tmp_path)
    table = pd.read_parquet(lab / "results.parquet")
    trained = table[table["kind"] == "trained"].drop_duplicates("system").set_index("system")
    names = (
        "dense-tiny-cl",
        "dense-tiny-cl-causal",
        "sparse-tiny-cl-causal",
        "dense-tiny-cl-no-mntp",
    )
    assert set(trained.index) == set(names)
    assert trained.loc["dense-tiny-cl-no-mntp", "variant"] == "no-mntp"
    assert trained["fingerprint"].is_unique
    untrained = set(table.loc[table["kind"] == "untrained", "system"])
    assert {"untrained-dense-tiny", "untrained-dense-tiny-causal"} <= untrained
    ledger = pd.read_parquet(lab / "ledger.parquet")
    assert (ledger["stage"] == "backbone").sum() == 3  # the recipe's, causal, without MNTP
    command = (lab / "command.txt").read_text()
    assert command.startswith("python experiments/ablations.py --plain")
