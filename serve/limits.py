"""What a request must pass before anything reads it: its size, its key, where it says it goes.

Plain ASGI, so that a client that leaves is noticed behind it.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT_BYTES = 1 << 20
OPEN_ROUTES = frozenset({"/health"})
# In quotes a path may hold blanks.
QUOTED = re.compile(r"(['\"])(?:path:)?/(?:[^'\"/]+/)*([^'\"/]+)\1")
PATH = re.compile(r"(?<![\w/.])(?:path:)?/(?:[^\s/:]+/)*([^\s/:]+)")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})


class Limits:
    """`hosts`: names a request may be for (none: any), against pages that point theirs here."""

    def __init__(self, app: ASGIApp, api_key: str | None, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, hosts
        self._wanted = f"Bearer {api_key}".encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts and _without_port(host) not in self._hosts:
            await _refuse(send, 421, "this server answers on this machine only", "host")
            return
        if scope["path"] not in OPEN_ROUTES and not self._has_key(headers):
            await _refuse(send, 401, "the API key is missing or wrong", "authorization")
            return
        body = await _body(receive, headers.get(b"content-length", b"0"))
        if body is None:
            await _refuse(send, 413, f"a body has at most {BODY_LIMIT_BYTES} bytes", "body")
            return
        await self._app(scope, _replayed(body, receive), send)

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        given = headers.get(b"authorization", b"")
        return self._wanted is None or hmac.compare_digest(given, self._wanted)


async def _body(receive: Receive, announced: bytes) -> bytes | None:
    """The whole body; None where it is over the limit, of which no more is kept than the limit."""
    if announced.isdigit() and int(announced) > BODY_LIMIT_BYTES:
        return None
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_LIMIT_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _without_port(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if name and port.isdigit() and (":" not in name or name.endswith("]")) else host


def problem(status: int, message: str, parameter: str | None = None) -> dict[str, object]:
    """An error in OpenAI's form. Of a path it tells the last part only."""
    message = PATH.sub(r"\1", QUOTED.sub(r"\1\2\1", message))
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": parameter, "code": status}}


async def _refuse(send: Send, status: int, message: str, parameter: str) -> None:
    body = json.dumps(problem(status, message, parameter)).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
