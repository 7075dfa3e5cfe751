"""A measure of one's own in a file of its own: the share of the passages retrieved that are judged."""

from collections.abc import Mapping, Sequence

from raylab.experiment.measures import OwnMeasure

JUDGED = OwnMeasure("Judged", "tests.own.judged_share:judged")


def judged(passage_ids: Sequence[str], grades: Mapping[str, int]) -> float:
    return sum(passage_id in grades for passage_id in passage_ids) / len(passage_ids)
