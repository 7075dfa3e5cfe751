"""A server of a storage in a thread of its own."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from aiohttp import web

from raylab.live.server import application
from raylab.storage.store import Store

TOKEN = "a-token-of-some-length"


@contextlib.contextmanager
def served(store: Store, token: str | None = None, port: int = 0) -> Iterator[str]:
    """Its address, while the block runs; `port` 0: any that is free."""
    loop, address = asyncio.new_event_loop(), []

    async def start():
        runner = web.AppRunner(application(store, "127.0.0.1", token), shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
        await site.start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        return runner

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield address[0]
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
