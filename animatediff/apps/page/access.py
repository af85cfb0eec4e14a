"""Who comes in, and what a browser may do with the page: password, visitors, origins, headers."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from animatediff.apps.page.options import Options

VISITOR = "efficientmt_visitor"
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
# Of the routes that gradio's server brings, those that its clients need; none of them fetches what a visitor names.
GRADIO = re.compile(
    r"/(config|gradio_api/(info|openapi\.json|startup-events|upload|upload_progress|queue/(join|data|status)|call/.+|"
    r"cancel|reset|heartbeat/[\w-]+|file=(?!https?:).+|mcp(/.*)?))/?"
)
STARTUP = "/gradio_api/startup-events"  # gradio asks itself for this as it starts, and knows no password
OURS = re.compile(r"/|/(static|page)/.+|/favicon\.ico|/robots\.txt")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Access:
    """ASGI middleware around everything that the server answers."""

    def __init__(self, app: Any, options: Options) -> None:
        self.app, self.options = app, options
        self.headers = [(name.encode(), value.encode()) for name, value in _headers(options.framed).items()]
        same_site = "SameSite=None; Secure; Partitioned" if options.framed else "SameSite=Lax"
        self.cookie = f"Path=/; HttpOnly; Max-Age=31536000; {same_site}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refuse(scope, headers)
        if refused is not None:
            await _answer(send, *refused)
            return
        visitor = _visitor_in(headers.get("cookie", ""))
        scope["visitor"] = visitor or secrets.token_hex(16)

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
                if not visitor:
                    cookie = f"{VISITOR}={scope['visitor']}; {self.cookie}"
                    message["headers"].append((b"set-cookie", cookie.encode()))
            await send(message)

        await self.app(scope, receive, sent)

    def _refuse(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        """Status, text and headers of a refusal; None where the request may go on."""
        path, host = scope["path"], headers.get("host", "")
        if self.options.host in LOOPBACK and host.rpartition(":")[0 if ":" in host else 2] not in LOOPBACK:
            return 421, "this page answers to localhost only", {}  # another site's name made to point here
        if self.options.password and path != STARTUP and not self._knows(headers.get("authorization", "")):
            return 401, "a user name and a password are needed", {"www-authenticate": 'Basic realm="EfficientMT"'}
        if not (OURS.fullmatch(path) or GRADIO.fullmatch(path)):
            return 404, "there is nothing here", {}
        if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site", "none") not in (
            "none",
            "same-origin",
        ):
            return 403, "requests from other sites are refused", {}
        return None

    def _knows(self, header: str) -> bool:
        kind, _, code = header.partition(" ")
        try:
            given = base64.b64decode(code, validate=True) if kind.lower() == "basic" else b""
        except binascii.Error:
            given = b""
        return hmac.compare_digest(given, f"{self.options.user}:{self.options.password}".encode())


def _headers(framed: bool) -> dict[str, str]:
    """What a browser is told of every answer."""
    frames = "https://huggingface.co https://*.hf.space" if framed else "'none'"
    return {
        "content-security-policy": (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' "
            f"blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors {frames}"
        ),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }


def _visitor_in(cookie: str) -> str:
    found = re.search(rf"(?:^|;\s*){VISITOR}=([0-9a-f]{{32}})(?:;|$)", cookie)
    return found[1] if found else ""


async def _answer(send: Send, status: int, text: str, more: dict[str, str]) -> None:
    body = text.encode()
    headers = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), **more}
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
