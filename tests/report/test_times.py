"""Where the time went: the parts of each stage's, from the ledger."""

import pandas as pd
import pytest

from raylab.report.times import times

LEDGER = pd.DataFrame(
    [
        # Two training runs: one without a fault, and one that lost 5 s of steps and waited longer.
        {"stage": "retriever", "seconds": 100.0, "measuring_seconds": 3.0, "lost_seconds": 0.0,
         "elapsed_seconds": 112.0, "writing_seconds": 1.0},
        {"stage": "retriever", "seconds": 100.0, "measuring_seconds": 3.0, "lost_seconds": 5.0,
         "elapsed_seconds": 140.0, "writing_seconds": 1.0},
        {"stage": "embedding-part", "seconds": 20.0, "writing_seconds": 0.5},
        {"stage": "index", "seconds": 2.0},
    ]
)  # fmt: skip


def test_the_parts_of_every_stage_and_their_sum():
    training, encoding, index, every = times(LEDGER)
    assert (training.stage, training.artifacts, training.work) == ("retriever", 2, 200.0)
    assert (training.measuring, training.again, training.writing) == (6.0, 5.0, 2.0)
    assert training.waiting == pytest.approx(8.0 + 31.0)
    assert training.seconds == pytest.approx(112.0 + 140.0)
    assert (encoding.work, encoding.waiting, encoding.writing) == (20.0, 0.0, 0.5)
    assert index.seconds == 2.0
    assert (every.stage, every.artifacts) == ("all", 4)
    assert every.seconds == pytest.approx(252.0 + 20.5 + 2.0)


def test_a_ledger_of_one_column_of_time():
    (index, every) = times(pd.DataFrame({"stage": ["index"], "seconds": [2.0]}))
    assert index.seconds == every.seconds == 2.0
