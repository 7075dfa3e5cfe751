"""The ladder that the package ships: its spread, what its cards say, and that every rung retrieves."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from raylab.data.collections import read_passages
from raylab.data.sources import open_collection
from raylab.experiment.heads import HEADS
from raylab.experiment.ladders import PICO
from raylab.models.backbone import (
    hidden_states,
    load_backbone,
    load_config,
    output_weight,
    resolve_source,
)
from raylab.models.heads import prune_top_k, represent
from raylab.models.hub import load_tokenizer
from raylab.planning.flops import Shape
from raylab.training.rungs import Rung, start

pytestmark = pytest.mark.long

DOCUMENTS = 200
FOLDERS = {backbone.name: resolve_source(backbone) for backbone in PICO.backbones}


@pytest.fixture(scope="module")
def shapes() -> list[Shape]:
    return [Shape.of(load_config(b, FOLDERS[b.name])) for b in PICO.backbones]


def test_sizes_rise_thirtyfold_and_the_default_ones_eightfold(shapes):
    parameters = [shape.parameters for shape in shapes]
    assert parameters == sorted(parameters)
    assert parameters[-1] >= 30 * parameters[0]
    default = [p for p, b in zip(parameters, PICO.backbones, strict=True) if b.name in PICO.default]
    assert default[-1] >= 8 * default[0]
    assert parameters[-1] > default[-1]  # the largest is left for the forecast


def test_names_are_shapes(shapes):
    assert [b.name for b in PICO.backbones] == [f"pico-{s.layers}x{s.hidden}" for s in shapes]


def test_the_ladder_is_small():
    files = [f for folder in FOLDERS.values() for f in Path(folder).rglob("*.safetensors")]
    assert sum(file.stat().st_size for file in files) <= 30e6


@pytest.mark.parametrize("name", FOLDERS)
def test_cards_tell_text_teacher_licences_tokens_and_fit(name):
    card = Path(FOLDERS[name], "README.md").read_text()
    assert f"# {name}" in card
    assert "license: odc-by" in card
    assert "all-MiniLM-L6-v2, Apache-2.0" in card
    assert "no query, claim, judgement or score of one" in card
    assert re.search(r"\| tokens \| \S+ with padding, \S+ a non-embedding parameter \|", card)
    assert f"--sizes {name}`" in card
    fits = [float(x) for x in re.findall(r"^\| \d+ \| ([\d.]+) \|", card, re.MULTILINE)]
    assert fits[-1] < fits[0]


def test_all_rungs_saw_the_same(shapes):
    """Steps, epochs and tokens of the cards, and their recipes."""
    cards = [Path(folder, "README.md").read_text() for folder in FOLDERS.values()]
    for row in ("phases", "text", "recipe", "excerpts of a document"):
        assert len({re.search(rf"\| {row} \| (.*) \|", card)[1] for card in cards}) == 1  # type: ignore[index]


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    """The last sentences of some abstracts, and their beginnings: no excerpt of a query."""
    passages = [p for p in read_passages(open_collection("scifact").passages) if len(p.text) > 900]
    passages = passages[:: len(passages) // DOCUMENTS][:DOCUMENTS]
    return [p.text[-150:] for p in passages], [p.text[:500] for p in passages]


def reciprocal_rank(model, tokenizer, head: str, texts: tuple[list[str], list[str]]) -> float:
    """Pruned as the ladder's recipe prunes."""
    reps = []
    for part, k in zip(texts, (40, 400), strict=True):
        ids = [row[:96] for row in tokenizer.encode(part)]
        longest = max(map(len, ids))
        padded = torch.from_numpy(
            np.stack([np.pad(row.astype(np.int64), (0, longest - len(row))) for row in ids])
        )
        mask = torch.tensor([[i < len(row) for i in range(longest)] for row in ids])
        with torch.no_grad():
            states = hidden_states(model, padded, mask)
            own = represent(HEADS[head], states, output_weight(model), mask)
            reps.append(prune_top_k(own, k) if HEADS[head].is_sparse else own)
    scores = reps[0] @ reps[1].T
    ranks = (scores > scores.diagonal()[:, None]).sum(1) + 1
    return float((1 / ranks).mean())


@pytest.mark.parametrize("backbone", PICO.backbones, ids=lambda b: b.name)
def test_every_rung_retrieves_better_than_a_random_model_of_its_shape(backbone, texts):
    """Of the better random one, whose blocks add nothing: a bag of random embeddings."""
    tokenizer = load_tokenizer(backbone, None)
    model = load_backbone(backbone, FOLDERS[backbone.name])
    config = model.config
    heads, inside = config.num_attention_heads, config.intermediate_size
    rung = Rung("random", config.num_hidden_layers, config.hidden_size, heads, inside)
    random = start(rung, config.vocab_size, seed=0, residual_scale=0.0).eval()
    for head in HEADS:
        ours, theirs = (reciprocal_rank(m, tokenizer, head, texts) for m in (model, random))
        assert ours > theirs, head
