"""How training groups are made: by which mining, teacher and file; and where they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raylab.data.supervision.held_out import HELD_OUT_RULE
from raylab.data.supervision.published import form_of
from raylab.experiment.config import ComputeDtype, ConfigError
from raylab.experiment.faults import fault_identity
from raylab.models.teachers import MAX_TOKENS, teacher_fingerprint
from raylab.stages.mine import (
    Mining,
    candidates_address,
)
from raylab.stages.shards import Pool, local_pool
from raylab.storage.artifacts import Address, Artifact
from raylab.storage.checksums import checksum
from raylab.storage.store import Store

SHIPPED = "shipped"  # the scores that come with an embedded collection
SHIPPED_SCORES = "teacher.parquet"


@dataclass(frozen=True)
class Teaching:
    """How a collection's training groups are made.

    `teacher`: None (no scores), `SHIPPED` (the embedded collection's own), a file of scores or of
    training groups (`raylab.data.supervision.published`), or a model (`raylab.models.teachers`).
    `assets`: the embedded collection's folder, for `SHIPPED`.
    `compute_dtype`: of a teacher that is a model.
    `margin`: leave out negatives that the teacher scores above the positive minus this.
    """

    store: Store
    collection: Artifact
    mining: Mining
    teacher: str | None
    models_dir: str | None
    actors: int | None  # None: as many as the cluster takes
    assets: Path | None = None
    margin: float | None = None
    compute_dtype: ComputeDtype = "float32"
    pool: Pool = field(default=local_pool, compare=False)

    def scores_file(self) -> Path | None:
        """The file that holds the scores, or the groups, already, if one does.

        Raises:
            ConfigError: it is not there.
        """
        if self.teacher == SHIPPED:
            if self.assets is None or not (self.assets / SHIPPED_SCORES).exists():
                name = self.collection.manifest["name"]
                raise ConfigError(
                    f"collection {name!r} ships no teacher scores; name a teacher that is a model, or a file of scores"
                )
            return self.assets / SHIPPED_SCORES
        if self.teacher is not None and Path(self.teacher).is_file():
            return Path(self.teacher)
        if self.teacher is not None and self.teacher.endswith(".parquet"):
            raise ConfigError(f"teacher {self.teacher}: no such file")
        return None

    def address(self) -> Address:
        """Where the groups stand; depends on addresses of candidates and scores, made or not."""
        inputs = {"collection": self.collection.fingerprint}
        scores = self.scores_file()
        if scores is not None:
            inputs["scores"] = checksum(scores)
        else:
            candidates = candidates_address(self.collection, self.mining, self.models_dir)
            inputs["candidates"] = candidates.fingerprint
            if self.teacher is not None:
                inputs["scores"] = self.scores_address(candidates).fingerprint
        identity = self.mining.identity(self.models_dir)
        if scores is not None:
            identity |= fault_identity(self.mining.on_fault)
            if self.teacher != SHIPPED and form_of(scores) == "groups":
                identity["held_out"] = HELD_OUT_RULE
        if self.margin is not None:
            identity["margin"] = self.margin
        return Address("groups", self.collection.manifest["name"], identity, inputs)

    def scores_address(self, candidates: Address | Artifact) -> Address:
        """Where the scores of a teacher that is a model stand."""
        assert self.teacher is not None
        identity = {
            "teacher": teacher_fingerprint(self.teacher, self.models_dir),
            "max_tokens": MAX_TOKENS,
            "compute_dtype": self.compute_dtype,
        }
        inputs = {"candidates": candidates.fingerprint}
        return Address("scores", self.collection.manifest["name"], identity, inputs)
