"""A training checkpoint has the bytes that a plan gives it: trained weights, and AdamW's state with its fp32 copy."""

import pytest

from raylab.experiment.config import Lora
from raylab.planning.storage_bytes import checkpoint_bytes
from raylab.training.distributed import ensure_process_group
from tests.workers import STEPS, FolderReporter, make_task, train


def test_a_checkpoint_holds_16_bytes_a_trained_weight(model_folder, tmp_path):
    """In float32: the difference that embeddings make, since names and random states are as much for a tiny model."""
    ensure_process_group()
    planned, sizes = [], []
    for embeddings in (False, True):
        folder = tmp_path / str(embeddings)
        task = make_task(model_folder, tmp_path, embeddings=embeddings)
        train(task, FolderReporter(folder), zero=1, checkpoints=STEPS)
        first = sorted(folder.glob("step-*"))[0]
        sizes.append(sum(path.stat().st_size for path in first.rglob("*") if path.is_file()))
        trained = sum(p.numel() for p in task.module.parameters() if p.requires_grad)
        planned.append(checkpoint_bytes(task.shape, Lora(rank=4, train_embeddings=embeddings), 4))
        assert planned[-1] == 16 * trained
    assert planned[1] - planned[0] == pytest.approx(sizes[1] - sizes[0], rel=0.05)
