"""The page of a laboratory: a read-only server that knows its storage and nothing else; no Ray.

/                       the page
/api/state?after=V      `raylab.live.views.State`, or {"version": V} where nothing has changed
/api/stream             the same states as server-sent events, with a heartbeat
/api/run/NAME?after=N   points of a run's curve whose number is above N
/api/timeline           `raylab.live.views.Timeline`
/api/chart/NAME         charts in Vega-Lite (`raylab.live.drawn`)
/api/systems, compare, compare/query, search    `raylab.live.asked`
/api/artifact/PATH      the manifest of an artifact; /artifact/PATH/FILE a file that it lists
/report/NAME            files of the report
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import cache
from importlib.resources import files as package_files

import jinja2
from aiohttp import web

from raylab.live import asked, drawn, served
from raylab.live.answers import LABORATORY, as_json, in_thread, whole_number
from raylab.live.guard import Guard, add_headers
from raylab.live.laboratory import REFRESH_S, Laboratory
from raylab.storage.store import Store

_HEARTBEAT_S = 15.0
_MOST_STREAMS = 32
_KINDS = {"js": "text/javascript", "css": "text/css"}
STREAMS = web.AppKey("streams", set)


def application(
    store: Store,
    host: str,
    token: str | None = None,
    hour_price: float | None = None,
    models_dir: str | None = None,
) -> web.Application:
    """The server's application, for `aiohttp.web.run_app` or a test.

    Args:
        host: that it will be bound to; Host headers are compared with it.
        token: that is asked for; None: none.
        hour_price: of one device; None: no price is shown.
        models_dir: where searches look for the bases of adapters.
    """
    app = web.Application(middlewares=[Guard(host, token).middleware()])
    app[LABORATORY], app[STREAMS] = Laboratory(store, hour_price), set()
    app[asked.DESK] = asked.Desk(store, models_dir)
    app.add_routes(
        [
            web.get("/", _page),
            web.get("/api/state", _state),
            web.get("/api/stream", _stream),
            web.get("/api/run/{name}", _run),
            web.get("/api/timeline", _timeline),
            web.get("/page/vega.js", _vega),
            web.get("/page/{name}", _asset),
            *drawn.ROUTES,
            *asked.ROUTES,
            *served.ROUTES,
        ]
    )
    app.on_shutdown.append(_end_streams)
    return app


@cache
def _assets() -> dict[str, str]:
    """The page's own files by name."""
    folder = package_files("raylab.live") / "page"
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file()}


async def _page(request: web.Request) -> web.Response:
    laboratory = request.app[LABORATORY]
    await laboratory.fresh()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_assets()["index.html"])
    text = template.render(storage=laboratory.store.uri, collection=laboratory.collection)
    return web.Response(text=text, content_type="text/html")


async def _asset(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    kind = _KINDS.get(name.rpartition(".")[2])
    if kind is None or name not in _assets():
        raise web.HTTPNotFound
    return web.Response(text=_assets()[name], content_type=kind)


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


def _told(version: str, state: str) -> str:
    return f'{{"version": "{version}", "state": {state}}}'


async def _state(request: web.Request) -> web.Response:
    version, state = await request.app[LABORATORY].fresh()
    if request.query.get("after") == version:
        return as_json({"version": version})
    return web.Response(text=_told(version, state), content_type="application/json")


async def _run(request: web.Request) -> web.Response:
    laboratory, name = request.app[LABORATORY], request.match_info["name"]
    await laboratory.fresh()
    after = whole_number(request, "after", -1)
    told = await in_thread(laboratory.points, name, after)
    if told is None:
        raise web.HTTPNotFound
    return as_json(told)


async def _timeline(request: web.Request) -> web.Response:
    laboratory = request.app[LABORATORY]
    await laboratory.fresh()
    return as_json(await in_thread(laboratory.timeline))


async def _stream(request: web.Request) -> web.StreamResponse:
    """A state whenever it has changed, with its version as the event's id; a comment every 15 s between."""
    streams = request.app[STREAMS]
    if len(streams) >= _MOST_STREAMS:
        raise web.HTTPServiceUnavailable
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    add_headers(response)
    task = asyncio.current_task()
    streams.add(task)
    try:
        await response.prepare(request)
        told, beat = request.headers.get("Last-Event-ID", request.query.get("after", "")), 0.0
        while True:
            version, state = await request.app[LABORATORY].fresh()
            now = time.monotonic()
            if version != told:
                text = _told(version, state)
                await response.write(f"id: {version}\nevent: state\ndata: {text}\n\n".encode())
                told, beat = version, now
            elif now - beat >= _HEARTBEAT_S:
                await response.write(b": still here\n\n")
                beat = now
            await asyncio.sleep(REFRESH_S / 2)
    except (ConnectionResetError, asyncio.CancelledError):
        return response
    finally:
        streams.discard(task)


async def _end_streams(app: web.Application) -> None:
    app[asked.DESK].close()
    for task in list(app[STREAMS]):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
