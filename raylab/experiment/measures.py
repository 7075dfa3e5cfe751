"""A measure of one's own, in a file of one's own; those of trec_eval are in `raylab.evaluation.measures`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from raylab.experiment.config import check
from raylab.experiment.references import check_reference


@dataclass(frozen=True)
class OwnMeasure:
    """One measure. It is plain data: a grid holds it whole, and any worker can load its function.

    Args:
        name: in tables and files.
        function: `package.module:function` of one query's passage ids in order, cut at `cutoff`, and of the grades
            of its judged passages (`{passage id: grade}`), to a number. A query without hits counts 0.
        cutoff: how many hits it sees; None: all of the run.
    """

    name: str
    function: str
    cutoff: int | None = None

    def __post_init__(self) -> None:
        right = "a word without blanks, slashes and commas"
        check(
            bool(self.name) and not set(self.name) & set(" /,*"), "measure.name", self.name, right
        )
        check_reference("measure.function", self.function)
        at_least = self.cutoff is None or self.cutoff >= 1
        check(at_least, "measure.cutoff", self.cutoff, "None or at least 1")

    def at(self, cutoff: int) -> OwnMeasure:
        """The same of the first hits alone, named as in `Judged@10`."""
        return dataclasses.replace(self, name=f"{self.name}@{cutoff}", cutoff=cutoff)
