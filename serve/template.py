"""Renders the chat template that a model file carries, in a sandbox with limits of time and size.

A template is foreign code: it runs in jinja2's immutable sandbox, in this process, under a clock
and an output limit. Reads nothing, writes nothing. Does not tokenize.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols

from serve.errors import UntrustedFile
from serve.messages import Message

OUTPUT_LIMIT_CHARACTERS = 4_000_000
TIME_LIMIT_S = 2.0
SOURCE_LIMIT_CHARACTERS = 200_000


class ChatTemplate:
    """A compiled template; `render` gives the exact prompt text, `end_text` closes a turn."""

    def __init__(self, source: str, bos: str = "", eos: str = "", origin: str = "template") -> None:
        if len(source) > SOURCE_LIMIT_CHARACTERS:
            raise UntrustedFile(
                f"chat template of {origin} has {len(source)} characters, "
                f"limit {SOURCE_LIMIT_CHARACTERS}"
            )
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._origin, self.end_text = origin, eos
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UntrustedFile(f"chat template of {origin} does not compile: {error}") from error

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt text for `messages`.

        Raises UntrustedFile when the template misbehaves or is over a limit.
        """
        turns = [{"role": m.role, "content": m.content} for m in messages]
        started_s = time.monotonic()
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=turns, add_generation_prompt=add_generation_prompt, **self._special
            ):
                pieces.append(piece)
                size += len(piece)
                if size > OUTPUT_LIMIT_CHARACTERS or time.monotonic() - started_s > TIME_LIMIT_S:
                    raise UntrustedFile(
                        f"chat template of {self._origin} exceeds "
                        f"{OUTPUT_LIMIT_CHARACTERS} characters or {TIME_LIMIT_S} s"
                    )
        except (jinja2.TemplateError, TypeError, ValueError, RecursionError) as error:
            raise UntrustedFile(f"chat template of {self._origin} fails: {error}") from error
        return "".join(pieces)


def template_of(folder: Path) -> ChatTemplate:
    """The template a tokenizer's files hold. Raises OSError or ValueError where they do not."""
    source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    names = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    bos, eos = (_text(names.get(key)) for key in ("bos_token", "eos_token"))
    return ChatTemplate(source, bos, eos, folder.name)


def _text(token: Any) -> str:
    """tokenizer_config.json gives a special token as text, as a record, or not at all."""
    return str(token["content"] if isinstance(token, dict) else token or "")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox without the operators that build huge strings from small ones."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "%" and isinstance(left, int) and isinstance(right, int):
            return left % right
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            return left * right
        raise SecurityError(f"operator {operator} on {type(left).__name__} is refused")


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
