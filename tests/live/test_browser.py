"""The page in a real browser: it fills in, asks nobody else, and has nothing to complain of."""

import asyncio
import contextlib
import io
import json
import shutil
import threading
import time

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from raylab.live import facts
from raylab.live.server import application
from tests.live.conftest import RUNNING, WAITING, half_way

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TEST: no playwright here")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER TEST: no chromium on this machine"),
]


@contextlib.contextmanager
def served(store):
    """The address of a server in a thread of its own."""
    loop, address = asyncio.new_event_loop(), []

    async def start():
        runner = web.AppRunner(application(store, "127.0.0.1"), shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
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


@pytest.fixture
def browser():
    with sync_api.sync_playwright() as playwright:
        # Root, as in a container, has no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def watched(browser, address: str, **context):
    """A page and its complaints: errors, what its policy forbids, requests that leave its origin."""
    page = browser.new_context(**context).new_page()
    complaints: list[str] = []
    page.on("console", lambda told: told.type == "error" and complaints.append(told.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append("a script of the storage ran"))

    def left(request):
        if not request.url.startswith((address, "data:")):
            complaints.append(f"asked {request.url}")

    page.on("request", left)
    return page, complaints


def paths(page, place: str) -> list[str]:
    return page.eval_on_selector_all(
        f"{place} svg .mark-line path", "all => all.map(p => p.getAttribute('d'))"
    )


def test_cells_change_curves_grow_and_points_appear(browser, tmp_path, finished):
    now = time.time()
    recorded = half_way(tmp_path / "lab", now)
    with served(recorded.store) as address:
        page, complaints = watched(browser, address)
        page.goto(f"{address}/?run={RUNNING}")
        page.wait_for_selector("#curve-chart svg .mark-line path", timeout=60_000)
        assert page.locator("#matrix td.running .state").inner_text() == "running"
        assert page.locator("#matrix td.waiting").count() == 1
        assert "training left" in page.locator("#driver").inner_text()
        assert not page.locator("#scaling-chart svg").count()
        before = paths(page, "#curve-chart")
        for step in range(41, 101):
            recorded.point(RUNNING, now + step, step)
        recorded.event(time.time(), "end", RUNNING)
        recorded.event(time.time(), "start", WAITING)
        shutil.copy(finished / "results.parquet", tmp_path / "lab")
        page.locator("#matrix td.done").nth(2).wait_for()
        page.wait_for_selector("#scaling-chart svg", timeout=60_000)
        page.wait_for_timeout(1_000)
        assert paths(page, "#curve-chart") != before
        page.check("input[value=flops]")
        page.wait_for_timeout(500)
        assert "FLOPs spent" in (page.locator("#curve-chart svg").text_content() or "")
        recorded.driver(time.time() - 3_600)
        page.wait_for_selector("#driver.silent")
        assert "silent since" in page.locator("#driver").inner_text()
        assert complaints == []


def test_hostile_text_stays_text(browser, tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    recorded = half_way(tmp_path / "lab", time.time(), ("a-b-c", bad, "d-e-f"))
    recorded.event(time.time(), "note", bad, "</li><script>alert(1)</script>")
    plan = json.loads(recorded.store.files.read(facts.PLAN))
    plan["cells"][0] |= {"size": bad, "head": bad}
    recorded.store.put_text(facts.PLAN, json.dumps(plan))
    with served(recorded.store) as address:
        page, complaints = watched(browser, address)
        page.goto(address)
        page.wait_for_selector("#matrix td")
        page.wait_for_selector("#curve-chart svg", timeout=60_000)
        assert page.locator("#matrix img, #log img, #log script, #runs img").count() == 0
        assert bad in page.locator("#runs").inner_text()
        assert complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light"), (3840, "dark")])
def test_it_is_readable_at_every_width_and_by_keyboard(browser, tmp_path, width, scheme):
    recorded = half_way(tmp_path / "lab", time.time())
    with served(recorded.store) as address:
        size = {"width": width, "height": 800}
        page, complaints = watched(browser, address, viewport=size, color_scheme=scheme)
        page.goto(address)
        page.wait_for_selector("#curve-chart svg", timeout=60_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        chart, frame = page.locator("#curve-chart svg"), page.locator("#curve-chart")
        assert chart.bounding_box()["width"] <= frame.bounding_box()["width"]
        picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
        assert (picture.mean() < 100) == (scheme == "dark")
        assert picture.std() > 5
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        drawn = page.locator("#runs input:checked").count()
        box = page.locator("#runs input:not(:checked):not(:disabled)")
        if box.count():
            box.first.focus()
            page.keyboard.press("Space")
            assert page.locator("#runs input:checked").count() == drawn + 1
            assert "run=" in page.url
        unnamed = page.eval_on_selector_all(
            "input, [role=img], [role=region], progress",
            "all => all.filter(e => !(e.getAttribute('aria-label') || e.closest('label'))).length",
        )
        assert unnamed == 0
        assert complaints == []
