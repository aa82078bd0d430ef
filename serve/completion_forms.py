"""Answers in OpenAI's forms, whole and in pieces, with `timings` beside them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from serve.conversations import Reply
from serve.talk import Talk


class Form:
    """One answer of one route. `wants_usage`: a stream ends with a piece that holds the usage.

    `asked_field` is the one that is at fault where a question is refused.
    """

    whole_object = piece_object = ""
    prefix = asked_field = ""

    def __init__(self, model: str, wants_usage: bool) -> None:
        self._model, self.wants_usage = model, wants_usage
        self._created = int(time.time())

    def _frame(self, talk: Talk, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}-{talk.key}",
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def whole(self, talk: Talk, replies: Sequence[Reply]) -> dict[str, Any]:
        choice = self._said(replies) | {
            "index": 0,
            "finish_reason": replies[-1].finish,
            "logprobs": None,
        }
        framed = self._frame(talk, self.whole_object, [choice])
        return framed | {"usage": talk.usage(), "timings": talk.timings()}

    def piece(self, talk: Talk, reply: Reply) -> str | None:
        """One line of a stream; None where nothing is to be told."""
        said = self._delta(reply)
        if said is None and reply.finish is None:
            return None
        choice = said or self._nothing()
        choice |= {"index": 0, "finish_reason": reply.finish, "logprobs": None}
        framed = self._frame(talk, self.piece_object, [choice])
        if reply.finish is not None:
            framed["timings"] = talk.timings()
        return event(framed)

    def usage(self, talk: Talk) -> str:
        return event(self._frame(talk, self.piece_object, []) | {"usage": talk.usage()})

    def _said(self, replies: Sequence[Reply]) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, reply: Reply) -> dict[str, Any] | None:
        raise NotImplementedError

    def _nothing(self) -> dict[str, Any]:
        raise NotImplementedError


class ChatForm(Form):
    whole_object, piece_object, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"
    asked_field = "messages"

    def _said(self, replies: Sequence[Reply]) -> dict[str, Any]:
        reasoning = "".join(reply.reasoning for reply in replies)
        content = "".join(reply.content for reply in replies)
        message = {"role": "assistant", "content": content, "reasoning_content": reasoning or None}
        return {"message": message}

    def _delta(self, reply: Reply) -> dict[str, Any] | None:
        delta: dict[str, Any] = {}
        if reply.prompt_tokens is not None:
            delta = {"role": "assistant", "content": ""}
        if reply.reasoning:
            delta["reasoning_content"] = reply.reasoning
        if reply.content:
            delta["content"] = reply.content
        return {"delta": delta} if delta else None

    def _nothing(self) -> dict[str, Any]:
        return {"delta": {}}


class TextForm(Form):
    whole_object = piece_object = "text_completion"
    prefix, asked_field = "cmpl", "prompt"

    def _said(self, replies: Sequence[Reply]) -> dict[str, Any]:
        return {"text": "".join(reply.content for reply in replies)}

    def _delta(self, reply: Reply) -> dict[str, Any] | None:
        return {"text": reply.content} if reply.content else None

    def _nothing(self) -> dict[str, Any]:
        return {"text": ""}


def event(fields: dict[str, Any]) -> str:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n"
