"""One question on its way through the server: its pieces, and the times they came.

Bridges the thread that hears the model and the event loop that answers people.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress

from serve.conversations import Ask, Reply
from serve.model_process import ModelProcess


class Talk:
    """Asks at once. Raises Busy or EngineError. `leave` frees the slot and may be called twice."""

    def __init__(self, model: ModelProcess, ask: Ask) -> None:
        self.key = secrets.token_hex(12)
        self.model = model
        self.started_s = time.monotonic()
        self.first_s = self.last_s = 0.0
        self.prompt_tokens = self.tokens = self.reasoning_tokens = self._first_tokens = 0
        self._pieces: asyncio.Queue[Reply] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(reply: Reply) -> None:
            # The loop is gone when the server ended before the model did.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._pieces.put_nowait, reply)

        model.ask(self.key, ask, tell)

    async def next(self) -> Reply:
        """The next piece. After the last one there is none."""
        reply = await self._pieces.get()
        now_s = time.monotonic() - self.started_s
        if reply.prompt_tokens is not None:
            self.prompt_tokens = reply.prompt_tokens
        if reply.tokens or reply.finish:
            if not self.first_s:
                self.first_s, self._first_tokens = now_s, reply.tokens
            self.last_s = now_s
        self.tokens += reply.tokens
        self.reasoning_tokens = max(self.reasoning_tokens, reply.reasoning_tokens)
        return reply

    def leave(self) -> None:
        self.model.cancel(self.key)

    def usage(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }

    def timings(self) -> dict[str, float]:
        """Seconds since the question came; the rate is that of the tokens after the first
        piece, which may hold several."""
        writing_s, tokens = self.last_s - self.first_s, self.tokens - self._first_tokens
        rate = tokens / writing_s if writing_s > 0 else 0.0
        return {
            "first_token_s": round(self.first_s, 6),
            "total_s": round(self.last_s, 6),
            "tokens_per_s": round(rate, 3),
        }
