"""What would make a step fit into a device: the cheapest changes, in their order, and what a refusal says."""

import dataclasses

import pytest

from raylab.experiment.config import Adaptation, Backbone, ConfigError, FineTuning, Lora
from raylab.experiment.grid import Cell
from raylab.experiment.heads import DENSE, SPARSE
from raylab.experiment.objectives import CL
from raylab.planning.flops import Rows
from raylab.planning.memory import (
    Load,
    adaptation_load,
    cell_load,
)
from raylab.planning.memory_fit import USABLE, check_memory, fit
from tests.planning.shapes import GIB, LLAMA_1B, LLAMA_8B, PLAIN


def fitting(device_gib, shape=LLAMA_8B, checkpointing=True, lora: Lora | None = PLAIN, **execution):
    tuning = FineTuning(batch_queries=32, checkpointing=checkpointing, lora=lora)
    cell = Cell(Backbone("8b", "nowhere"), SPARSE, CL, tuning, 1.0)
    execution = {"weight_bytes": 2} | execution
    listed = 32 * (1 + tuning.negatives)
    rows = [Rows(32, tuning.query_length), Rows(listed, tuning.passage_length)]
    load = cell_load(cell, shape, rows, **execution)
    return fit(load, device_gib * GIB)


def test_what_fits_needs_nothing():
    found = fitting(1000)
    assert found.fits
    assert (found.proposal, found.workers, found.options) == (None, None, "")
    check_memory("cell", found)


def assert_cheapest(found):
    """The proposal fits, and twice its micro-batch does not."""
    limit = USABLE * found.device_bytes
    assert found.needed_bytes > limit >= found.proposal.memory().total
    if found.proposal.micro_batch:
        larger = dataclasses.replace(found.proposal, micro_batch=2 * found.proposal.micro_batch)
        assert larger.memory().total > limit


def test_smaller_micro_batches_come_first():
    found = fitting(24, workers=4)
    assert_cheapest(found)
    assert found.options == f"--micro-batch {found.proposal.micro_batch}"
    # What is typed does fit.
    assert fitting(24, workers=4, micro_batch=found.proposal.micro_batch).fits
    again = fitting(20, workers=4, micro_batch=found.proposal.micro_batch)
    assert again.proposal.micro_batch < found.proposal.micro_batch


def test_checkpointing_is_next_where_a_text_alone_is_too_much():
    """One text of 8,192 tokens a worker is no smaller in any micro-batch."""
    load = Load(LLAMA_1B, DENSE, PLAIN, False, (Rows(8, 8192),), workers=8, zero_stage=1)
    least = dataclasses.replace(load, checkpointing=True).memory().total
    found = fit(load, least / USABLE * 1.01)
    assert_cheapest(found)
    assert found.options == "fine_tuning.checkpointing = true"


def test_changes_are_combined_in_their_order():
    """Where nothing does alone: micro-batch and checkpointing, before either with ZeRO."""
    load = Load(LLAMA_1B, DENSE, PLAIN, False, (Rows(32, 4096),), workers=8, zero_stage=1)
    least = dataclasses.replace(load, checkpointing=True, micro_batch=1).memory().total
    found = fit(load, least / USABLE * 1.01)
    assert_cheapest(found)
    assert found.options == "--micro-batch 1 fine_tuning.checkpointing = true"


def test_zero_follows_where_state_is_what_is_too_much():
    """Fully trained in 80 GiB: 96 GB of AdamW's state must be shared, whatever the micro-batch."""
    found = fitting(80, lora=None, workers=8, zero_stage=0)
    assert_cheapest(found)
    assert "--zero" in found.options
    assert "checkpointing" not in found.options
    less = fitting(40, lora=None, workers=8, zero_stage=1)
    assert_cheapest(less)
    assert less.options == "--zero 3"  # 15 GiB of weights are too many as well


def test_one_worker_is_not_told_to_share():
    found = fitting(80, lora=None, workers=1)
    assert found.proposal is None
    assert found.workers is not None
    assert found.options == f"--workers {found.workers} --zero 3"
    assert fitting(80, lora=None, workers=found.workers, zero_stage=3, micro_batch=1).fits
    assert not fitting(80, lora=None, workers=found.workers // 2, zero_stage=3, micro_batch=1).fits


def test_nothing_may_help():
    found = fitting(2)
    assert not found.fits
    assert (found.proposal, found.workers, found.options) == (None, None, "")
    with pytest.raises(ConfigError, match=r"no micro-batch, ZeRO stage or number of workers"):
        check_memory("sparse-8b-cl-seed0", found)


def test_a_refusal_says_what_to_type():
    found = fitting(24, workers=4)
    with pytest.raises(ConfigError) as fault:
        check_memory("sparse-8b-cl-seed0", found)
    message = str(fault.value)
    assert message.startswith(
        f"sparse-8b-cl-seed0 needs {found.needed_bytes / GIB:.2f} GiB a worker"
    )
    assert "24.00 GiB" in message
    assert f"--micro-batch {found.proposal.micro_batch} needs" in message
    with pytest.raises(ConfigError, match=r"it takes --workers \d+ --zero 3"):
        check_memory("x", fitting(80, lora=None, workers=1))


def test_mntp_knows_no_micro_batches():
    load = adaptation_load(LLAMA_8B, Adaptation(checkpointing=False), workers=4)
    found = fit(load, 30 * GIB)
    assert found.options == "adaptation.checkpointing = true"
