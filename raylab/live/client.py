"""A client of the page's API: the states of a laboratory as they come, from whatever machine serves it."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from raylab.experiment.config import ConfigError

_TIMEOUT_S = 40.0  # a server says something every 15 s
_AGAIN_S = 3.0


def states(address: str, token: str | None = None, tries: int = 10) -> Iterator[dict[str, Any]]:
    """States (`raylab.live.views.State` as JSON objects), each when it has changed.

    Goes on after the last one when the connection or the server was lost.

    Args:
        address: of the page, such as http://127.0.0.1:8600.
        tries: without any answer, after which it gives up.

    Raises:
        ConfigError: no page of a laboratory there, or another token.
    """
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"{address}: it must be as http://127.0.0.1:8600")
    last, failures = "", 0
    while True:
        try:
            with _opened(f"{address.rstrip('/')}/api/stream", token, last) as lines:
                for number, data in events(line.decode() for line in lines):
                    last, failures = number, 0
                    yield json.loads(data)["state"]
        except urllib.error.HTTPError as refusal:
            if refusal.code < 500:
                raise ConfigError(
                    f"{address}: it answers {refusal.code} {refusal.reason}"
                ) from None
            reason = str(refusal)
        except (OSError, urllib.error.URLError) as fault:
            reason = str(fault)
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{address}: no page of a laboratory") from None
        else:
            reason = "it ended the connection"
        failures += 1
        if failures >= tries:
            raise ConfigError(f"{address}: it cannot be reached ({reason})")
        time.sleep(_AGAIN_S)


def events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(id, data) of server-sent events; comments are passed over."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        else:
            if "data" in fields:
                yield fields.get("id", ""), fields["data"]
            fields = {}


def _opened(address: str, token: str | None, last: str) -> Any:
    headers = {"Accept": "text/event-stream"}
    if last:
        headers["Last-Event-ID"] = last
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(address, headers=headers)
    return urllib.request.urlopen(request, timeout=_TIMEOUT_S)


def line_of(state: dict[str, Any]) -> str:
    """A state in one line."""
    driver, cells, compute = state["driver"], state["cells"], state["compute"]
    counts = {
        phase: sum(cell["state"] == phase for cell in cells)
        for phase in ("done", "running", "failed", "stopped")
    }
    parts = [driver["state"]]
    if driver["stage"]:
        parts.append(f"{driver['stage']} {driver['done']}/{driver['total']}")
    parts.append(f"cells {counts['done']}/{len(cells)}")
    parts += [
        f"{counts[phase]} {phase}" for phase in ("running", "failed", "stopped") if counts[phase]
    ]
    if compute["planned_flops"]:
        share = compute["spent_flops"] / compute["planned_flops"]
        parts.append(f"{compute['spent_flops']:.3g} FLOPs ({share:.0%} of the cells' plan)")
    if state["left_s"] is not None:
        minutes, seconds = divmod(round(state["left_s"]), 60)
        parts.append(f"training left {minutes}:{seconds:02d}")
    if state["faults"]:
        fault = state["faults"][-1]
        parts.append(f"last fault: {fault['name']} {fault['text']}")
    # What a storage says may hold anything, and this goes to a terminal.
    return "".join(c if c.isprintable() else "?" for c in " | ".join(parts))
