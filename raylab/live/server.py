"""The page of a laboratory: a read-only server that knows its storage and nothing else; no Ray.

/                       the page
/api/state?after=V      `raylab.live.state.State`, or {"version": V} where nothing has changed
/api/run/NAME?after=N   points of a run's curve whose number is above N
/api/chart/scaling      the report's scaling chart, from the results there are
/api/stream             the same states as server-sent events, with a heartbeat
/report/NAME            files of the report
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import logging
import time
import uuid
from functools import cache
from importlib.resources import files as package_files
from typing import Any

import jinja2
from aiohttp import web

from raylab.live.charts import curve_charts
from raylab.live.guard import REPORT_POLICY, Guard, add_headers
from raylab.live.reading import LiveFacts
from raylab.live.results import Results
from raylab.live.state import State, state_of
from raylab.storage.store import Store

log = logging.getLogger("raylab")
_REFRESH_S = 2.0
_HEARTBEAT_S = 15.0
_MOST_STREAMS = 32
_TYPES = {
    "html": "text/html",
    "svg": "image/svg+xml",
    "png": "image/png",
    "json": "application/json",
    "csv": "text/csv",
    "md": "text/plain",
    "tex": "text/plain",
}


class Laboratory:
    """What is known of a storage; read again, on request, when it is older than two seconds."""

    def __init__(self, store: Store):
        self.store = store
        self.facts, self.results = LiveFacts(store), Results(store)
        self.boot = uuid.uuid4().hex[:8]
        self.version, self.state = "", {}
        self.fault = ""
        self._read_at = -_REFRESH_S
        self._lock = asyncio.Lock()

    async def fresh(self) -> tuple[str, dict[str, Any]]:
        """(version, state as a JSON object)."""
        async with self._lock:
            if time.monotonic() - self._read_at >= _REFRESH_S:
                await asyncio.to_thread(self._refresh)
                self._read_at = time.monotonic()
        return self.version, self.state

    def _refresh(self) -> None:
        self.fault = ""
        for part in (self.facts, self.results):
            try:
                part.refresh()
            except Exception as fault:  # what was read before is still shown, with the reason
                self.fault = " ".join(str(fault).split())[:300]
        self.state = dataclasses.asdict(self._state()) | {"fault": self.fault}
        digest = hashlib.sha256(json.dumps(self.state, sort_keys=True).encode()).hexdigest()
        self.version = f"{self.boot}-{digest[:16]}"

    def _state(self) -> State:
        report = "index.html" in self.store.files.names("report")
        results = self.results
        return state_of(
            self.facts,
            time.time(),
            self.store.uri,
            results.measured,
            len(results.rows),
            results.version,
            report,
        )


LABORATORY = web.AppKey("laboratory", Laboratory)
STREAMS = web.AppKey("streams", set)


def application(store: Store, host: str, token: str | None = None) -> web.Application:
    """The server's application, for `aiohttp.web.run_app` or a test.

    Args:
        host: that it will be bound to; Host headers are compared with it.
        token: that is asked for; None: none.
    """
    app = web.Application(middlewares=[Guard(host, token).middleware()])
    app[LABORATORY], app[STREAMS] = Laboratory(store), set()
    app.add_routes(
        [
            web.get("/", _page),
            web.get("/api/state", _state),
            web.get("/api/run/{name}", _run),
            web.get("/api/chart/scaling", _scaling),
            web.get("/api/chart/curves", _curves),
            web.get("/api/stream", _stream),
            web.get("/vega.js", _vega),
            web.get("/watch.{ending:js|css}", _asset),
            web.get("/report/{name}", _report),
        ]
    )
    app.on_shutdown.append(_end_streams)
    return app


def _json(values: Any) -> web.Response:
    return web.json_response(values, dumps=lambda v: json.dumps(v, allow_nan=False))


@cache
def _asset_text(name: str) -> str:
    return (package_files("raylab.live") / "page" / name).read_text()


async def _page(request: web.Request) -> web.Response:
    laboratory = request.app[LABORATORY]
    _, state = await laboratory.fresh()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_asset_text("index.html"))
    text = template.render(storage=state["storage"], collection=state["collection"])
    return web.Response(text=text, content_type="text/html")


async def _asset(request: web.Request) -> web.Response:
    ending = request.match_info["ending"]
    kind = "text/javascript" if ending == "js" else "text/css"
    return web.Response(text=_asset_text(f"watch.{ending}"), content_type=kind)


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed, out of vl-convert's wheel: 0.9 MB, and 3 s to put together."""
    import vl_convert

    return vl_convert.javascript_bundle()  # type: ignore[call-arg]


async def _vega(request: web.Request) -> web.Response:
    text = await asyncio.to_thread(vega_bundle)
    response = web.Response(text=text, content_type="text/javascript")
    response.headers["Cache-Control"] = "private, max-age=3600"
    response.enable_compression()
    return response


async def _state(request: web.Request) -> web.Response:
    version, state = await request.app[LABORATORY].fresh()
    if request.query.get("after") == version:
        return _json({"version": version})
    return _json({"version": version, "state": state})


async def _run(request: web.Request) -> web.Response:
    laboratory, name = request.app[LABORATORY], request.match_info["name"]
    await laboratory.fresh()
    curve = laboratory.facts.curves.get(name)
    if curve is None:
        raise web.HTTPNotFound
    try:
        after = int(request.query.get("after", "-1"))
    except ValueError:
        raise web.HTTPBadRequest from None
    return _json({"run": name, "sessions": len(curve.sessions), "points": curve.rows(after)})


async def _scaling(request: web.Request) -> web.Response:
    laboratory = request.app[LABORATORY]
    await laboratory.fresh()
    return _json(await asyncio.to_thread(laboratory.results.chart))


async def _curves(request: web.Request) -> web.Response:
    return _json(await asyncio.to_thread(curve_charts))


async def _report(request: web.Request) -> web.Response:
    name, store = request.match_info["name"], request.app[LABORATORY].store
    kind = _TYPES.get(name.rpartition(".")[2])
    names = await asyncio.to_thread(store.files.names, "report")
    if kind is None or name not in names:
        raise web.HTTPNotFound
    data = await asyncio.to_thread(store.files.read, f"report/{name}")
    response = web.Response(body=data, content_type=kind)
    response.headers["Content-Security-Policy"] = REPORT_POLICY
    return response


async def _stream(request: web.Request) -> web.StreamResponse:
    """A state whenever it has changed, with its version as the event's id; a comment every 15 s between."""
    streams = request.app[STREAMS]
    if len(streams) >= _MOST_STREAMS:
        raise web.HTTPServiceUnavailable
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    add_headers(response)
    await response.prepare(request)
    told, beat = request.headers.get("Last-Event-ID", request.query.get("after", "")), 0.0
    task = asyncio.current_task()
    streams.add(task)
    try:
        while True:
            version, state = await request.app[LABORATORY].fresh()
            now = time.monotonic()
            if version != told:
                text = json.dumps({"version": version, "state": state}, allow_nan=False)
                await response.write(f"id: {version}\nevent: state\ndata: {text}\n\n".encode())
                told, beat = version, now
            elif now - beat >= _HEARTBEAT_S:
                await response.write(b": still here\n\n")
                beat = now
            await asyncio.sleep(_REFRESH_S / 2)
    except (ConnectionResetError, asyncio.CancelledError):
        return response
    finally:
        streams.discard(task)


async def _end_streams(app: web.Application) -> None:
    for task in list(app[STREAMS]):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
