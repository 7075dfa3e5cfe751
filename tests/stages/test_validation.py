"""Which queries a run is validated on."""

from raylab.data.collections import Topics
from raylab.stages.validation import MOST_QUERIES, validation_queries


def topics(split: str, count: int) -> Topics:
    queries = {f"q{i:03d}": f"text {i}" for i in range(count)}
    grades = {q: {f"p{i}": 1, f"x{i}": 2, f"no{i}": 0} for i, q in enumerate(queries)}
    return Topics(split, queries, grades)


def test_they_are_of_the_validation_split_and_the_same_every_time():
    splits = {name: topics(name, 200) for name in ("test", "valid", "dev")}
    chosen = validation_queries("own", splits)
    assert chosen is not None
    assert chosen.split == "valid"
    assert len(chosen.query_ids) == MOST_QUERIES == len(set(chosen.query_ids))
    assert chosen == validation_queries("own", dict(reversed(splits.items())))
    for query_id, text, relevant in zip(
        chosen.query_ids, chosen.texts, chosen.relevant, strict=True
    ):
        number = int(query_id[1:])
        assert text == f"text {number}"
        assert relevant == (f"x{number}", f"p{number}")  # best first; what is judged 0 is not
        assert {f"p{number}", f"x{number}"} <= set(chosen.barred)


def test_dev_stands_in_and_test_never_does():
    dev = validation_queries("own", {"dev": topics("dev", 5), "test": topics("test", 5)})
    assert dev is not None
    assert dev.split == "dev"
    assert len(dev.query_ids) == 5
    assert validation_queries("own", {"test": topics("test", 5)}) is None


def test_a_query_without_a_relevant_passage_is_passed_over():
    one = topics("valid", 3)
    one.qrels["q001"] = {"p1": 0}
    chosen = validation_queries("own", {"valid": one})
    assert chosen is not None
    assert set(chosen.query_ids) == {"q000", "q002"}
    one.qrels.update({q: {"p": 0} for q in one.queries})
    assert validation_queries("own", {"valid": one}) is None


def test_where_queries_are_passages_none_is_its_own_answer():
    """ArguAna's: a query's own passage is neither relevant nor a negative."""
    one = Topics("valid", {"d1": "text"}, {"d1": {"d1": 1, "d2": 1}})
    chosen = validation_queries("arguana", {"valid": one})
    assert chosen is not None
    assert chosen.relevant == (("d2",),)
    assert "d1" in chosen.barred
