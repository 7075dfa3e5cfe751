"""Charts as the page asks for them: the report's own of what is measured, and those that the page fills.

/api/chart/scaling      quality against size, from the results there are
/api/chart/laws         laws fitted so far with the forecast of the sizes that are still to be measured
/api/chart/curves?x=&y=&log=x&log=y
/api/chart/timeline, devices, changes
"""

from __future__ import annotations

from aiohttp import web

from raylab.live.answers import LABORATORY, as_json, in_thread
from raylab.live.charts import (
    X_AXES,
    Y_AXES,
    changes_chart,
    curve_chart,
    devices_chart,
    timeline_chart,
)


async def _scaling(request: web.Request) -> web.Response:
    laboratory = request.app[LABORATORY]
    await laboratory.fresh()
    return as_json(await in_thread(laboratory.results.chart))


async def _laws(request: web.Request) -> web.Response:
    laboratory = request.app[LABORATORY]
    await laboratory.fresh()
    return as_json(await in_thread(laboratory.laws))


async def _curves(request: web.Request) -> web.Response:
    query = request.query
    x, y, logs = query.get("x", "step"), query.get("y", "loss"), query.getall("log", [])
    if x not in X_AXES or y not in Y_AXES:
        raise web.HTTPBadRequest
    return as_json(await in_thread(curve_chart, x, y, "x" in logs, "y" in logs))


_FILLED = {"timeline": timeline_chart, "devices": devices_chart, "changes": changes_chart}


async def _filled(request: web.Request) -> web.Response:
    return as_json(await in_thread(_FILLED[request.match_info["name"]]))


ROUTES = [
    web.get("/api/chart/scaling", _scaling),
    web.get("/api/chart/laws", _laws),
    web.get("/api/chart/curves", _curves),
    web.get("/api/chart/{name:timeline|devices|changes}", _filled),
]
