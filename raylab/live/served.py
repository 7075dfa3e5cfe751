"""Files that the page links to: the report's, and those that the manifest of an artifact lists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import quote

from aiohttp import web

from raylab.live.answers import LABORATORY, as_json, in_thread
from raylab.live.artifacts import NotThere, artifact_at, is_plain
from raylab.live.guard import REPORT_POLICY, add_headers
from raylab.storage.store import Store

_REPORT = "report"
_TYPES = {
    "html": "text/html",
    "svg": "image/svg+xml",
    "png": "image/png",
    "json": "application/json",
    "csv": "text/csv",
    "md": "text/plain",
    "tex": "text/plain",
}
_BLOCK_BYTES = 1024**2


async def _report(request: web.Request) -> web.Response:
    name, store = request.match_info["name"], request.app[LABORATORY].store
    kind = _TYPES.get(name.rpartition(".")[2])
    if kind is None or name not in await in_thread(store.files.names, _REPORT):
        raise web.HTTPNotFound
    if not _stays_inside(store, f"{_REPORT}/{name}"):
        raise web.HTTPNotFound
    data = await in_thread(store.files.read, f"{_REPORT}/{name}")
    response = web.Response(body=data, content_type=kind)
    response.headers["Content-Security-Policy"] = REPORT_POLICY
    return response


async def _manifest(request: web.Request) -> web.Response:
    manifest = await in_thread(_manifest_of, request.app[LABORATORY].store, _place(request))
    return as_json(manifest)


async def _file(request: web.Request) -> web.StreamResponse:
    """A file that its manifest lists, as a download."""
    store, file = request.app[LABORATORY].store, request.match_info["file"]
    manifest = await in_thread(_manifest_of, store, _place(request))
    if file not in manifest["files"]:
        raise web.HTTPNotFound
    path = f"{_place(request)}/{manifest['attempt']}/{file}"
    if not _stays_inside(store, path):
        raise web.HTTPNotFound
    name = quote(file.rpartition("/")[2])
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
    }
    if store.is_local:
        return web.FileResponse(store.files.full(path), headers=headers)
    response = web.StreamResponse(headers=headers)
    add_headers(response)
    blocks = _blocks(store, path)
    block = await in_thread(_next, blocks)
    await response.prepare(request)
    while block:
        await response.write(block)
        block = await in_thread(_next, blocks)
    return response


def _place(request: web.Request) -> str:
    place = f"{request.match_info['stage']}/{request.match_info['home']}"
    if not is_plain(place):
        raise web.HTTPNotFound
    return place


def _manifest_of(store: Store, place: str) -> dict:
    try:
        return dict(artifact_at(store, place).manifest)
    except NotThere:
        raise web.HTTPNotFound from None


def _stays_inside(store: Store, path: str) -> bool:
    """Whether no link of the storage leads out of it."""
    if not store.is_local:
        return True
    root = os.path.realpath(store.root)
    return os.path.realpath(store.files.full(path)).startswith(root + os.sep)


def _blocks(store: Store, path: str) -> Iterator[bytes]:
    with store.fs.open(store.files.full(path), "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _next(blocks: Iterator[bytes]) -> bytes:
    return next(blocks, b"")


ROUTES = [
    web.get("/report/{name}", _report),
    web.get("/api/artifact/{stage}/{home}", _manifest),
    web.get("/artifact/{stage}/{home}/{file:.+}", _file),
]
