"""Held-out curves: how well a retriever tells relevant passages from others while it is fine-tuned.

At points that are even in the logarithm of FLOPs every worker encodes its share of the validation texts, and all
compute from the representations of all:

    held_out       contrastive entropy, nats: mean over the queries of -log softmax of the relevant passage's
                   score among its own and those of 256 passages that are nobody's
    active_terms   of a passage before it is pruned, mean (sparse)
    collapse       mean cosine of two of the 256 passages: 1 where all are alike

Nothing of it changes the run: no gradient, no dropout, no random number. What it takes is counted beside the
budget, and there are fewer points where all of them would take more than 3 % of the run's FLOPs.

Legend: Q queries, N negatives, P = Q + N passages, D size of a representation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raylab.data.supervision.batches import pad
from raylab.experiment.config import FineTuning
from raylab.experiment.heads import Head
from raylab.models.heads import prune_top_k
from raylab.planning.flops import Rows, Shape, encode_flops
from raylab.training.distributed import rank_and_world

HELD_OUT, ACTIVE_TERMS, COLLAPSE = "held_out", "active_terms", "collapse"
MOST_SHARE = 0.03  # of a run's FLOPs
_FIRST_SHARE = 0.01  # of a run's steps, before the first point
_BATCH_TEXTS = 64
_COLLAPSED = 0.99  # of a cosine
_NO_BETTER = 0.05  # nats below chance, that are still chance
_SURE = 3.0  # standard errors


def points_of(ends: Collection[int], most: int, cost: float, step_flops: float) -> tuple[int, ...]:
    """After which steps to measure: the last one, the ends of shorter runs, and others before, even in log steps.

    Args:
        ends: steps of the runs that share their beginning; of one alone where nothing is shared.
        most: points that are wanted; 0: none.
        cost: FLOPs of one point.
        step_flops: of a training step.
    """
    steps = max(ends)
    count = min(most, int(MOST_SHARE * steps * step_flops / cost)) if cost > 0 else 0
    if count < 1:
        return ()
    # The longest of the shorter runs first; one that a point would take too much of has none at its end.
    shorter = sorted((end for end in ends if end < steps), reverse=True)[: count - 1]
    shorter = [end for end in shorter if cost <= MOST_SHARE * end * step_flops]
    count -= len(shorter)
    first = max(1.0, _FIRST_SHARE * steps)
    places = np.geomspace(steps, first, count) if count > 1 else [steps]
    return tuple(sorted({*shorter, *(round(float(place)) for place in places)}))


@dataclass(frozen=True)
class ValidationTexts:
    """Token ids as the model sees them: of queries [Q], the relevant passage of each, and negatives [N]."""

    queries: Sequence[np.ndarray]
    relevant: Sequence[np.ndarray]
    negatives: Sequence[np.ndarray]


class Validation:
    """The validation of a run.

    Args:
        tuning: of the run: temperature and pruning of its scores are those of its loss.
        micro_batch_texts: that a worker may encode at once; 0: as many as it likes.
    """

    def __init__(
        self,
        texts: ValidationTexts,
        pad_id: int,
        head: Head,
        shape: Shape,
        tuning: FineTuning,
        micro_batch_texts: int = 0,
    ):
        self.texts = [*texts.queries, *texts.relevant, *texts.negatives]
        self.pad_id, self.head, self.tuning = pad_id, head, tuning
        self.n_queries, self.n_negatives = len(texts.queries), len(texts.negatives)
        lengths = [max(len(text), 1) for text in self.texts]
        most = min(micro_batch_texts or _BATCH_TEXTS, _BATCH_TEXTS)
        kinds = range(self.n_queries), range(self.n_queries, len(lengths))
        self.batches = [
            batch for kind in kinds for batch in _cut(sorted(kind, key=lengths.__getitem__), most)
        ]
        rows = [
            Rows(len(batch), max(lengths[i] for i in batch), sum(lengths[i] for i in batch))
            for batch in self.batches
        ]
        self.flops = sum(encode_flops(shape, part, head) for part in rows)  # of one point
        self._lowest: np.ndarray | None = None  # entropies [Q] of the best point so far
        self._said: set[str] = set()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell apart."""
        return not self.n_queries or not self.n_negatives

    @torch.no_grad()
    def measure(self, engine: Any, device: torch.device) -> tuple[dict[str, float], str]:
        """The measures and a warning ("": none), the same on all workers. Call on all of them.

        `engine` gives a tuple of representations [B, D] for texts as `FineTuningModule` takes them.
        """
        training = engine.training
        engine.eval()
        reps = self._encode(engine, device)
        engine.train(training)
        entropies_Q = self._entropies(reps)
        negatives_ND = reps[-self.n_negatives :]
        values = {HELD_OUT: float(entropies_Q.mean()), COLLAPSE: mean_cosine(negatives_ND)}
        if self.head.is_sparse:
            passages_PD = reps[self.n_queries :]
            values[ACTIVE_TERMS] = float((passages_PD > 0).sum(1).double().mean())
        return values, self._warning(entropies_Q, values)

    def _encode(self, engine: Any, device: torch.device) -> torch.Tensor:
        """Representations of all texts: queries, relevant passages, negatives."""
        rank, world = rank_and_world()
        reps = torch.empty(0)
        for number in range(-(-len(self.batches) // world)):
            place = number * world + rank
            # Every worker takes part in every round: ZeRO-3 gathers weights on all of them.
            batch = self.batches[min(place, len(self.batches) - 1)]
            texts = [self.texts[i] for i in batch]
            longest = max(max(map(len, texts)), 1)
            arrays = pad(texts, longest, self.pad_id)
            ids, mask = (torch.from_numpy(array).to(device) for array in arrays)
            (part,) = engine((ids, mask, torch.zeros(len(batch), dtype=torch.int64)))  # all terms
            if not number:
                reps = part.new_zeros(len(self.texts), part.shape[1])
            if place < len(self.batches):
                reps[torch.tensor(batch, device=device)] = part
        if world > 1:
            torch.distributed.all_reduce(reps)
        return reps

    def _entropies(self, reps: torch.Tensor) -> np.ndarray:
        """Contrastive entropy of each query, float64 [Q]."""
        queries_QD, passages_PD = reps[: self.n_queries], reps[self.n_queries :]
        if self.head.is_sparse:
            queries_QD = prune_top_k(queries_QD, self.tuning.top_k_query)
            passages_PD = prune_top_k(passages_PD, self.tuning.top_k_passage)
        scores_QP = (queries_QD @ passages_PD.T).double() / self.tuning.temperature
        own_Q = scores_QP[:, : self.n_queries].diagonal()
        others_Q = scores_QP[:, self.n_queries :].logsumexp(1)
        return torch.nn.functional.softplus(others_Q - own_Q).cpu().numpy()

    def _warning(self, entropies_Q: np.ndarray, values: dict[str, float]) -> str:
        """What has begun at this point and was not said before."""
        warnings = {
            "collapse": self._collapse(values),
            "overfitting": self._overfitting(entropies_Q),
        }
        fresh = {kind: text for kind, text in warnings.items() if text and kind not in self._said}
        self._said |= set(fresh)
        return "; ".join(fresh.values())

    def _collapse(self, values: dict[str, float]) -> str:
        if values.get(ACTIVE_TERMS) == 0:
            return "representations have collapsed: no passage has an active term"
        chance = math.log(self.n_negatives + 1)
        if values[COLLAPSE] > _COLLAPSED and values[HELD_OUT] > chance - _NO_BETTER:
            return (
                f"representations have collapsed: the mean cosine of two passages is {values[COLLAPSE]:.3f}, and the "
                f"held-out entropy {values[HELD_OUT]:.2f} is that of chance"
            )
        return ""

    def _overfitting(self, entropies_Q: np.ndarray) -> str:
        """Whether the entropy has risen since the best point, by more than the queries' noise."""
        best_Q = self._lowest
        if best_Q is None or entropies_Q.mean() <= best_Q.mean():
            self._lowest = entropies_Q
            return ""
        if len(best_Q) < 2:
            return ""
        risen_Q = entropies_Q - best_Q
        error = float(risen_Q.std(ddof=1)) / math.sqrt(len(risen_Q))
        rise = float(risen_Q.mean())
        if rise <= _SURE * error:
            return ""
        return f"the held-out entropy rises: by {rise:.3f} +- {error:.3f} nats since it was lowest; the run overfits"


def mean_cosine(reps_ND: torch.Tensor) -> float:
    """Mean cosine of two different rows; rows of zeros count as orthogonal to all."""
    count = len(reps_ND)
    if count < 2:
        return 0.0
    unit_ND = torch.nn.functional.normalize(reps_ND, dim=1)
    own = float((unit_ND * unit_ND).sum(dtype=torch.float64))
    together = float((unit_ND.sum(0, dtype=torch.float64) ** 2).sum())
    return (together - own) / (count * (count - 1))


def _cut(places: Sequence[int], most: int) -> list[list[int]]:
    return [list(places[i : i + most]) for i in range(0, len(places), most)]
