"""Clients of an OpenAI-compatible server that cost it little: streams read as bytes, times kept."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

# What a piece that holds text looks like, in either dialect of streaming.
TEXTS = ("content", "reasoning_content", "text")


@dataclass(frozen=True)
class Answer:
    """Seconds count from the moment the question was sent."""

    status: int
    text: str
    tokens: int
    first_s: float
    total_s: float

    @property
    def tokens_per_s(self) -> float:
        """Of the tokens after the first."""
        writing_s = self.total_s - self.first_s
        return (self.tokens - 1) / writing_s if self.tokens > 1 and writing_s > 0 else 0.0


async def ask(base: str, route: str, body: dict[str, Any]) -> Answer:
    """Stream one answer; a connection of its own. A refusal is an Answer with its status."""
    address = urlsplit(base)
    sent = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = (
        f"POST {route} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    )
    started_s = time.monotonic()
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(head.encode() + sent)
        status = int((await reader.readline()).split()[1])
        text, tokens, first_s, last_s = "", 0, 0.0, 0.0
        async for line in reader:
            if not line.startswith(b"data: {"):
                continue
            piece = json.loads(line[6:])
            now_s = time.monotonic() - started_s
            if piece.get("usage"):
                tokens = piece["usage"]["completion_tokens"]
            said = _said(piece)
            if said:
                first_s, last_s = first_s or now_s, now_s
                text += said
        return Answer(status, text, tokens, first_s, last_s)
    finally:
        writer.close()


def _said(piece: dict[str, Any]) -> str:
    choice = (piece.get("choices") or [{}])[0]
    delta = choice.get("delta", choice)
    return "".join(delta.get(name) or "" for name in TEXTS)
