"""What all answers share: the laboratory they are of, JSON, and questions that are checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

from aiohttp import web

from raylab.live.laboratory import Laboratory

T = TypeVar("T")
LABORATORY = web.AppKey("laboratory", Laboratory)


def as_json(values: Any) -> web.Response:
    """An answer; a number that is not finite is a fault of ours."""
    return web.json_response(values, dumps=lambda v: json.dumps(v, allow_nan=False))


def whole_number(request: web.Request, name: str, default: int) -> int:
    """A number of the query string.

    Raises:
        HTTPBadRequest: no whole number.
    """
    try:
        return int(request.query.get(name, str(default)))
    except ValueError:
        raise web.HTTPBadRequest from None


async def in_thread(call: Callable[..., T], *args: Any) -> T:
    """What `call` returns, while others are answered.

    Raises:
        HTTPServiceUnavailable: the storage cannot be reached.
    """
    from raylab.storage.artifacts import StorageError

    try:
        return await asyncio.to_thread(call, *args)
    except (StorageError, OSError):
        raise web.HTTPServiceUnavailable from None
