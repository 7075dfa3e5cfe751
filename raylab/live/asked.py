"""What somebody asks of queries and cells, one answer after the other in a thread of its own.

/api/systems                                                systems, cells, and what they are measured on
/api/compare?a=&b=&collection=&split=&measure=              queries that moved between two systems
/api/compare/query?a=&b=&collection=&split=&measure=&query= what each ranked for one query
/api/search?cell=&cell=&collection=&q=&k=                   passages of one or two cells for a text
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from raylab.live.answers import LABORATORY, as_json, whole_number
from raylab.live.artifacts import NotThere
from raylab.live.playground import MOST_CHARACTERS, MOST_PASSAGES, Playground
from raylab.live.queries import Queries
from raylab.live.systems import Place, Systems
from raylab.storage.artifacts import StorageError
from raylab.storage.store import Store

_MOST_WAITING = 8
_MOST_CELLS = 2
_PASSAGES = 10


class Desk:
    """Questions wait in line; of too many, the last are sent away."""

    def __init__(self, store: Store, models_dir: str | None):
        self.queries = Queries(store)
        self.playground = Playground(store, self.queries, models_dir)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="asked")
        self._waiting = 0

    async def answer(self, call: Callable[..., Any], *args: Any) -> web.Response:
        """What `call` returns, or `note` with the reason, as JSON."""
        if self._waiting >= _MOST_WAITING:
            raise web.HTTPServiceUnavailable
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return as_json(await loop.run_in_executor(self._thread, call, *args))
        except NotThere as absent:
            return as_json({"note": str(absent)})
        except (StorageError, OSError):
            raise web.HTTPServiceUnavailable from None
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Ask nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


DESK = web.AppKey("desk", Desk)


async def _systems(request: web.Request) -> Systems:
    laboratory = request.app[LABORATORY]
    await laboratory.fresh()
    return Systems(laboratory.results.rows)


def _texts(request: web.Request, *names: str) -> list[str]:
    texts = [request.query.get(name, "") for name in names]
    if not all(0 < len(text) <= MOST_CHARACTERS for text in texts):
        raise web.HTTPBadRequest
    return texts


async def _listed(request: web.Request) -> web.Response:
    return as_json((await _systems(request)).listed())


async def _compare(request: web.Request) -> web.Response:
    a, b, *place = _texts(request, "a", "b", "collection", "split", "measure")
    desk, systems = request.app[DESK], await _systems(request)
    return await desk.answer(desk.queries.compare, systems, a, b, Place(*place))


async def _query(request: web.Request) -> web.Response:
    a, b, query, *place = _texts(request, "a", "b", "query", "collection", "split", "measure")
    desk, systems = request.app[DESK], await _systems(request)
    return await desk.answer(desk.queries.query, systems, a, b, Place(*place), query)


async def _search(request: web.Request) -> web.Response:
    text, collection = _texts(request, "q", "collection")
    cells = list(dict.fromkeys(request.query.getall("cell", [])))
    k = whole_number(request, "k", _PASSAGES)
    if not text.strip() or not 1 <= len(cells) <= _MOST_CELLS or not 1 <= k <= MOST_PASSAGES:
        raise web.HTTPBadRequest
    desk, systems = request.app[DESK], await _systems(request)

    def search() -> dict[str, Any]:
        search_one = desk.playground.search
        return {
            "query": text,
            "sides": [search_one(systems, cell, collection, text, k) for cell in cells],
        }

    return await desk.answer(search)


ROUTES = [
    web.get("/api/systems", _listed),
    web.get("/api/compare", _compare),
    web.get("/api/compare/query", _query),
    web.get("/api/search", _search),
]
