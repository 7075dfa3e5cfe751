"""Excerpts of documents, and a teacher's embeddings of them."""

import numpy as np
import pytest

from raylab.data.records import Passage
from raylab.experiment.config import ConfigError
from raylab.training.excerpts import Excerpts, cut
from raylab.training.taught import teacher_embeddings

CONFIG = Excerpts(short=3, shortest=2, longest=5, long=2, long_shortest=6, long_longest=9, seed=1)


def document(number: int, words: int, title: str = "") -> Passage:
    """Words say whose they are and where: `7-0 7-1 ...`."""
    return Passage(0, f"d{number}", title, " ".join(f"{number}-{i}" for i in range(words)))


DOCUMENTS = [document(1, 30, "first title"), document(2, 5), document(3, 6), document(4, 80)]


def test_excerpts_are_pieces_of_their_document_within_their_lengths():
    texts = cut(DOCUMENTS, CONFIG)
    assert len(texts) == 3  # the second is too short
    assert texts.short_NS.shape == (3, 4)
    assert texts.long_NL.shape == (3, 3)
    lengths = set()
    for row, number in enumerate((1, 3, 4)):
        crops = [*texts.short_NS[row, 1:], *texts.long_NL[row, 1:]]
        for kind, place in enumerate(crops):
            words = texts.texts[place].split()
            owners, places = zip(*(word.split("-") for word in words), strict=True)
            assert set(owners) == {str(number)}
            assert (np.diff(np.array(places, int)) == 1).all()
            low, high = (2, 5) if kind < 3 else (6, 9)
            assert low <= len(words) <= high
            lengths.add(len(words))
    assert {3, 4, 7, 8} <= lengths
    assert sorted([*texts.short_NS.ravel(), *texts.long_NL.ravel()]) == list(
        range(len(texts.texts))
    )


def test_a_title_is_a_short_excerpt_and_begins_the_first_long_one():
    texts = cut(DOCUMENTS, CONFIG)
    assert texts.texts[texts.short_NS[0, 0]] == "first title"
    assert texts.texts[texts.long_NL[0, 0]].startswith("first title 1-0 1-1")
    assert texts.texts[texts.long_NL[2, 0]].startswith("4-0 4-1")  # no title
    assert texts.short_NS[2, 0] != texts.short_NS[2, 1]


def test_a_documents_excerpts_depend_on_seed_and_place_alone():
    whole, fewer = cut(DOCUMENTS, CONFIG), cut(DOCUMENTS[:3], CONFIG)
    assert whole.texts[: len(fewer.texts)] == fewer.texts
    other = cut(DOCUMENTS, Excerpts(**{**vars(CONFIG), "seed": 2}))
    assert other.texts != whole.texts


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"short": 0}, "short"), ({"longest": 7}, "longest"), ({"long_longest": 39}, "long_longest")],
)
def test_lengths_that_cannot_be_are_refused(changes, named):
    with pytest.raises(ConfigError, match=named):
        Excerpts(**changes)


class Teacher:
    """Embeds a text by its length; counts what it is asked."""

    def __init__(self):
        self.asked: list[str] = []

    def embed(self, texts, batch_tokens=0):
        self.asked += texts
        return np.array([[len(text), 1.0] for text in texts], np.float32)


def test_embeddings_are_kept_and_asked_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr("raylab.training.taught._PIECE", 4)
    texts = ["x" * n for n in range(10)]
    teacher, opened = Teacher(), []

    def open_teacher():
        opened.append(1)
        return teacher

    def embeddings(fingerprint, wanted):
        return teacher_embeddings(open_teacher, fingerprint, wanted, tmp_path / "c", lambda _: None)

    first = embeddings("a", texts)
    assert first.dtype == np.float16
    assert first[:, 0].tolist() == list(range(10))
    assert len(opened) == 1
    assert teacher.asked == texts
    np.testing.assert_array_equal(embeddings("a", texts), first)
    assert len(opened) == 1  # nothing was missing
    # Stopped after a piece: the others are asked for; so is a text that has changed, and another teacher's.
    sorted((tmp_path / "c").glob("*.npy"))[0].unlink()
    embeddings("a", texts)
    assert len(teacher.asked) in (10 + 4, 10 + 2)
    teacher.asked.clear()
    embeddings("a", [*texts[:4], "other", *texts[5:]])
    assert teacher.asked == ["other", *texts[5:8]]
    teacher.asked.clear()
    embeddings("b", texts)
    assert teacher.asked == texts
