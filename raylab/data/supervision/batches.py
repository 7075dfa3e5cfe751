"""Training batches: a pure function of (seed, step), cut by worker afterwards.

The draw of a step (queries, negatives) depends on seed and epoch alone, so it is the same for any
number of workers and after any restart; the position to resume from is the step number.

Legend: Q queries of the global batch, K listed passages a query (positive first), P = Q K, B texts, L tokens,
W workers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raylab.data.faults import CollectionError
from raylab.data.supervision.corruption import Corruption
from raylab.data.supervision.groups import Groups, Ragged
from raylab.data.supervision.length_groups import LengthGroups, length_groups
from raylab.data.tokenizer import Tokenizer
from raylab.data.tokens import PassageStore
from raylab.experiment.config import Adaptation, ConfigError, FineTuning

_TOKENISED = 16_384  # queries tokenised at once


@dataclass(frozen=True)
class Draw:
    """What a step trains on, for all workers."""

    groups_Q: np.ndarray  # int64, indices of groups
    rows_QK: np.ndarray  # int64, store rows
    body_QK: np.ndarray  # bool
    teacher_QK: np.ndarray | None  # float32
    length_groups: LengthGroups  # of the queries, then the passages query by query


@dataclass(frozen=True)
class GroupTexts:
    """A worker's texts of one group of like length.

    A worker without any has one pad token in their place, which is encoded and dropped: all workers
    pass through the layers equally often, which ZeRO's exchanges need.
    """

    ids_BL: np.ndarray  # int64
    mask_BL: np.ndarray  # bool
    places_B: np.ndarray  # int64, among the queries and then the passages of the step
    most: int  # texts that any worker has of this group


@dataclass(frozen=True)
class Batch:
    """One worker's part of a draw, group by group, and what the loss needs of all workers."""

    groups: tuple[GroupTexts, ...]
    places_WB: np.ndarray  # int64, of every worker's texts in the order in which it encodes them
    teacher_QK: np.ndarray | None  # float32, all workers' queries
    excluded_QP: np.ndarray  # bool, all workers: positives of the query other than its listed one


class TrainingBatches:
    """Draws and collates the batches of one cell.

    Args:
        passages: listed passages a query, positive included.

    Raises:
        ConfigError: a share of pseudo-queries the groups cannot give, too few negatives, or teacher
            scores that are needed and not there.
        CollectionError: teacher scores that are not finite, or not as many as passages.
    """

    def __init__(
        self,
        groups: Groups,
        store: PassageStore,
        tokenizer: Tokenizer,
        tuning: FineTuning,
        passages: int,
        seed: int,
        needs_teacher: bool,
    ):
        if needs_teacher and groups.positive_scores is None:
            raise ConfigError(
                "this objective needs teacher scores, and the training groups have none"
            )
        if needs_teacher:
            groups.check_scores()
        if not len(groups) or groups.negatives.lengths.min() < 1:
            raise ConfigError("a training group has no negative passage; mine candidates first")
        self.groups, self.store, self.tokenizer, self.tuning = groups, store, tokenizer, tuning
        self.passages, self.seed, self.needs_teacher = passages, seed, needs_teacher
        self.queries = _tokenised(groups.queries, tokenizer, tuning.query_length)
        pseudo = np.flatnonzero(groups.body_only)
        real = np.flatnonzero(~groups.body_only)
        count = round(tuning.batch_queries * tuning.pseudo_fraction) if len(pseudo) else 0
        self.streams = [(real, tuning.batch_queries - count), (pseudo, count)]
        for members, take in self.streams:
            if take and not len(members):
                raise ConfigError(
                    "fine_tuning.pseudo_fraction: there is no training query besides titles"
                )
        self.orders: dict[tuple[int, int], np.ndarray] = {}
        self._last: tuple[int, Draw] | None = None
        self.query_of, self.positives_of = _positives_by_query(groups)
        self.corruption = Corruption(
            groups, tuning.corrupted_positives, tuning.corrupted_scores, seed
        )

    @property
    def training_queries(self) -> int:
        """Of an epoch: titles that stand in for queries are not among them."""
        return len(self.streams[0][0])

    def _members(self, stream: int, step: int) -> list[tuple[int, int]]:
        """(epoch, group) of a stream at a step: slices of seeded permutations, one an epoch."""
        members, take = self.streams[stream]
        chosen = []
        for position in range(step * take, (step + 1) * take):
            epoch, place = divmod(position, len(members))
            chosen.append((epoch, int(members[self._permutation(stream, epoch)[place]])))
        return chosen

    def _permutation(self, stream: int, epoch: int) -> np.ndarray:
        """The order of a stream in an epoch; the last two a stream are kept."""
        if (stream, epoch) not in self.orders:
            for old in [key for key in self.orders if key[0] == stream and key[1] < epoch - 1]:
                del self.orders[old]
            order = np.random.default_rng([self.seed, stream, epoch]).permutation(
                len(self.streams[stream][0])
            )
            self.orders[stream, epoch] = order
        return self.orders[stream, epoch]

    def draw(self, step: int) -> Draw:
        """What step `step` (from 0) trains on; the last draw is kept.

        Raises:
            CollectionError: teacher scores that are not finite.
        """
        if self._last is None or self._last[0] != step:
            self._last = step, self._draw(step)
        return self._last[1]

    def _draw(self, step: int) -> Draw:
        chosen = [pair for stream in (0, 1) for pair in self._members(stream, step)]
        groups = np.array([g for _, g in chosen])
        rows, teacher = [], []
        positive_scores, negative_scores = self.groups.positive_scores, self.groups.negative_scores
        for epoch, g in chosen:
            pool = self.groups.negatives[g]
            picks = self._pick(g, np.random.default_rng([self.seed, epoch, g]))
            positive = self.corruption.positive(g)
            rows.append(np.concatenate([[positive], pool[picks]]))
            if self.needs_teacher and positive_scores is not None and negative_scores is not None:
                drawn = positive_scores[g : g + 1], negative_scores[g][picks]
                teacher.append(self.corruption.scores(g, np.concatenate(drawn)))
        rows_QK = np.array(rows, np.int64)
        body_QK = np.repeat(self.groups.body_only[groups][:, None], self.passages, axis=1)
        # The prompt and special tokens around a passage take their part of the limit.
        around = self.tokenizer.overhead("passage")
        lengths = around + self.store.lengths(rows_QK, self.tuning.passage_length - around, body_QK)
        with np.errstate(over="ignore"):  # refused below
            scale = np.float32(self.tuning.teacher_scale)
            teacher_QK = np.array(teacher, np.float32) * scale if teacher else None
        if teacher_QK is not None and not np.isfinite(teacher_QK).all():
            worst = groups[~np.isfinite(teacher_QK).all(1)][0]
            raise CollectionError(
                f"{self.groups.source}: query {self.groups.query_ids[worst]!r}: a teacher score "
                f"times fine_tuning.teacher_scale = {self.tuning.teacher_scale} is not finite"
            )
        lengths_T = np.concatenate([self.queries.lengths[groups], lengths.ravel()])
        return Draw(
            groups, rows_QK, body_QK, teacher_QK, length_groups(lengths_T, queries=len(groups))
        )

    def _pick(self, group: int, rng: np.random.Generator) -> np.ndarray:
        """Places of a group's negatives: mined ones, of which a share gives way to random ones."""
        wanted = self.passages - 1
        mined, total = int(self.groups.mined[group]), len(self.groups.negatives[group])
        random = int(rng.binomial(wanted, self.tuning.random_fraction)) if mined < total else 0
        random = wanted if not mined else random
        hard = (
            rng.choice(mined, wanted - random, replace=mined < wanted - random)
            if wanted > random
            else []
        )
        easy = (
            mined + rng.choice(total - mined, random, replace=total - mined < random)
            if random
            else []
        )
        return np.concatenate([hard, easy]).astype(np.int64)

    def collate(self, draw: Draw, rank: int = 0, world: int = 1) -> Batch:
        """Rank's texts of every group of like length, padded to the longest of the group.

        Raises:
            ConfigError: queries that the workers cannot share evenly.
        """
        count = len(draw.groups_Q)
        if count % world:
            raise ConfigError(
                f"fine_tuning.batch_queries = {count}: it must be divisible by {world} workers"
            )
        groups = []
        cut = draw.length_groups
        for places, texts, length in zip(
            cut.share(rank, world), cut.counts_G, cut.lengths_G, strict=True
        ):
            tokens = [self._text(draw, int(place)) for place in places]
            padded = pad(tokens, int(length), self.tokenizer.pad_id)
            if not tokens:
                padded = pad([np.empty(0, np.int64)], 1, self.tokenizer.pad_id)
            groups.append(GroupTexts(*padded, places, -(-int(texts) // world)))
        return Batch(tuple(groups), cut.dealt(world), draw.teacher_QK, self._excluded(draw))

    def _text(self, draw: Draw, place: int) -> np.ndarray:
        """Tokens of the text at a place of a step."""
        queries, limit = len(draw.groups_Q), self.tuning.passage_length
        if place < queries:
            return self.queries[draw.groups_Q[place]]
        row, body = draw.rows_QK.flat[place - queries], draw.body_QK.flat[place - queries]
        return self.tokenizer.framed(self.store.tokens(row, limit, body), "passage", limit)

    def _excluded(self, draw: Draw) -> np.ndarray:
        if self.tuning.keep_false_negatives:
            return np.zeros((len(draw.groups_Q), draw.rows_QK.size), bool)
        positives = [self.positives_of[int(q)] for q in self.query_of[draw.groups_Q]]
        starts = np.cumsum([0, *map(len, positives[:-1])])
        listed = np.concatenate(positives)[:, None] == draw.rows_QK.ravel()
        excluded = np.logical_or.reduceat(listed, starts, axis=0)
        queries = np.arange(len(positives))
        excluded[queries, queries * self.passages] = False
        return excluded


def _tokenised(texts: Sequence[str], tokenizer: Tokenizer, limit: int) -> Ragged:
    """Framed queries, tokenised some thousands at a time: what stays is their tokens."""
    parts = [
        Ragged.of(
            tokenizer.encode_framed(texts[start : start + _TOKENISED], "query", limit),
            tokenizer.dtype,
        )
        for start in range(0, len(texts), _TOKENISED)
    ]
    lengths = np.concatenate([part.lengths for part in parts])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged(np.concatenate([part.flat for part in parts]), offsets)


def _positives_by_query(groups: Groups) -> tuple[np.ndarray, Ragged]:
    """(number of each group's query [G], the positives of each query by its number)."""
    numbers: dict[str, int] = {}
    query_of = np.fromiter(
        (numbers.setdefault(query_id, len(numbers)) for query_id in groups.query_ids),
        np.int64,
        len(groups),
    )
    order = np.argsort(query_of, kind="stable")
    offsets = np.searchsorted(query_of[order], np.arange(len(numbers) + 1))
    return query_of, Ragged(groups.positives[order], offsets)


def pad(texts: list[np.ndarray], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [N, length], mask bool [N, length]), padded on the right; an empty text keeps one pad token."""
    ids = np.full((len(texts), length), pad_id, np.int64)
    mask = np.zeros((len(texts), length), bool)
    for i, text in enumerate(texts):
        ids[i, : len(text)] = text
        mask[i, : max(len(text), 1)] = True
    return ids, mask


@functools.lru_cache(maxsize=2)
def _block_order(seed: int, epoch: int, blocks: int) -> np.ndarray:
    return np.random.default_rng([seed, 7, epoch]).permutation(blocks)


@functools.lru_cache(maxsize=2)
def _block_split(seed: int, blocks: int, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) blocks: the held-out ones are the last of a seeded permutation."""
    order = np.random.default_rng([seed, 13]).permutation(blocks)
    return np.sort(order[: blocks - held_out]), order[blocks - held_out :]


def mask_tokens(
    ids: np.ndarray, selected: np.ndarray, mask_id: int, vocabulary: int, rng: np.random.Generator
) -> np.ndarray:
    """`ids` with, of its selected tokens, 80 % masked, 10 % replaced at random and 10 % kept (BERT)."""
    fate = rng.random(ids.shape)
    masked = ids.copy()
    masked[selected & (fate < 0.8)] = mask_id
    replaced = selected & (fate >= 0.8) & (fate < 0.9)
    masked[replaced] = rng.integers(0, vocabulary, replaced.sum())
    return masked


@dataclass(frozen=True)
class MaskedBlocks:
    """MNTP batches: masked token blocks and the positions whose tokens are to be predicted.

    Special tokens stand around passages where the tokenisation has them; prompts do not.

    Raises:
        ConfigError: fewer tokens than one block, or a batch that the workers cannot share.
    """

    store: PassageStore
    tokenizer: Tokenizer
    adaptation: Adaptation
    seed: int

    @property
    def steps_an_epoch(self) -> int:
        """Steps that see every training block once."""
        return -(-len(self.split[0]) // self.adaptation.batch_blocks)

    @property
    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """(training, held-out) blocks; at most a tenth of all, and never the only one, is held out."""
        length = self.adaptation.block_length
        blocks = self.store.blocks(length, *self.tokenizer.special)
        if blocks < 1:
            raise ConfigError(f"adaptation.block_length = {length}: the collection is shorter")
        held_out = min(self.adaptation.held_out_blocks, blocks // 10)
        return _block_split(self.seed, blocks, held_out)

    def batch(
        self, step: int, rank: int = 0, world: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids int64 [B, L] as the model sees them, original ids [B, L], selected bool [B, L]).

        20 % of the positions are selected; of these 80 % become the mask token, 10 % a random
        one, 10 % stay (BERT, as in 2502.15526). Position 0 is never selected: no position precedes it.
        """
        training, share = self.split[0], self._share(world)
        first = step * self.adaptation.batch_blocks + rank * share
        masked = []
        for place in range(first, first + share):
            epoch, position = divmod(place, len(training))
            block = int(training[_block_order(self.seed, epoch, len(training))[position]])
            masked.append(self._masked(block, np.random.default_rng([self.seed, 11, place])))
        inputs, originals, selections = zip(*masked, strict=True)
        return np.stack(inputs), np.stack(originals), np.stack(selections)

    def held_out_batches(
        self, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """A worker's shares of the held-out blocks, as `batch` gives them, masked alike every time.

        All workers get as many, of one shape: a share that has run out repeats the last block with
        nothing selected.
        """
        held_out, size = self.split[1], self.adaptation.batch_blocks
        share = self._share(world)
        for start in range(rank * share, len(held_out) + rank * share, size):
            masked = []
            for place in range(start, start + share):
                block = int(held_out[min(place, len(held_out) - 1)])
                rng = np.random.default_rng([self.seed, 17, place])
                inputs, originals, selected = self._masked(block, rng)
                masked.append((inputs, originals, selected & (place < len(held_out))))
            inputs, originals, selections = zip(*masked, strict=True)
            yield np.stack(inputs), np.stack(originals), np.stack(selections)

    def _share(self, world: int) -> int:
        """Blocks of a batch that each worker takes."""
        count = self.adaptation.batch_blocks
        if count % world:
            raise ConfigError(
                f"adaptation.batch_blocks = {count}: it must be divisible by {world} workers"
            )
        return count // world

    def _masked(
        self, block: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        config = self.adaptation
        around = self.tokenizer.special
        ids = self.store.block(block, config.block_length, *around).astype(np.int64)
        selected = rng.random(len(ids)) < config.selected_fraction
        selected[0] = False
        vocabulary = self.tokenizer.vocabulary
        return mask_tokens(ids, selected, self.tokenizer.mask_id, vocabulary, rng), ids, selected
