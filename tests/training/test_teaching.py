"""The losses of pre-training, against naive loops in float64."""

import math

import numpy as np
import pytest
import torch

from raylab.experiment.config import ConfigError
from raylab.models.backbone import hidden_states
from raylab.training.mntp import next_token_losses
from raylab.training.rungs import Rung, start
from raylab.training.teaching import (
    Batch,
    Contrast,
    Distillation,
    Masked,
    MaskedTokens,
    Step,
    TaughtModule,
    log_unigrams,
)

VOCABULARY, B, T = 40, 4, 6
RUNG = Rung("tiny", layers=2, hidden=16, heads=2, intermediate=32)


@pytest.fixture(scope="module")
def model():
    made = start(RUNG, VOCABULARY, seed=0, residual_scale=1.0)
    with torch.no_grad():
        made.get_input_embeddings().weight *= 10  # so that scores differ
    return made


def padded(lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids * mask, mask


def unit(seed: int) -> torch.Tensor:
    rows = torch.randn(B, T, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.fixture(scope="module")
def batch():
    return Batch(padded([3, 5, 2, 4], 1), padded([7, 9, 6, 8], 2), (unit(3), unit(4)))


def softmax(values: list[float]) -> list[float]:
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def naive_reps(model, part, head: str) -> np.ndarray:
    """Text by text, token by token, float64."""
    weight = model.get_input_embeddings().weight.detach().double().numpy()
    rows = []
    for ids, mask in zip(*part, strict=True):
        with torch.no_grad():
            states = hidden_states(model, ids[None], mask[None])[0][mask].double().numpy()
        if head == "dense":
            rows.append(np.mean([s / np.linalg.norm(s) for s in states], axis=0))
        else:
            logits = np.array([[state @ row for row in weight] for state in states])
            rows.append(np.log1p(np.maximum(logits.max(0), 0) * 16**-0.25))
    return np.array(rows)


def naive_divergence(short, long, taught, temperature, teacher_temperature) -> float:
    taught_short, taught_long = (part.double().numpy() for part in taught)
    total = 0.0
    for own, theirs, skip in ((short, taught_short, False), (long, taught_long, True)):
        for i in range(B):
            columns = [j for j in range(B) if not (skip and j == i)]
            mine = softmax([own[i] @ long[j] / temperature for j in columns])
            wanted = softmax([theirs[i] @ taught_long[j] / teacher_temperature for j in columns])
            total += sum(t * math.log(t / s) for t, s in zip(wanted, mine, strict=True)) / B
    return total


@pytest.mark.parametrize(
    ("head", "temperature"), [("dense", 0.05), ("dense", 0.2), ("sparse", 1.0)]
)
@pytest.mark.parametrize("cosine", [False, True])
def test_distillation_is_the_sum_of_two_divergences(model, batch, head, temperature, cosine):
    loss = Distillation(head, temperature=temperature, teacher_temperature=0.1, cosine=cosine)
    short, long = (naive_reps(model, part, head) for part in (batch.short, batch.long))
    if cosine:
        short, long = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in (short, long))
    expected = naive_divergence(short, long, batch.taught, temperature, 0.1)
    assert float(loss(Step(model, batch))) == pytest.approx(expected, rel=1e-4)


def test_the_sparse_head_pays_for_its_terms(model, batch):
    plain, paying = (Distillation("sparse", temperature=1.0, flops_weight=w) for w in (0.0, 0.7))
    reps = [naive_reps(model, part, "sparse") for part in (batch.short, batch.long)]
    density = sum((part.mean(0) ** 2).sum() for part in reps)
    difference = float(paying(Step(model, batch)) - plain(Step(model, batch)))
    assert difference == pytest.approx(0.7 * density, rel=1e-3)


def test_a_student_with_the_teachers_similarities_has_no_loss(batch):
    """The teacher's own embeddings as representations: divergence 0."""
    step = Step(None, batch, _represented={"dense": batch.taught})
    loss = Distillation("dense", temperature=0.05, teacher_temperature=0.05)
    assert float(loss(step)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_contrast_is_the_entropy_of_the_own_document(model, batch, head):
    short, long = (naive_reps(model, part, head) for part in (batch.short, batch.long))
    expected = np.mean(
        [-math.log(softmax([short[i] @ long[j] / 0.3 for j in range(B)])[i]) for i in range(B)]
    )
    loss = Contrast(head, temperature=0.3)(Step(model, batch))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def masked_batch() -> Batch:
    ids, mask = padded([7, 9, 6, 8], 2)
    generator = torch.Generator().manual_seed(5)
    drawn = torch.rand(ids.shape, generator=generator)
    selected = mask & (drawn < 0.3)
    selected[:, 0] = False
    visible = mask & ~selected & (drawn > 0.7)
    inputs = torch.where(selected, 39, ids)
    return Batch(
        padded([3, 5, 2, 4], 1),
        (ids, mask),
        (unit(3), unit(4)),
        Masked(inputs, ids, selected, visible),
    )


def test_masked_tokens_are_predicted_with_the_unigrams_beside_the_states(model):
    """A loop over texts and tokens: hidden ones count 1, visible ones a half, each as a mean."""
    batch, bias = masked_batch(), log_unigrams(torch.arange(VOCABULARY).float())
    masked = batch.masked
    assert masked is not None
    losses = {True: [], False: []}
    for row, (ids, mask) in enumerate(zip(*batch.long, strict=True)):
        inputs = masked.inputs_BL[row][mask][None]
        with torch.no_grad():
            logits = (model(inputs, torch.ones_like(inputs)).logits[0] + bias).double().numpy()
        for i in range(1, int(mask.sum())):
            for kind, chosen in ((True, masked.selected_BL), (False, masked.visible_BL)):
                if chosen[row, i]:
                    losses[kind].append(-math.log(softmax(list(logits[i - 1]))[int(ids[i])]))
    assert losses[True]
    assert losses[False]
    expected = np.mean(losses[True]) + 0.5 * np.mean(losses[False])
    loss = MaskedTokens(visible_weight=0.5)(Step(model, batch, bias))
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_unigrams_are_probabilities_and_none_is_0():
    logs = log_unigrams(torch.tensor([0.0, 3.0, 1.0]))
    assert logs.exp().tolist() == pytest.approx([1 / 7, 4 / 7, 2 / 7])


def test_a_bias_takes_over_where_the_states_say_nothing(model):
    """With embeddings of 0 the loss is the unigrams' own entropy, which is the best without context."""
    mute = start(RUNG, VOCABULARY, seed=0, residual_scale=0.0)
    with torch.no_grad():
        mute.get_input_embeddings().weight.zero_()
    ids = torch.tensor([[1, 2, 3, 2]])
    bias = log_unigrams(torch.tensor([0.0, 1.0, 2.0, 1.0] + [0.0] * (VOCABULARY - 4)))
    losses, _ = next_token_losses(mute, ids, ids, torch.ones_like(ids).bool(), None, bias)
    torch.testing.assert_close(losses, -bias[ids[0, 1:]])


def test_losses_add_up_with_their_weights(model, batch):
    parts = (Distillation("dense", weight=2.0), Contrast("sparse", weight=0.5, temperature=1.0))
    whole = TaughtModule(model, parts)(batch)
    apart = [loss.weight * float(loss(Step(model, batch))) for loss in parts]
    assert float(whole.detach()) == pytest.approx(sum(apart), rel=1e-5)


def test_what_is_measured_is_the_fit_without_the_regulariser(model, batch):
    losses = (
        Distillation("dense"),
        Distillation("sparse", temperature=1.0, flops_weight=5.0),
        Contrast("dense"),
    )
    measured = TaughtModule(model, losses).measures(batch)
    step = Step(model, batch)
    assert set(measured) == {"held_out_kl_dense", "held_out_kl_sparse", "held_out_active_terms"}
    assert measured["held_out_kl_sparse"] == pytest.approx(float(losses[1].divergence(step)))
    terms = (naive_reps(model, batch.long, "sparse") > 0).sum(1).mean()
    assert measured["held_out_active_terms"] == pytest.approx(terms)


def test_every_loss_has_a_gradient(model):
    batch = masked_batch()
    for loss in (Distillation("dense"), Distillation("sparse"), Contrast("sparse"), MaskedTokens()):
        model.zero_grad()
        TaughtModule(model, [loss])(batch).backward()
        norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
        assert len(norms) == len(list(model.parameters()))
        assert all(math.isfinite(norm) for norm in norms)
        assert sum(norms) > 0


@pytest.mark.parametrize("wrong", [{"head": "lexical"}, {"head": "dense", "temperature": 0.0}])
def test_losses_that_cannot_be_are_refused(wrong):
    for kind in (Distillation, Contrast):
        with pytest.raises(ConfigError, match=list(wrong)[-1]):
            kind(**wrong)
