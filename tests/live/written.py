"""A laboratory as its driver and workers write it, for loggers to be told of."""

import json
import os
from collections import defaultdict
from pathlib import Path

from raylab.live import facts
from raylab.live.facts import LivePlan, PlannedCell, PlannedRun, Point, record
from raylab.stages.stage import Stage, write_list
from raylab.storage.artifacts import Address
from raylab.storage.merging import add_rows
from raylab.storage.store import Store
from raylab.storage.tables import RESULTS, Result

EARLIER, COMMAND = "000000000000100-000000100", "000000000000200-000000200"
FIRST, SECOND = "000000000000300-000000300", "000000000000400-000000400"
CELL, SMALL, MNTP = (
    "sparse-tiny-cl-seed0",
    "sparse-tiny-cl-half-seed0",
    "mntp-tiny-0123456789abcdef",
)
IDENTITY = {"head": {"name": "sparse"}, "fine_tuning": {"learning_rate": 0.002, "targets": ["q"]}}
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


class Written:
    """A laboratory of one cell, as its driver and workers write it."""

    def __init__(self, root: Path):
        self.store = Store(str(root))
        self.address = Address("retriever", CELL, IDENTITY, {})
        self.key = self.address.path.rpartition("/")[2]
        self.lines: dict[str, list[str]] = defaultdict(list)
        write_list(self.store, [Stage("fine-tune", self.address, (), None)])

    def plan(self, *cells: PlannedCell, session: str = COMMAND) -> None:
        cells = cells or (self.cell(CELL, 100),)
        runs = [PlannedRun(run, "train", 9.0, 1, (), 0.0, 9.0) for run in {c.run for c in cells}]
        plan = LivePlan(session, 2.0, "tiny", cells, tuple(runs), 1, "cpu-core", 1.0)
        self.store.put_text(facts.PLAN, json.dumps(record(plan)))

    @staticmethod
    def cell(name: str, steps: int) -> PlannedCell:
        return PlannedCell(name, CELL, "tiny", "sparse", "cl", 0, "", 1e9, steps, 20_640)

    def point(self, step: int, session: str, steps: int = 100, run: str = CELL, **more) -> Point:
        point = Point(
            1e9 + step,
            step,
            steps,
            1e7 * step,
            1 / step,
            1e-3,
            10.0 * step,
            5.0,
            step,
            2**20,
            **more,
        )
        path = f"{facts.RUNS}/{run}/{session}-000000.jsonl"
        self.lines[path].append(json.dumps(record(point)))
        self.store.put_text(path, "\n".join(self.lines[path]) + "\n")
        return point

    def made(self, steps: int = 100) -> str:
        with self.store.draft(self.address) as draft:
            (draft.path / "weights").write_text("w")
            draft.meta["steps"] = steps
        return self.address.fingerprint

    def measured(self, value: float = 0.5) -> None:
        about = {"size": "tiny", "collection": "tiny", "split": "test", "measure": "nDCG@10"}
        about |= {"ci_low": 0.1, "ci_high": 0.9, "queries": 20, "parameters": 20_640}
        spent = {"budget_flops": 1e9, "spent_flops": 1e9, "steps": 100, "seconds": 5.0}
        cell = {"head": "sparse", "objective": "cl", "seed": 0}
        none = {"head": None, "objective": None, "seed": None}
        none |= dict.fromkeys(spent)
        rows = [
            Result(
                "trained",
                "sparse-tiny-cl",
                value=value,
                fingerprint=self.address.fingerprint,
                **about,
                **cell,
                **spent,
            ),
            Result("baseline", "BM25", value=0.4, fingerprint="0" * 64, **about, **none),
        ]
        add_rows(self.store, RESULTS, rows, Result)

    def report(self) -> None:
        self.store.put_text("report/table.md", "| a |\n|---|\n| 1 |\n")
        self.store.put_bytes("report/scaling.png", PNG)
        self.store.put_text("report/shown.json", "{}")
