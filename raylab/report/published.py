"""Published figures: reference rows that this laboratory did not measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from raylab.data.registry import BEIR_SETS

MARCO, DL19, DL20, DL_BOTH, BEIR = "MS MARCO dev", "DL19", "DL20", "DL19+20", "BEIR-13"
COLUMNS = (MARCO, DL19, DL20, DL_BOTH, BEIR)
MEASURES = {MARCO: "RR@10", DL19: "nDCG@10", DL20: "nDCG@10", DL_BOTH: "nDCG@10", BEIR: "nDCG@10"}
_SAME = {("msmarco", "dev"): MARCO, ("msmarco", "dl19"): DL19, ("msmarco", "dl20"): DL20}


@dataclass(frozen=True)
class Published:
    """A system as published: its values by name of benchmark, as shares of 1, and where from.

    `objective`: which of the grid's it was trained with, None where it is another or not stated.
    """

    system: str
    about: str
    objective: str | None
    source: str
    values: Mapping[str, float] = field(default_factory=dict)


PUBLISHED = (
    Published(
        "Lion-SP-8B",
        "sparse, CL+KD",
        "cl+kd",
        "arXiv 2502.15526",
        {MARCO: 0.417, DL_BOTH: 0.758, BEIR: 0.552},
    ),
    Published(
        "Lion-DS-8B",
        "dense, CL+KD",
        "cl+kd",
        "arXiv 2502.15526",
        {MARCO: 0.417, DL_BOTH: 0.755, BEIR: 0.501},
    ),
    Published(
        "SPLADE-v3",
        "sparse",
        None,
        "arXiv 2403.06789",
        {MARCO: 0.402, DL19: 0.723, DL20: 0.754, BEIR: 0.517},
    ),
    Published(
        "SPLADE-Llama 8B",
        "sparse, KL, Top-K 40/400",
        "kd",
        "arXiv 2603.13277",
        {MARCO: 0.400, DL19: 0.763, DL20: 0.759, BEIR: 0.500},
    ),
    Published(
        "SPLARE-7B",
        "sparse, latent vocabulary",
        None,
        "arXiv 2603.13277",
        {MARCO: 0.408, DL19: 0.774, DL20: 0.773, BEIR: 0.502},
    ),
)


def same_benchmark(collection: str, split: str) -> str | None:
    """The column of published values that a split is the same benchmark as; a slice of it is not."""
    return _SAME.get((collection, split))


def is_beir(collection: str, split: str) -> bool:
    """Whether a split is one of the 13 sets whose mean is published."""
    return collection in BEIR_SETS and split == "test"
