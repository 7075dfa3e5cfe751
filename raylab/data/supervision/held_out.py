"""Which queries of a teacher file are those of the collection, and which of these are kept for evaluation.

Texts are the same when they are after NFKC, without case, and with every run of white space as one blank.
A near-duplicate has the same words in any order and punctuation, or all but one of them: a word is added,
left out, spelt a little otherwise, or a short one is another short one (numbers are not).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from raylab.data.collections import TRAIN, Topics

_WORD = re.compile(r"\w+")
_ALIKE = 0.75  # of two spellings of a word
_SHORT_LETTERS = 3
_SHOWN = 5
HELD_OUT_RULE = "normalised texts"  # of identities: what is left out depends on it


def normalised(text: str) -> str:
    """A text as it is compared: NFKC, without case and invisible characters, single blanks."""
    if not text.isascii():
        folded = unicodedata.normalize("NFKC", text).casefold()
        visible = (c for c in folded if unicodedata.category(c) != "Cf")
        text = unicodedata.normalize("NFKC", "".join(visible))
    return " ".join(text.casefold().split())


def _words(text: str) -> tuple[str, ...]:
    """Of a normalised text, in order, without accents."""
    plain = text
    if not text.isascii():
        parts = unicodedata.normalize("NFD", text)
        plain = "".join(c for c in parts if not unicodedata.combining(c))
    return tuple(sorted(_WORD.findall(plain)))


def _keys(words: tuple[str, ...]) -> Iterator[int]:
    """Of the words, and of the words without each of them; independent of order within a process."""
    whole = sum(map(hash, words))
    yield whole
    if len(words) > 3:
        yield from (whole - hash(word) for word in dict.fromkeys(words))


def _nearly(words: tuple[str, ...], others: tuple[str, ...]) -> bool:
    own, theirs = Counter(words), Counter(others)
    added, missing = list((own - theirs).elements()), list((theirs - own).elements())
    if len(added) > 1 or len(missing) > 1:
        return False
    if not added or not missing:
        return True
    pair = added[0], missing[0]
    if any(word.isdigit() for word in pair):
        return False  # another number asks another question
    short = max(map(len, pair)) <= _SHORT_LETTERS
    return short or SequenceMatcher(None, *pair).ratio() >= _ALIKE


class HeldOut:
    """The queries of a collection by their normalised texts.

    Args:
        topics: by split; all but the training split are held out.
    """

    def __init__(self, topics: Iterable[Topics]):
        self.training: dict[str, str] = {}  # text -> id
        self.texts: set[str] = set()
        for split in topics:
            # Of two ids of one text the first counts.
            by_id = sorted(split.queries.items(), reverse=True)
            texts = {normalised(text): query_id for query_id, text in by_id}
            if split.split == TRAIN:
                self.training = texts
            else:
                self.texts |= set(texts)
        self._near: dict[int, list[str]] = {}
        for text in sorted(self.texts):
            for key in _keys(_words(text)):
                self._near.setdefault(key, []).append(text)

    def near(self, text: str) -> str | None:
        """The held-out query that a normalised text nearly is; None where there is none."""
        words = _words(text)
        for key in _keys(words):
            for other in self._near.get(key, ()):
                if _nearly(words, _words(other)):
                    return other
        return None


@dataclass
class GroupCounts:
    """What became of a file's groups."""

    groups: int = 0
    own_queries: int = 0  # of them: groups of queries that the collection does not have
    held_out: int = 0  # groups left out, since their queries are for evaluation
    near_duplicates: int = 0  # of the groups: their queries are nearly those for evaluation
    named: list[str] = field(default_factory=list)  # some of these, as they stand in the file

    def note_near(self, text: str) -> None:
        """Count a group whose query is nearly one for evaluation."""
        self.near_duplicates += 1
        if len(self.named) < _SHOWN and text not in self.named:
            self.named.append(text)

    def facts(self) -> dict[str, int | list[str]]:
        """For the manifest of the groups."""
        return {
            "own_queries": self.own_queries,
            "held_out_for_evaluation": self.held_out,
            "near_duplicates_of_held_out": self.near_duplicates,
            "near_duplicates_named": self.named,
        }


def group_notes(meta: Mapping[str, Any]) -> list[str]:
    """What a groups artifact tells of its queries, a sentence each; nothing for what was mined here."""
    if "held_out_for_evaluation" not in meta:
        return []
    told = [
        f"{meta['held_out_for_evaluation']:,} groups left out: their queries are for evaluation",
        f"{meta['own_queries']:,} groups are of queries that the collection does not have",
    ]
    if count := meta.get("near_duplicates_of_held_out"):
        named = ", ".join(repr(text) for text in meta["near_duplicates_named"])
        told.append(
            f"WARNING {count:,} groups are trained on whose queries are nearly those for evaluation: "
            f"{named}{', ...' if count > len(meta['near_duplicates_named']) else ''}"
        )
    return told
