"""A measure of one's own in a file of its own: the share of the passages retrieved that are judged."""

from raylab.evaluation.measures import Measure

JUDGED = Measure(
    "Judged", function=lambda ids, grades: sum(passage in grades for passage in ids) / len(ids)
)
