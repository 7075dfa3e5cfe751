"""When runs began and ended, from the events of one command."""

from __future__ import annotations

from dataclasses import dataclass, field

from raylab.live.facts import Event
from raylab.live.views import RunPhase


@dataclass
class History:
    """Unix times by the name of a run, of its last start; and when stages began and ended."""

    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    failed: dict[str, float] = field(default_factory=dict)
    stages: list[tuple[str, float, float | None]] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """The next event."""
        if event.kind == "start":
            self.began[event.name] = event.at
            self.ended.pop(event.name, None)
            self.failed.pop(event.name, None)
        elif event.kind == "end":
            self.ended[event.name] = event.at
        elif event.kind == "died":
            self.failed[event.name] = event.at
        elif event.kind == "stage":
            self.stages.append((event.name, event.at, None))
        elif event.kind == "stage-end":
            for place in range(len(self.stages) - 1, -1, -1):
                name, began, ended = self.stages[place]
                if name == event.name and ended is None:
                    self.stages[place] = name, began, event.at
                    break

    def over_at(self, run: str) -> float | None:
        """When it ended, however it did."""
        return self.failed.get(run, self.ended.get(run))

    def phase(self, run: str, alive: bool) -> RunPhase:
        """Where a run is, beside a driver that is alive or not."""
        if run in self.failed:
            return "failed"
        if run in self.ended:
            return "done"
        if run in self.began:
            return "running" if alive else "stopped"
        return "waiting" if alive else "stopped"
