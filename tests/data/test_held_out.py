"""No group of a teacher file trains on a held-out query, however its text is spelt; what is nearly one is named."""

import json
import unicodedata

import numpy as np
import pytest

from raylab.data.collections import Topics
from raylab.data.supervision.held_out import GroupCounts, HeldOut, group_notes, normalised
from raylab.data.supervision.published import read_groups_of

TEST = "What does the café's 1ﬁrst éclair cost in Ålesund?"
TRAIN = "How do enzymes fold proteins?"
HELD_OUT = HeldOut([Topics("train", {"t1": TRAIN}, {}), Topics("test", {"e1": TEST}, {})])
KNOWN = np.array([b"a", b"b"])

SPELLINGS = {
    "as it is": str,
    "blank at its end": lambda text: text + " ",
    "blanks around": lambda text: f" \t{text}\n",
    "two blanks within": lambda text: text.replace(" ", "  "),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "ideographic spaces": lambda text: text.replace(" ", "\u3000"),
    "composed": lambda text: unicodedata.normalize("NFC", text),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "compatible": lambda text: unicodedata.normalize("NFKC", text),
    "small letters": str.lower,
    "capitals": lambda text: text.replace("ﬁ", "fi").upper(),
    "zero-width space": lambda text: text.replace(" ", " \u200b"),
    "soft hyphen": lambda text: text.replace("cl", "c\u00adl").replace("enz", "en\u00adz"),
    "full width": lambda text: text.replace("W", "\uff37").replace("H", "\uff28"),
}


def groups(tmp_path, texts, held_out=HELD_OUT):
    tally, path = GroupCounts(), tmp_path / "groups.jsonl"
    records = [{"question": text, "pos_pid": "a", "neg_pids": ["b"]} for text in texts]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rows = [row for batch in read_groups_of(path, held_out, KNOWN, tally) for row in batch]
    return rows, tally


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_a_held_out_query_are_left_out_and_of_a_training_query_joined(
    tmp_path, spelling
):
    spell = SPELLINGS[spelling]
    rows, tally = groups(tmp_path, [spell(TEST), spell(TRAIN)])
    assert [row["query_id"] for row in rows] == ["t1"]
    assert tally == GroupCounts(groups=1, held_out=1)


def test_a_text_that_is_held_out_as_well_is_not_trained_on(tmp_path):
    both = HeldOut([Topics("train", {"t": "Why so?"}, {}), Topics("valid", {"v": "why  so?"}, {})])
    rows, tally = groups(tmp_path, ["Why so?"], both)
    assert (rows, tally.held_out) == ([], 1)


QUERY = "which enzymes of yeast fold proteins in the cell"


@pytest.mark.parametrize(
    ("text", "near"),
    [
        (f"{QUERY}?", True),
        ("in the cell, which enzymes of yeast fold proteins", True),
        ("which enzyme of yeast fold proteins in the cell", True),
        ("which enzymes of yeast fold proteins in a cell", True),
        ("which enzymes fold proteins in the cell of yeast today", True),
        ("which hormones of yeast move proteins in the cell", False),
        ("which enzymes of bacteria fold proteins in the cell", False),
        ("which 2 enzymes of yeast fold proteins in the cell", True),
        ("how do plants make sugar", False),
    ],
)
def test_near_duplicates_are_counted_and_named(tmp_path, text, near):
    rows, tally = groups(tmp_path, [text], HeldOut([Topics("test", {"e": QUERY}, {})]))
    assert len(rows) == 1  # trained on all the same
    assert tally.near_duplicates == near
    assert tally.named == ([text] if near else [])
    told = " ".join(group_notes(tally.facts()))
    assert (repr(text) in told) == near
    assert "1 groups are of queries that the collection does not have" in told


def test_normalisation_is_stable_and_keeps_different_texts_apart():
    for spell in SPELLINGS.values():
        assert normalised(normalised(spell(TEST))) == normalised(spell(TEST)) == normalised(TEST)
    assert len({normalised(text) for text in ("a b", "ab", "a-b", "a b?", "b a")}) == 5


def test_another_number_is_another_question(tmp_path):
    held_out = HeldOut([Topics("test", {"e": "which page tells of apple number 1"}, {})])
    _, tally = groups(tmp_path, ["which page tells of apple number 2"], held_out)
    assert tally.near_duplicates == 0
