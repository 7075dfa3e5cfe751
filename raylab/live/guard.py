"""Who may see the page: this machine, or whoever has the token; and what a browser may do with it."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

from raylab.experiment.config import ConfigError

COOKIE = "raylab_watch"
SHORTEST_TOKEN = 16
PAGE_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The report is a page of its own: no script at all, and the styles that stand in it.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox allow-same-origin allow-downloads"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked_token(host: str, token: str | None) -> str | None:
    """The token, if it does for the address.

    Raises:
        ConfigError: another address than this machine's without a token, or a short one.
    """
    if token is None:
        if not is_loopback(host):
            raise ConfigError(
                f"--host {host}: others reach it, so it needs --token, of {SHORTEST_TOKEN} characters or more"
            )
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"--token: it must be {SHORTEST_TOKEN} printable ASCII characters or more"
        )
    return token


class Guard:
    """Middleware: Host, method and token of every request, and the headers of every answer.

    Args:
        host: that the server is bound to.
        token: None: none is asked for.
    """

    def __init__(self, host: str, token: str | None):
        self.host, self.token = host, token
        self.names = {"localhost", host.lower()}
        if not is_loopback(host):
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        # The cookie tells nothing of the token.
        self.cookie = (
            "" if token is None else hashlib.sha256(b"raylab watch " + token.encode()).hexdigest()
        )

    def knows_host(self, header: str) -> bool:
        """Whether a request was meant for this server: a page elsewhere cannot make its own name lead here."""
        try:
            name = header.lower()
            name = name[1 : name.index("]")] if name.startswith("[") else name.partition(":")[0]
        except ValueError:
            return False
        if name in self.names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not is_loopback(self.host)

    def knows_token(self, given: str) -> bool:
        """In constant time."""
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())

    def lets_in(self, request: web.Request) -> bool:
        """By cookie, or by `Authorization: Bearer TOKEN`."""
        if self.token is None:
            return True
        cookie = request.cookies.get(COOKIE, "")
        if hmac.compare_digest(cookie.encode(), self.cookie.encode()):
            return True
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.knows_token(given.strip())

    def middleware(self) -> Middleware:
        """For `aiohttp.web.Application`."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                response = await self._answer(request, handler)
            except web.HTTPException as refusal:
                response = web.Response(
                    status=refusal.status, text=f"{refusal.status} {refusal.reason}\n"
                )
            add_headers(response)
            return response

        return guard

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self.knows_host(request.headers.get("Host", "")):
            return web.Response(status=403, text="403: this server has another name\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(
                status=405, text="405: there is nothing to write here\n", headers={"Allow": "GET"}
            )
        if _is_of_another_page(request):
            return web.Response(status=403, text="403: a page elsewhere asked for this\n")
        given = request.query.get("token")
        if self.token is not None and given is not None:
            if not self.knows_token(given):
                return web.Response(status=401, text="401: another token\n")
            response = web.Response(status=303, headers={"Location": _without_token(request)})
            response.set_cookie(COOKIE, self.cookie, httponly=True, samesite="Lax", path="/")
            return response
        if not self.lets_in(request):
            return web.Response(status=401, text="401: open the address with ?token=TOKEN once\n")
        return await handler(request)


def _is_of_another_page(request: web.Request) -> bool:
    """Whether a page of another origin asked, other than by a link that somebody followed to a page."""
    if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return False
    followed = request.headers.get("Sec-Fetch-Mode") == "navigate"
    return not followed or request.path.startswith("/api/")


def _without_token(request: web.Request) -> str:
    """The address on this server that was asked for, its view included."""
    query = request.url.without_query_params("token").raw_query_string
    return "/" + request.rel_url.raw_path.lstrip("/\\") + (f"?{query}" if query else "")


def add_headers(response: web.StreamResponse) -> None:
    """What every answer says of itself, unless it says otherwise; a stream that has begun has said it."""
    if response.prepared:
        return
    for name, value in {**_HEADERS, "Content-Security-Policy": PAGE_POLICY}.items():
        response.headers.setdefault(name, value)
