"""Heads: how the hidden states of a text become one representation. A new head is one `Head`, here or
in a file of one's own; nothing compares the names of heads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from raylab.experiment.config import ELSEWHERE, ConfigError, check
from raylab.experiment.references import check_reference

Representation = Literal["dense", "sparse"]
REPRESENTATIONS: tuple[Representation, ...] = ("dense", "sparse")


@dataclass(frozen=True)
class Head:
    """One head. It is plain data: a checkpoint holds it whole, and any process can load it from there.

    Args:
        name: in cells, tables and files.
        pooling: `package.module:function` of (hidden_BLD, weight_VD, mask_BL, scale) to the
            representations of B texts: [B, D], or [B, V] where `representation` is sparse.
            `weight_VD` is the LM head's weight, `scale` the factor on its logits.
        representation: "dense": a vector of the hidden size, searched by exact inner product. "sparse": a
            weight a vocabulary entry, from the logits of every token; Top-K prunes it, the FLOPS
            regulariser thins it out, and an inverted index searches it.
        recipe: the head whose hyper-parameters it takes where a ladder's recipe has none for it.
        label: in tables and charts; the name by default.
        colour: in charts, a CSS colour.
    """

    name: str
    pooling: str
    representation: Representation
    recipe: str = ""
    label: str = field(default="", metadata={ELSEWHERE: True})
    colour: str = field(default="", metadata={ELSEWHERE: True})

    def __post_init__(self) -> None:
        right = "a word without blanks, slashes and commas"
        check(bool(self.name) and not set(self.name) & set(" /,*"), "head.name", self.name, right)
        check_reference("head.pooling", self.pooling)
        kinds = f"one of {REPRESENTATIONS}"
        check(
            self.representation in REPRESENTATIONS,
            "head.representation",
            self.representation,
            kinds,
        )

    @property
    def is_sparse(self) -> bool:
        """Whether it projects every token on the vocabulary, and a representation has an entry a term."""
        return self.representation == "sparse"

    def width(self, hidden: int, vocabulary: int) -> int:
        """Entries of a representation, for a backbone of this hidden size and vocabulary."""
        return vocabulary if self.is_sparse else hidden

    @property
    def recipe_name(self) -> str:
        """Of the head whose hyper-parameters it takes."""
        return self.recipe or self.representation


SPARSE = Head(
    "sparse", "raylab.models.heads:sparse_pooling", "sparse", label="Sparse", colour="#c1272d"
)
DENSE = Head("dense", "raylab.models.heads:mean_pooling", "dense", label="Dense", colour="#0000a7")
HEADS = {head.name: head for head in (SPARSE, DENSE)}


def find_head(name: str) -> Head:
    """A built-in head by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in HEADS:
        raise ConfigError(f"head {name!r}: it must be one of {', '.join(HEADS)}")
    return HEADS[name]
