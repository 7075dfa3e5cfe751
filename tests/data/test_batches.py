"""Tokens and batches: exact texts, determinism by (seed, step), independence of the number of workers."""

import dataclasses
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raylab.data.faults import CollectionError
from raylab.data.supervision.batches import MaskedBlocks, TrainingBatches
from raylab.data.supervision.groups import Groups, Ragged, join_arrays, open_groups, write_arrays
from raylab.data.supervision.teacher import GROUP_SCHEMA
from raylab.data.tokenizer import Tokenizer
from raylab.data.tokens import PassageStore, write_store
from raylab.experiment.config import Adaptation, ConfigError, FineTuning, Tokenization
from tests.batch_texts import texts_of

IDS = [f"p{i:02d}" for i in range(30)]


@pytest.fixture(scope="module")
def tokenizer(model_folder) -> Tokenizer:
    return Tokenizer(str(model_folder))


@pytest.fixture
def store(tmp_path) -> PassageStore:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, 300, rng.integers(3, 40)) for _ in IDS]
    titles = [min(2, len(t) - 1) for t in tokens]
    halves = [(IDS[:13], tokens[:13], titles[:13]), (IDS[13:], tokens[13:], titles[13:])]
    assert write_store(tmp_path / "s", halves, np.uint16) == 30
    opened = PassageStore(tmp_path / "s")
    opened.truth = tokens
    return opened


@pytest.fixture
def groups(store) -> Groups:
    rng = np.random.default_rng(1)
    positives = np.arange(20)
    return Groups(
        query_ids=[f"q{i % 18}" for i in range(20)],
        queries=[f"cell gene {i}" for i in range(20)],
        body_only=np.arange(20) >= 10,
        positives=positives,
        negatives=Ragged.of(
            [rng.permutation(np.setdiff1d(np.arange(30), [p]))[:6] for p in positives], np.int64
        ),
        mined=np.full(20, 4),
        positive_scores=rng.normal(size=20).astype(np.float32),
        negative_scores=Ragged.of([rng.normal(size=6) for _ in positives], np.float32),
    )


def batches(groups, store, tokenizer, **changes) -> TrainingBatches:
    tuning = FineTuning(
        **{"batch_queries": 8, "negatives": 3, "pseudo_fraction": 0.5, "teacher_scale": 2.0}
        | changes
    )
    return TrainingBatches(groups, store, tokenizer, tuning, 4, seed=3, needs_teacher=True)


def test_the_store_gives_back_every_passage(store):
    for row, truth in enumerate(store.truth):
        assert store.tokens(row, 1000).tolist() == truth.tolist()
        assert store.tokens(row, 5).tolist() == truth[:5].tolist()
        assert (
            store.tokens(row, 1000, body_only=True).tolist()
            == truth[min(2, len(truth) - 1) :].tolist()
        )
    rows = np.arange(30)
    assert store.lengths(rows, 12).tolist() == [min(len(t), 12) for t in store.truth]
    assert store.rows(["p07", "p29"]).tolist() == [7, 29]
    assert np.concatenate([store.block(i, 10) for i in range(store.blocks(10))]).tolist() == (
        np.concatenate(store.truth)[: 10 * store.blocks(10)].tolist()
    )


def test_a_passage_without_a_body_gives_its_title_in_full(tmp_path):
    write_store(tmp_path, [(["a", "b"], [np.arange(9), np.arange(4)], [9, 1])], np.uint16)
    store = PassageStore(tmp_path)
    rows, body = np.array([0, 1]), np.array([True, True])
    assert [len(store.tokens(row, 100, True)) for row in rows] == [9, 3]
    assert store.lengths(rows, 100, body).tolist() == [9, 3]


@pytest.mark.parametrize("unknown", ["p", "p99", "a", "z", "p01\0"])
def test_unknown_passages_are_named(store, unknown):
    with pytest.raises(CollectionError, match=re.escape(f"unknown passage {unknown!r}")):
        store.rows(["p01", unknown])


def test_duplicate_ids_are_refused(tmp_path):
    shard = (["a", "a"], [np.array([1]), np.array([2])], [0, 0])
    with pytest.raises(CollectionError, match="duplicate or unsorted passage id 'a'"):
        write_store(tmp_path, [shard], np.uint16)


def test_a_draw_depends_on_seed_and_step_alone(groups, store, tokenizer):
    first, second = batches(groups, store, tokenizer), batches(groups, store, tokenizer)
    for _ in range(5):
        second.draw(0)
    for step in (7, 2, 11):
        a, b = first.draw(step), second.draw(step)
        assert a.rows_QK.tolist() == b.rows_QK.tolist()
        assert a.groups_Q.tolist() == b.groups_Q.tolist()


def test_a_step_is_made_again_from_seed_and_step(groups, store, tokenizer):
    """As written down here, apart from the code: runs that are resumed years later depend on it."""
    seed, passages, pools = 3, 4, [len(n) for n in groups.negatives]
    made = batches(groups, store, tokenizer, batch_queries=8, pseudo_fraction=0.25)
    for step in (0, 1, 9, 30):
        listed = []
        for stream, members, take in ((0, range(10), 6), (1, range(10, 20), 2)):
            for position in range(step * take, step * take + take):
                epoch, place = divmod(position, len(members))
                order = np.random.default_rng([seed, stream, epoch]).permutation(len(members))
                group = members[order[place]]
                random = np.random.default_rng([seed, epoch, group])
                easy = random.binomial(passages - 1, made.tuning.random_fraction)
                hard = random.choice(4, passages - 1 - easy, replace=False) if easy < 3 else []
                more = 4 + random.choice(pools[group] - 4, easy, replace=easy > 2) if easy else []
                picks = np.concatenate([hard, more]).astype(int)
                listed.append([groups.positives[group], *groups.negatives[group][picks]])
        assert made.draw(step).rows_QK.tolist() == np.array(listed).tolist()


def written(folder, store, rows, rows_a_shard: int, row_group: int) -> Groups:
    """Groups in Parquet shards of any size, each made into arrays on its own, as a worker opens them."""
    folder.mkdir()
    table = pa.Table.from_pylist(rows, schema=GROUP_SCHEMA)
    for number, start in enumerate(range(0, len(rows), rows_a_shard)):
        part, path = table.slice(start, rows_a_shard), folder / f"groups-{number:05d}.parquet"
        pq.write_table(part, path, row_group_size=row_group)
    shards = sorted(folder.glob("*.parquet"))
    for shard in shards:
        write_arrays([shard], store.rows, folder / shard.stem)
    join_arrays([folder / shard.stem for shard in shards], folder / "arrays")
    write_arrays(shards, store.rows, folder / "at-once")
    for path in (folder / "at-once").iterdir():
        assert (folder / "arrays" / path.name).read_bytes() == path.read_bytes()
    return open_groups(folder / "arrays")


def same_texts(workers, whole) -> None:
    """Each text of the step at one worker, padded as it is by one alone; all know where all stand."""
    texts = texts_of(whole)
    shared = texts_of(*workers)
    assert all(np.array_equal(a, b) for a, b in zip(shared, texts, strict=True))
    for rank, part in enumerate(workers):
        own = np.concatenate([group.places_B for group in part.groups])
        assert own.tolist() == part.places_WB[rank].tolist()
        assert np.array_equal(part.places_WB, workers[0].places_WB)
        assert [group.most for group in part.groups] == [
            max(len(other.groups[g].places_B) for other in workers) for g in range(len(part.groups))
        ]
        for group, of_all in zip(part.groups, whole.groups, strict=True):
            width = of_all.ids_BL.shape[1] if len(group.places_B) else 1
            assert group.ids_BL.shape == group.mask_BL.shape
            assert group.ids_BL.shape == (max(len(group.places_B), 1), width)


def test_batches_do_not_depend_on_workers_blocks_or_what_was_drawn_before(
    tmp_path, store, tokenizer
):
    rng = np.random.default_rng(5)
    rows = []
    for g in range(40):
        ids = [IDS[i] for i in rng.permutation(30)[: rng.integers(3, 12)]]
        scores = rng.normal(size=len(ids)).astype(np.float32).tolist()
        rows.append(
            {"query_id": f"q{g % 33}", "query": f"cell {g}", "body_only": g % 3 == 0, "mined": 2,
             "positive": ids[0], "negatives": ids[1:], "positive_score": scores[0],
             "negative_scores": scores[1:]}
        )  # fmt: skip
    one = batches(written(tmp_path / "one", store, rows, 40, 40), store, tokenizer)
    many = batches(written(tmp_path / "many", store, rows, 7, 2), store, tokenizer)
    for step in range(20):
        one.draw(step)
    for step in (17, 3, 44):
        whole = one.collate(one.draw(step))
        for world in (1, 2, 4):
            parts = [many.collate(many.draw(step), rank, world) for rank in range(world)]
            same_texts(parts, whole)
            for part in parts:
                assert np.array_equal(part.teacher_QK, whole.teacher_QK)
                assert np.array_equal(part.excluded_QP, whole.excluded_QP)


def test_groups_stay_in_their_files(tmp_path, store, tokenizer):
    """Of half a million queries with 200 candidates each a worker holds what it draws."""
    ids = IDS[:20]
    rows = [
        {"query_id": f"q{g}", "query": "cell", "body_only": False, "positive": ids[0],
         "negatives": ids[1:], "mined": 19, "positive_score": 1.0, "negative_scores": [0.5] * 19}
        for g in range(5)
    ]  # fmt: skip
    groups = written(tmp_path / "g", store, rows, 5, 5)
    for array in (
        groups.negatives.flat,
        groups.negatives.offsets,
        groups.negative_scores.flat,
        groups.positives,
        groups.queries.encoded.flat,
    ):
        while not isinstance(array, np.memmap):
            assert array.base is not None
            array = array.base
        assert array.mode == "r"


def test_workers_share_one_batch(groups, store, tokenizer):
    made = batches(groups, store, tokenizer)
    draw = made.draw(4)
    whole = made.collate(draw)
    texts, K = texts_of(whole), made.passages
    for place, row in enumerate(draw.rows_QK.ravel()):
        body = int(draw.body_QK.flat[place]) * min(2, len(store.truth[row]) - 1)
        assert texts[8 + place].tolist() == store.truth[row][body:].tolist()
    assert len(texts) == 8 + 8 * K
    for world in (2, 4, 8):
        parts = [made.collate(draw, rank, world) for rank in range(world)]
        same_texts(parts, whole)
    with pytest.raises(ConfigError, match="divisible by 3 workers"):
        made.collate(draw, 0, 3)


def test_an_epoch_sees_every_group_once_and_negatives_are_drawn_again(groups, store, tokenizer):
    made = batches(groups, store, tokenizer, batch_queries=4, pseudo_fraction=0.5)
    epochs = [
        np.concatenate([made.draw(step).groups_Q for step in range(e * 5, e * 5 + 5)])
        for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    drawn = {}
    for step in range(10):
        draw = made.draw(step)
        for group, rows in zip(draw.groups_Q, draw.rows_QK, strict=True):
            assert rows[0] == groups.positives[group]
            assert set(rows[1:]) <= set(groups.negatives[group])
            drawn.setdefault(int(group), []).append(sorted(rows[1:]))
    assert any(a != b for a, b in drawn.values())


def test_teacher_scores_stay_aligned_with_their_passages(groups, store, tokenizer):
    draw = batches(groups, store, tokenizer).draw(0)
    for group, rows, scores in zip(draw.groups_Q, draw.rows_QK, draw.teacher_QK, strict=True):
        known = dict(zip(groups.negatives[group], groups.negative_scores[group], strict=True))
        known[groups.positives[group]] = groups.positive_scores[group]
        assert scores == pytest.approx([2.0 * known[r] for r in rows], rel=1e-6)


def test_other_positives_of_a_query_are_no_negatives(groups, store, tokenizer):
    made = batches(groups, store, tokenizer, batch_queries=20, pseudo_fraction=0.5)
    draw = made.draw(0)
    excluded = made.collate(draw).excluded_QP
    flat = draw.rows_QK.ravel()
    for q, group in enumerate(draw.groups_Q):
        own = {
            p
            for i, p in zip(groups.query_ids, groups.positives, strict=True)
            if i == groups.query_ids[group]
        }
        for column, row in enumerate(flat):
            assert excluded[q, column] == (row in own and column != q * 4)


def test_missing_teacher_scores_are_refused(groups, store, tokenizer):
    bare = dataclasses.replace(groups, positive_scores=None, negative_scores=None)
    with pytest.raises(ConfigError, match="needs teacher scores"):
        batches(bare, store, tokenizer)


@pytest.mark.parametrize("fault", ["nan", "inf", "short", "long", "positive", "groups"])
def test_teacher_scores_that_cannot_be_are_refused_with_their_query(
    groups, store, tokenizer, fault
):
    """Where batches are made, too: groups need not come from a file."""
    negative = [scores.copy() for scores in groups.negative_scores]
    positive = groups.positive_scores.copy()
    if fault in ("nan", "inf"):
        negative[13][2] = float(fault)
    elif fault == "short":
        negative[13] = negative[13][:-1]
    elif fault == "long":
        negative[13] = np.append(negative[13], 0.0)
    elif fault == "positive":
        positive[13] = np.nan
    else:
        negative = negative[:13]
    bad = dataclasses.replace(
        groups,
        negative_scores=Ragged.of(negative, np.float32),
        positive_scores=positive,
        source="lab/groups/x",
    )
    with pytest.raises(CollectionError) as error:
        batches(bad, store, tokenizer)
    assert str(error.value).startswith("lab/groups/x: query 'q13': ")


def test_a_scale_that_overflows_is_refused_when_drawn(groups, store, tokenizer):
    made = batches(groups, store, tokenizer, teacher_scale=1e39)
    with pytest.raises(CollectionError, match=r"query 'q\d+': a teacher score times"):
        made.draw(0)


def test_scores_that_are_not_asked_for_are_not_checked(groups, store, tokenizer):
    negative = [scores * np.nan for scores in groups.negative_scores]
    bare = dataclasses.replace(groups, negative_scores=Ragged.of(negative, np.float32))
    tuning = FineTuning(batch_queries=8, negatives=3)
    made = TrainingBatches(bare, store, tokenizer, tuning, 4, seed=3, needs_teacher=False)
    assert made.draw(0).teacher_QK is None


def test_a_draw_that_is_asked_for_twice_is_made_once(groups, store, tokenizer):
    made = batches(groups, store, tokenizer)
    assert made.draw(3) is made.draw(3)
    assert made.draw(4) is not made.draw(3)


def test_masking_follows_the_paper(store, tokenizer):
    adaptation = Adaptation(steps=1, batch_blocks=8, block_length=16, selected_fraction=0.2)
    blocks = MaskedBlocks(store, tokenizer, adaptation, seed=0)
    made = [blocks.batch(step) for step in range(60)]
    inputs, originals, selected = (np.concatenate([m[i] for m in made]) for i in range(3))
    assert not selected[:, 0].any()
    assert (inputs == originals)[~selected].all()
    share = selected[:, 1:].mean()
    masked = (inputs == tokenizer.mask_id)[selected].mean()
    kept = (inputs == originals)[selected].mean()
    replaced = ((inputs != originals) & (inputs != tokenizer.mask_id))[selected].mean()
    assert share == pytest.approx(0.2, abs=0.02)
    assert masked == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1, abs=0.03)
    assert replaced == pytest.approx(0.1, abs=0.03)
    halves = [blocks.batch(3, rank, 2) for rank in (0, 1)]
    assert all(np.array_equal(np.concatenate([h[i] for h in halves]), made[3][i]) for i in range(3))


def test_training_texts_stand_in_the_contracts_frame(model_folder, groups, store):
    """The prompt is what encoding puts before a text too, and counts toward the limits."""
    plain = Tokenizer(str(model_folder))
    framed = Tokenizer(
        str(model_folder), tokenization=Tokenization(query_prompt="q: ", passage_prompt="doc: ")
    )
    before_q, before_p = (plain.encode([prompt])[0].tolist() for prompt in ("q:", "doc:"))
    made = batches(groups, store, framed, query_length=9, passage_length=11)
    draw = made.draw(0)
    texts = texts_of(made.collate(draw))
    for row, ids in zip(draw.rows_QK.ravel(), texts[8:], strict=True):
        assert len(ids) <= 11
        assert ids[: len(before_p)].tolist() == before_p
        text = store.truth[row].tolist()
        assert ids[len(before_p) :].tolist() in (
            text[: 11 - len(before_p)],
            text[2:][: 11 - len(before_p)],  # without its title
        )
    for ids in texts[:8]:
        assert len(ids) <= 9
        assert ids[: len(before_q)].tolist() == before_q


@pytest.mark.parametrize(("before", "after"), [([7], []), ([], [8]), ([7, 9], [8])])
def test_special_tokens_stand_around_the_passages_of_a_block(store, before, after):
    """As BOS does between the passages of MNTP (2502.15526)."""
    around = np.array(before, np.uint16), np.array(after, np.uint16)
    whole = [token for text in store.truth for token in (*before, *text.tolist(), *after)]
    for length in (1, 4, 10, 64):
        count = store.blocks(length, *around)
        assert count == len(whole) // length
        blocks = [store.block(i, length, *around) for i in range(count)]
        assert np.concatenate(blocks).tolist() == whole[: count * length]


def test_other_positives_may_stay_among_the_negatives(groups, store, tokenizer):
    left_out = batches(groups, store, tokenizer, batch_queries=20)
    kept = batches(groups, store, tokenizer, batch_queries=20, keep_false_negatives=True)
    excluded, all_kept = (made.collate(made.draw(0)).excluded_QP for made in (left_out, kept))
    assert excluded.any()
    assert not all_kept.any()
    assert excluded.shape == all_kept.shape


def test_special_tokens_are_counted_too(model_folder):
    tokenizer = Tokenizer(str(model_folder), tokenization=Tokenization(special_tokens=True))
    assert tokenizer.overhead("query") == 0  # this tokenizer has none of its own
    assert tokenizer.framed(np.arange(9), "query", 4).tolist() == [0, 1, 2, 3]
