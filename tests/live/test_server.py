"""The server: what it answers, whom it answers, and that nothing a storage says becomes markup or a path."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientResponse, CookieJar
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from raylab.experiment.config import ConfigError
from raylab.live.guard import checked_token
from raylab.live.server import application
from raylab.storage.store import Store
from tests.live.conftest import RUNNING, half_way

TOKEN = "a-token-of-some-length"


def ask(store: Store, questions: Callable[[TestClient], Awaitable], host="127.0.0.1", token=None):
    async def go():
        server = TestServer(application(store, host, token))
        # Browsers keep cookies of IP addresses.
        async with TestClient(server, cookie_jar=CookieJar(unsafe=True)) as client:
            return await questions(client)

    return asyncio.run(go())


def test_a_state_comes_once_and_again_when_something_has_changed(running):
    async def questions(client: TestClient):
        first = await (await client.get("/api/state")).json()
        again = await (await client.get(f"/api/state?after={first['version']}")).json()
        assert again == {"version": first["version"]}
        running.event(time.time(), "note", "train", "something new")
        await asyncio.sleep(2.1)
        third = await (await client.get(f"/api/state?after={first['version']}")).json()
        assert third["state"]["events"][-1]["text"] == "something new"

    ask(running.store, questions)


def test_points_come_after_those_that_are_known(running):
    async def questions(client: TestClient):
        told = await (await client.get(f"/api/run/{RUNNING}")).json()
        assert [point["step"] for point in told["points"]] == list(range(1, 41))
        last = told["points"][-2]["n"]
        rest = await (await client.get(f"/api/run/{RUNNING}?after={last}")).json()
        assert rest["points"] == told["points"][-1:]
        assert (await client.get(f"/api/run/{RUNNING}?after=x")).status == 400
        assert (await client.get("/api/run/no-such-run")).status == 404

    ask(running.store, questions)


def test_events_are_sent_as_they_come_and_go_on_where_they_stopped(running):
    async def event(response: ClientResponse) -> dict:
        block = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10)
        return dict(line.split(": ", 1) for line in block.decode().strip().split("\n"))

    async def questions(client: TestClient):
        async with client.get("/api/stream") as response:
            assert response.content_type == "text/event-stream"
            assert "default-src 'self'" in response.headers["Content-Security-Policy"]
            first = await event(response)
            assert json.loads(first["data"])["version"] == first["id"]
        running.event(time.time(), "note", "train", "while nobody looked")
        await asyncio.sleep(2.1)
        async with client.get("/api/stream", headers={"Last-Event-ID": first["id"]}) as response:
            second = await event(response)
            assert second["id"] != first["id"]
            assert "while nobody looked" in second["data"]

    ask(running.store, questions)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8600", 200),
        ("127.0.0.1:8600", 200),
        ("[::1]:8600", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("10.0.0.1", 403),
        ("", 403),
        ("[", 403),
    ],
)
def test_a_page_elsewhere_cannot_lead_its_own_name_here(running, host, status):
    async def questions(client: TestClient):
        assert (await client.get("/api/state", headers={"Host": host})).status == status

    ask(running.store, questions)


def test_nothing_can_be_written(running):
    async def questions(client: TestClient):
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            for path in ("/", "/api/state", f"/api/run/{RUNNING}"):
                assert (await client.request(method, path)).status == 405

    ask(running.store, questions)


def test_a_token_is_given_once_and_a_cookie_tells_nothing_of_it(running):
    paths = (
        "/",
        "/api/state",
        f"/api/run/{RUNNING}",
        "/api/stream",
        "/page/vega.js",
        "/page/watch.js",
    )

    async def questions(client: TestClient):
        for path in (*paths, "/report/index.html", "/?token=wrong", "/?token="):
            assert (await client.get(path, allow_redirects=False)).status == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert (await client.get("/api/state", headers=bearer)).status == 200
        bad = {"Authorization": "Bearer wrong", "Cookie": "raylab_watch=wrong"}
        assert (await client.get("/api/state", headers=bad)).status == 401
        response = await client.get(f"/?token={TOKEN}", allow_redirects=False)
        assert (response.status, response.headers["Location"]) == (303, "/")
        cookie = response.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert TOKEN not in cookie
        assert (await client.get("/api/state")).status == 200

    ask(running.store, questions, "0.0.0.0", TOKEN)


def test_a_token_leaves_the_view_that_was_sent_with_it_and_leads_nowhere_else(running):
    async def questions(client: TestClient):
        async def location(address: str) -> str:
            response = await client.get(address, allow_redirects=False)
            assert response.status == 303
            return response.headers["Location"]

        assert await location(f"/?run=a%26b&token={TOKEN}&x=flops") == "/?run=a%26b&x=flops"
        for path in ("//evil.example/", "/%2f/evil.example", "/\\evil.example"):
            address = URL(f"http://127.0.0.1:{client.port}{path}?token={TOKEN}", encoded=True)
            response = await client.session.get(address, allow_redirects=False)
            assert urlsplit(response.headers["Location"]).netloc == ""

    ask(running.store, questions, "127.0.0.1", TOKEN)


def test_a_page_of_another_origin_is_answered_nothing(running):
    async def questions(client: TestClient):
        async def status(path: str, site: str, mode: str) -> int:
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode}
            return (await client.get(path, headers=headers)).status

        assert await status("/api/state", "same-origin", "cors") == 200
        assert await status("/", "cross-site", "navigate") == 200  # a link that a colleague sent
        for path, mode in (("/api/state", "no-cors"), ("/", "cors"), ("/api/state", "navigate")):
            assert await status(path, "cross-site", mode) == 403

    ask(running.store, questions)


def test_another_address_needs_a_token_of_some_length():
    assert checked_token("127.0.0.1", None) is None
    assert checked_token("::1", None) is None
    for host in ("0.0.0.0", "::", "192.168.1.2", "lab.example"):
        with pytest.raises(ConfigError, match=r"--host .* needs --token"):
            checked_token(host, None)
        assert checked_token(host, TOKEN) == TOKEN
    with pytest.raises(ConfigError, match="16 printable ASCII characters"):
        checked_token("0.0.0.0", "short")


def test_every_answer_says_what_a_browser_may_do(running):
    async def questions(client: TestClient):
        for path in ("/", "/api/state", "/page/watch.css", "/no-such-page", "/api/run/none"):
            headers = (await client.get(path)).headers
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'self';")
            assert "unsafe" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff"

    ask(running.store, questions)


def test_only_files_of_the_report_are_served_and_without_scripts(finished):
    (finished / "report/notes.exe").write_text("no")

    async def questions(client: TestClient):
        page = await client.get("/report/index.html")
        assert page.status == 200
        assert "script-src" not in page.headers["Content-Security-Policy"]
        assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
        for path in (
            "/report/notes.exe",
            "/report/..%2fresults.parquet",
            "/report/%2e%2e/results.parquet",
            "/report/..%2f..%2f..%2fetc%2fpasswd",
            "/report/results.parquet",
            "/results.parquet",
            "/report/",
        ):
            assert (await client.get(path)).status == 404, path

    ask(Store(str(finished)), questions)


def test_hostile_ids_stay_text(tmp_path):
    bad = "<img src=x onerror=alert(1)>&\"'{{7*7}}"
    recorded = half_way(tmp_path / bad, time.time(), ("a-b-c", bad.replace("/", ""), "d-e-f"))
    recorded.event(time.time(), "note", "x", "</script><script>alert(1)</script>\n\ndata: {}\n\n")

    async def questions(client: TestClient):
        page = await (await client.get("/")).text()
        assert "<img src=x" not in page
        assert "&lt;img src=x" in page
        assert "{{7*7}}" in page.replace("&#39;", "'")
        state = (await (await client.get("/api/state")).json())["state"]
        assert bad in {run["run"] for run in state["runs"]}
        for path in ("/api/run/..%2f..%2fresults.parquet", "/api/run/%00", "/api/run/.."):
            assert (await client.get(path)).status == 404
        async with client.get("/api/stream") as response:  # one event, whatever the text holds
            block = await response.content.readuntil(b"\n\n")
            assert len(block.decode().strip().split("\n")) == 3

    ask(recorded.store, questions)


def test_a_storage_that_is_away_leaves_what_was_known_and_says_so(running):
    async def questions(client: TestClient):
        await client.get("/api/state")
        running.store.put_text("results.parquet", "no table at all")
        await asyncio.sleep(2.1)
        state = (await (await client.get("/api/state")).json())["state"]
        assert "not a whole table" in state["fault"]
        assert len(state["cells"]) == 3

    ask(running.store, questions)


def test_an_empty_storage_is_a_page_too(tmp_path):
    async def questions(client: TestClient):
        assert (await client.get("/")).status == 200
        state = (await (await client.get("/api/state")).json())["state"]
        assert (state["driver"]["state"], state["cells"]) == ("unknown", [])
        assert await (await client.get("/api/chart/scaling")).json() is None

    ask(Store(str(tmp_path / "nothing")), questions)
    assert not (tmp_path / "nothing").exists()
