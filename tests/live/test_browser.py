"""The page in a real browser: it fills in, asks nobody else, and has nothing to complain of."""

import contextlib
import csv
import io
import json
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raylab.live import facts
from raylab.live.facts import PlannedCell
from tests.live.conftest import FLOPS, ROOT, RUNNING, SESSION, WAITING, half_way
from tests.live.serving import TOKEN, served
from tests.live.stored import CELLS, laboratory

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
sync_api = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TEST: no playwright here")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER TEST: no chromium on this machine"),
]
RUN_PART = f"{facts.RUNS}/{RUNNING}/{SESSION}-000000.jsonl"
CURVE = "#curve-chart svg .mark-line path"
PATIENT_MS = 60_000


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        # Root, as in a container, has no sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def watched(browser, address: str, **context):
    """A page and its complaints: errors, what its policy forbids, requests that leave its origin."""
    own = browser.new_context(**context)
    page, complaints = own.new_page(), []
    page.set_default_timeout(PATIENT_MS)
    page.on("console", lambda told: told.type == "error" and complaints.append(told.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append("a script of the storage ran"))

    def left(request):
        if not request.url.startswith((address, "data:", f"blob:{address}")):
            complaints.append(f"asked {request.url}")

    page.on("request", left)
    yield page, complaints
    own.close()


def paths(page, place: str) -> list[str]:
    return page.eval_on_selector_all(
        f"{place} svg .mark-line path", "all => all.map(p => p.getAttribute('d'))"
    )


def test_cells_change_curves_grow_points_appear_and_what_is_to_come_is_forecast(browser, tmp_path):
    now = time.time()
    recorded = half_way(tmp_path / "lab", now)
    to_come = "sparse-huge-cl-seed0"
    about = "huge", "sparse", "cl", 0, "", FLOPS, 100, 3_000_000
    recorded.plan(now - 200, (PlannedCell(to_come, to_come, *about),))
    with served(recorded.store) as address, watched(browser, address) as (page, complaints):
        page.goto(f"{address}/?run={RUNNING}")
        page.wait_for_selector(CURVE)
        assert page.locator("#matrix td.running .state").inner_text() == "running"
        assert page.locator("#matrix td.waiting").count() == 2
        assert page.locator("#driver").inner_text() == "running"
        assert "training left" in page.locator("#left").inner_text()
        assert not page.locator("#scaling-chart svg").count()
        before = paths(page, "#curve-chart")
        for step in range(41, 101):
            recorded.point(RUNNING, now + step, step)
        recorded.event(time.time(), "end", RUNNING)
        recorded.event(time.time(), "start", WAITING)
        for name in ("results.parquet", "per_query.parquet"):
            shutil.copy(ROOT / "docs/results/isoflop" / name, tmp_path / "lab")
        page.locator("#matrix td.done").nth(1).wait_for()
        page.wait_for_selector("#scaling-chart svg .mark-symbol path")
        page.wait_for_selector("#laws-chart svg .mark-area path")
        assert "huge" in page.locator("#forecasts tbody").inner_text()
        assert "huge" in (page.locator("#laws-chart svg").text_content() or "")
        assert paths(page, "#curve-chart") != before
        page.wait_for_selector("#timeline-chart svg .mark-rect path")
        recorded.driver(time.time() - 3_600)
        page.wait_for_selector("#driver.silent")
        assert "silent since" in page.locator("#driver").inner_text()
        assert complaints == []


def test_a_view_is_an_address_and_every_chart_can_be_saved(browser, tmp_path):
    recorded = half_way(tmp_path / "lab", time.time())
    view = f"?run={RUNNING}&x=flops&logx=1&smooth=5"
    with served(recorded.store) as address, watched(browser, address) as (page, complaints):
        page.goto(f"{address}/{view}")
        page.wait_for_selector(CURVE)
        assert "FLOPs spent" in (page.locator("#curve-chart svg").text_content() or "")
        assert page.locator("#curve-log-x").is_checked()
        page.select_option("#curve-y", "learning_rate")
        page.locator("#curve-chart svg", has_text="learning rate").wait_for()
        assert page.url == f"{address}/{view}&y=learning_rate"
        saved = {}
        for kind in ("SVG", "PNG", "CSV"):
            with page.expect_download() as download:
                page.click(f"#curve-chart button:text-is('{kind}')")
            assert download.value.suggested_filename == f"curves.{kind.lower()}"
            saved[kind] = Path(download.value.path()).read_bytes()
        assert saved["SVG"].startswith(b"<svg")
        assert np.asarray(Image.open(io.BytesIO(saved["PNG"])).convert("L")).std() > 5
        rows = list(csv.DictReader(io.StringIO(saved["CSV"].decode())))
        assert [int(row["step"]) for row in rows] == list(range(1, 41))
        assert {row["run"] for row in rows} == {RUNNING}
        assert complaints == []


def test_it_goes_on_when_server_and_driver_were_started_again(browser, tmp_path):
    now = time.time()
    recorded = half_way(tmp_path / "lab", now)
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with watched(browser, f"http://127.0.0.1:{port}") as (page, complaints):
        with served(recorded.store, port=port) as address:
            page.goto(f"{address}/?run={RUNNING}")
            page.wait_for_selector(CURVE)
            assert complaints == []
        recorded.event(now, "died", RUNNING, "a loss that is not finite")
        for path in (f"{facts.EVENTS}/{SESSION}-000000.jsonl", RUN_PART):
            text = recorded.store.files.read(path).decode()
            recorded.store.put_text(path, text + '{"at": 1, "torn')
        with served(recorded.store, port=port):
            page.wait_for_selector("#matrix td.failed")
            assert "a loss that is not finite" in page.locator("#faults").inner_text()
            recorded.store.put_text(facts.PLAN, '{"at": 1, "torn')
            page.locator("#driver", has_text="1 line(s) could not be read").wait_for()
            assert page.locator("#matrix td.failed").count() == 1  # what was read before is shown
            recorded.plan(now)
            recorded.driver(time.time(), "ended")
            page.wait_for_selector("#driver.ended")
            recorded.event(time.time(), "start", RUNNING)
            recorded.driver(time.time(), began=0)
            page.wait_for_selector("#matrix td.running")
    left = [
        one for one in complaints if "ERR_CONNECTION" not in one and "Failed to load" not in one
    ]
    assert left == []


def test_without_the_token_there_is_nothing_and_with_it_there_is_the_view(browser, tmp_path):
    recorded = half_way(tmp_path / "lab", time.time())
    with (
        served(recorded.store, TOKEN) as address,
        watched(browser, address) as (page, complaints),
    ):
        for path in ("/", "/?token=wrong", "/page/watch.js"):
            assert page.goto(address + path).status == 401
            assert "running" not in page.content()
        complaints.clear()  # the browser says of each that it was refused
        page.goto(f"{address}/?token={TOKEN}&run={RUNNING}&x=tokens")
        assert page.url == f"{address}/?run={RUNNING}&x=tokens"
        page.wait_for_selector(CURVE)
        assert page.evaluate("document.cookie") == ""
        assert complaints == []


def test_queries_that_moved_and_searches_side_by_side(
    browser, tmp_path, collection_folder, model_folder, retriever_folders
):
    store = laboratory(tmp_path / "lab", collection_folder, model_folder, retriever_folders)
    view = f"?a={CELLS['dense']}&b={CELLS['sparse']}&on=tiny+test+nDCG%4010&query=q065"
    with served(store) as address, watched(browser, address) as (page, complaints):
        page.goto(f"{address}/{view}&q=cancer+cell&left={CELLS['sparse']}&right={CELLS['dense']}")
        page.wait_for_selector("#moved tbody tr")
        page.wait_for_selector("#moved-chart svg path")
        page.locator("#ranked section").nth(1).locator("li").first.wait_for()
        assert page.locator("#one-query").inner_text().startswith("q065: ")
        assert "matched:" in page.locator("#ranked section").nth(1).inner_text()
        page.locator("#hits section").nth(1).locator("li").first.wait_for()
        assert page.locator("#hits section").nth(0).locator(".terms").count() > 10
        assert page.locator("#hits section").nth(1).locator(".terms").count() == 0
        shutil.rmtree(Path(store.root, "index"))
        page.fill("#search-text", "protein")
        page.keyboard.press("Enter")
        page.locator("#search-note", has_text="Passages for: protein").wait_for()
        assert complaints == []


def test_hostile_text_stays_text(browser, tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    recorded = half_way(tmp_path / "lab", time.time(), ("a-b-c", bad, "d-e-f"))
    recorded.event(time.time(), "note", bad, "</li><script>alert(1)</script>")
    plan = json.loads(recorded.store.files.read(facts.PLAN))
    plan["cells"][0] |= {"size": bad, "head": bad}
    recorded.store.put_text(facts.PLAN, json.dumps(plan))
    with served(recorded.store) as address, watched(browser, address) as (page, complaints):
        page.goto(f"{address}/?filter=%3Cscript%3Ealert(1)%3C/script%3E&query={bad}")
        page.wait_for_selector("#matrix td")
        page.wait_for_selector("#curve-chart svg")
        page.wait_for_selector("#timeline-chart svg")
        assert page.locator("#matrix img, #log img, #log script, #runs img, svg img").count() == 0
        assert bad in page.locator("#runs").inner_text()
        assert complaints == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1200, "light"), (3840, "dark")])
def test_it_is_readable_at_every_width_and_by_keyboard(browser, tmp_path, width, scheme):
    recorded = half_way(tmp_path / "lab", time.time())
    size = {"width": width, "height": 800}
    with (
        served(recorded.store) as address,
        watched(browser, address, viewport=size, color_scheme=scheme) as (page, complaints),
    ):
        page.goto(address)
        page.wait_for_selector("#curve-chart svg")
        page.wait_for_selector("#timeline-chart svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        chart, frame = page.locator("#curve-chart svg"), page.locator("#curve-chart")
        assert chart.bounding_box()["width"] <= frame.bounding_box()["width"]
        picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
        assert (picture.mean() < 100) == (scheme == "dark")
        assert picture.std() > 5
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.locator("#runs input").first.focus()
        drawn = page.locator("#runs input:checked").count()
        page.keyboard.press("Space")
        assert page.locator("#runs input:checked").count() == drawn - 1
        assert page.evaluate("document.activeElement.type") == "checkbox"
        unnamed = page.eval_on_selector_all(
            "input, select, button, [role=img], [role=region], progress, form:not(.vega-bindings)",
            "all => all.filter(e => !(e.getAttribute('aria-label') || e.closest('label') || e.textContent))"
            ".map(e => e.outerHTML.slice(0, 200))",
        )
        assert unnamed == []
        ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
        assert len(ids) == len(set(ids))
        assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, tmp_path, scheme):
    """WCAG's AA: a contrast of 4.5 or more."""
    recorded = half_way(tmp_path / "lab", time.time())
    recorded.driver(time.time() - 3_600)

    def luminance(colour: str) -> float:
        shares = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    with (
        served(recorded.store) as address,
        watched(browser, address, color_scheme=scheme) as (page, _),
    ):
        page.goto(address)
        page.wait_for_selector("#matrix td.stopped")
        ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for place in (
            "body",
            ".note",
            "nav a",
            "#driver.silent",
            ".stopped .state",
            ".done .state",
        ):
            own = page.evaluate(f"getComputedStyle(document.querySelector('{place}')).color")
            light, dark = sorted((luminance(own), ground), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, place
