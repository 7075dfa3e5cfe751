"""Progress of a grid: workers tell an actor, the driver shows it (rich on a terminal, lines in a log)."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import RayError
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from raylab.experiment.grid import Cell
from raylab.jobs.cluster import on_head
from raylab.live.facts import EventKind
from raylab.live.logs import DriverLog
from raylab.planning.remaining import Standing, remaining
from raylab.planning.scheduling import Item

_PLAIN_EVERY_S = 20.0
_POLL_S = 1.0
Display = Literal["auto", "live", "lines", "off"]


@dataclass(frozen=True)
class RunProgress:
    """One run's latest progress."""

    run: str
    step: int
    steps: int
    spent_flops: float
    loss: float
    at: float
    spends_budget: bool  # of cells; MNTP stands beside their budgets
    job: str = ""  # the run's name in the queue; several cells may come from one
    tokens: float = 0.0  # without padding, since the first step
    seconds: float = 0.0  # of steps alone, since the first
    warning: str = ""  # what the run has found wrong so far


@ray.remote(num_cpus=0)
class ProgressActor:
    """Keeps every run's latest progress."""

    def __init__(self) -> None:
        self.runs: dict[str, RunProgress] = {}
        self.failures: dict[str, int] = {}

    def note(self, progress: RunProgress) -> None:
        self.runs[progress.run] = progress

    def snapshot(self) -> dict[str, RunProgress]:
        return dict(self.runs)

    def workers_failed(self, run: str) -> None:
        self.failures[run] = self.failures.get(run, 0) + 1

    def worker_failures(self) -> dict[str, int]:
        return dict(self.failures)


class Monitor:
    """The driver's view: stages done and to do, cells, steps, budget spent, time left.

    Args:
        display: "live", "lines" now and then, "off"; "auto" is live on a terminal, else lines.
        log: is told all that is shown, for those who watch from elsewhere.
    """

    def __init__(self, display: Display = "auto", log: DriverLog | None = None):
        self.console = Console()
        if display == "auto":
            display = "live" if self.console.is_terminal else "lines"
        self.display = display
        self.board: Any = None
        self.stage, self.done, self.total = "start", 0, 0
        self.cells_total = 0
        self.cells: Sequence[Cell] = ()  # of the grid
        self.planned: dict[str, float] = {}  # FLOPs of every cell that is or will be trained
        self.spent: dict[str, float] = {}  # FLOPs of every finished cell, by its run's name
        self.started = time.time()
        self._stop = threading.Event()
        self.log = log
        self.items: Sequence[Item] = ()  # runs of this command, with their predicted seconds
        self.devices, self.overhead_s = 1, 0.0
        self.began: dict[str, float] = {}  # when each of them did
        self.ended: dict[str, float] = {}  # seconds that each of them took
        self.failed: set[str] = set()  # of those that ended
        self._stage_from = (self.started, 0)
        self._warned: dict[str, str] = {}

    def say(self, text: str) -> None:
        """One line, in either display."""
        self._tell("note", self.stage, text)
        self._print(text)

    def _print(self, text: str) -> None:
        if self.display == "lines":
            print(f"[{_clock(time.time() - self.started)}] {text}", flush=True)
        elif self.display == "live":
            self.console.print(text, highlight=False)

    def enter(self, stage: str, total: int, done: int = 0) -> None:
        """A stage begins: `done` of its `total` artifacts are already there."""
        if self.stage != "start":
            self._tell("stage-end", self.stage)
        self.stage, self.total, self.done = stage, total, done
        self._stage_from = time.time(), done
        text = f"{done} of {total} already done" if done else f"{total} to do"
        self._tell("stage", stage, text)
        self._print(f"{stage}: {text}")

    def advance(self, text: str = "") -> None:
        """One artifact of the stage is done."""
        self.done += 1
        self._tell("made", self.stage, text)
        if text:
            self._print(f"{self.stage} {self.done}/{self.total}: {text}")

    def scheduled(self, items: Sequence[Item], devices: int, overhead_s: float) -> None:
        """The runs of this command, as predicted: the time left follows from them (`remaining`)."""
        self.items, self.devices, self.overhead_s = items, devices, overhead_s

    def run_event(
        self, kind: EventKind, name: str, text: str = "", at: float | None = None
    ) -> None:
        """A run starts, ends or fails, at a time (Unix seconds; None: now)."""
        at = time.time() if at is None else at
        if kind == "start":
            self.began[name] = at
            self.ended.pop(name, None)
            self.failed.discard(name)
        elif kind in ("end", "died"):
            self.ended[name] = at - self.began.get(name, at)
            if kind == "died":
                self.failed.add(name)
        self._tell(kind, name, text)

    def _tell(self, kind: EventKind, name: str, text: str = "") -> None:
        if self.log is not None:
            self.log.event(kind, name, text)
            self.log.stands(self.stage, self.done, self.total)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Show progress while the block runs; its last line says how far it came."""
        self.board = ProgressActor.options(**on_head()).remote()
        loops = {"live": self._live_loop, "lines": self._plain_loop, "off": self._stop.wait}
        thread = threading.Thread(target=loops[self.display], daemon=True)
        thread.start()
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._stop.set()
            thread.join(timeout=5)
            if error is None:
                self._runs()  # says what the last runs found wrong
            self._print(self.summary({}))
            sys.stdout.flush()
            if self.log is not None:
                self.log.close(error)
            with contextlib.suppress(Exception):  # the connection may have ended
                ray.kill(self.board)

    def _runs(self) -> dict[str, RunProgress]:
        with contextlib.suppress(RayError):
            runs: dict[str, RunProgress] = ray.get(self.board.snapshot.remote(), timeout=5)
            self._warn(runs)
            return runs
        return {}

    @staticmethod
    def _running(runs: dict[str, RunProgress]) -> list[RunProgress]:
        now = time.time()
        return [b for b in runs.values() if b.step < b.steps and now - b.at < 60]

    @property
    def spent_flops(self) -> float:
        """Of the finished cells."""
        return sum(self.spent.values())

    def summary(self, runs: dict[str, RunProgress]) -> str:
        """One line: stage, cells, budget spent, time left."""
        share = self.share(runs)
        parts = [
            f"{self.stage} {self.done}/{self.total}",
            f"cells {len(self.spent)}/{self.cells_total}",
        ]
        if self.planned:
            parts.append(f"budget {share:.0%} of {sum(self.planned.values()):.2g} FLOPs")
        left = self._time_left(runs)
        about = "training" if self.stage == "train" else self.stage
        parts.append(
            f"{about} left {_clock(left)}"
            if left is not None
            else f"elapsed {_clock(time.time() - self.started)}"
        )
        return " | ".join(parts)

    def share(self, runs: dict[str, RunProgress]) -> float:
        """Of the planned FLOPs, how much is done: a run that has ended counts whole, whatever it took."""
        total = sum(self.planned.values())
        done = 0.0
        for run, flops in self.planned.items():
            if run in self.spent:
                done += flops
            elif run in runs:
                done += flops * min(runs[run].step / max(runs[run].steps, 1), 1.0)
        return min(done / total, 1.0) if total else 0.0

    def _time_left(self, runs: dict[str, RunProgress]) -> float | None:
        """Seconds until the stage ends: of training from its plan, else from the pace so far."""
        if self.stage != "train":
            began, done = self._stage_from
            made = self.done - done
            return (self.total - self.done) * (time.time() - began) / made if made > 0 else None
        if not self.items:
            return None
        return remaining(self.items, self.standing(runs), self.devices, self.overhead_s).total_s

    @property
    def running(self) -> set[str]:
        """Runs that have started and go on."""
        return self.began.keys() - self.ended.keys()

    def standing(self, runs: Mapping[str, RunProgress]) -> dict[str, Standing]:
        """How far the runs of this command are that have started."""
        now, shares = time.time(), defaultdict(float)
        for run in runs.values():
            shares[run.job] = max(shares[run.job], run.step / max(run.steps, 1))
        return {
            name: Standing(self.ended[name], 1.0, True)
            if name in self.ended
            else Standing(now - started, min(shares[name], 1.0))
            for name, started in self.began.items()
        }

    def _warn(self, runs: dict[str, RunProgress]) -> None:
        """Say what runs have found wrong, once each."""
        for run in runs.values():
            if run.warning and self._warned.get(run.run) != run.warning:
                self._warned[run.run] = run.warning
                self.say(f"WARNING {run.run}, step {run.step}: {run.warning}")

    def _plain_loop(self) -> None:
        while not self._stop.wait(_PLAIN_EVERY_S):
            runs = self._runs()
            steps = "; ".join(
                f"{run.run} {run.step}/{run.steps} loss {run.loss:.3g}"
                for run in self._running(runs)
            )
            self._print(f"{self.summary(runs)} | {steps}" if steps else self.summary(runs))

    def _live_loop(self) -> None:
        with Live(console=self.console, refresh_per_second=4, transient=True) as live:
            while not self._stop.wait(_POLL_S):
                live.update(self._render(self._runs()))

    def _render(self, runs: dict[str, RunProgress]) -> Group:
        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
        )
        bars.add_task("cells", total=max(self.cells_total, 1), completed=len(self.spent))
        bars.add_task(self.stage, total=max(self.total, 1), completed=self.done)
        table = Table("run", "step", "of", "FLOPs", "loss", box=None)
        for run in self._running(runs):
            table.add_row(
                run.run,
                str(run.step),
                str(run.steps),
                f"{run.spent_flops:.2e}",
                f"{run.loss:.3f}",
            )
        return Group(bars, table, self.summary(runs))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
