"""Renders the chat template that a model file carries, in a sandbox with limits of time and size.

A template is foreign code: it runs in jinja2's immutable sandbox, in this process, with an output
limit and a clock that every turn of its loops and every call of its macros looks at. Reads nothing,
writes nothing. Does not tokenize.
"""

from __future__ import annotations

import ast
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from datetime import datetime
from pathlib import Path
from string import Formatter
from types import CodeType
from typing import Any

import jinja2
import jinja2.sandbox
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_center, do_format, do_indent
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.runtime import str_join

from serve.errors import UntrustedFile
from serve.messages import Message

OUTPUT_LIMIT_CHARACTERS = 4_000_000
TIME_LIMIT_S = 2.0
SOURCE_LIMIT_CHARACTERS = 200_000
# Of what is padded or indented.
WIDEST = 999
NUMBER = re.compile(r"\d+")


class _Generation(Extension):
    """`{% generation %}` marks for trainers what the assistant says; a prompt has it as it is."""

    tags = {"generation"}  # noqa: RUF012 jinja's own form

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class ChatTemplate:
    """A compiled template; `render` gives the exact prompt text, `end_text` closes a turn."""

    def __init__(self, source: str, bos: str = "", eos: str = "", origin: str = "template") -> None:
        if len(source) > SOURCE_LIMIT_CHARACTERS:
            raise UntrustedFile(
                f"chat template of {origin} has {len(source)} characters, "
                f"limit {SOURCE_LIMIT_CHARACTERS}"
            )
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self._environment = environment
        environment.filters["tojson"] = _tojson
        environment.filters |= {"center": _padded, "format": _formatted, "indent": _indented}
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
        self._environment.deadline_s = time.monotonic() + TIME_LIMIT_S
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=turns, add_generation_prompt=add_generation_prompt, **self._special
            ):
                pieces.append(piece)
                size += len(piece)
                self._environment.look_at_the_clock()
                if size > OUTPUT_LIMIT_CHARACTERS:
                    raise SecurityError(f"over {OUTPUT_LIMIT_CHARACTERS} characters")
        except Exception as error:  # whatever foreign code meets
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


# Methods and filters that fill up to any width.
PADDING = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The immutable sandbox without what builds huge strings from small ones, and with a clock."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    deadline_s = math.inf

    def look_at_the_clock(self) -> None:
        if time.monotonic() > self.deadline_s:
            raise SecurityError(f"over {TIME_LIMIT_S} s")

    def _compile(self, source: str, filename: str) -> CodeType:
        """jinja2's hook. A loop that writes nothing never comes back to whoever reads the output,
        so it looks at the clock itself."""
        tree = ast.parse(source, filename)
        for node in ast.walk(tree):
            if isinstance(node, ast.For) or (
                isinstance(node, ast.FunctionDef) and node.name == "macro"
            ):
                node.body.insert(0, ast.Expr(ast.Call(_of("look_at_the_clock"), [], [])))
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "str_join":
                node.func = _of("join")
        return compile(ast.fix_missing_locations(tree), filename, "exec")

    def join(self, parts: Iterable[Any]) -> Any:
        """What `~` makes of its parts."""
        return _bounded(str_join(parts))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_widths(*(spec for _, _, spec, _ in Formatter().parse(value.__self__)))
        return wrapped

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        padding = isinstance(obj, str) and attr in PADDING
        return not padding and super().is_safe_attribute(obj, attr, value)

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "+":
            return _bounded(left + right)
        if operator == "%" and isinstance(left, int) and isinstance(right, int):
            return left % right
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            return left * right
        raise SecurityError(f"operator {operator} on {type(left).__name__} is refused")


def _of(name: str) -> ast.Attribute:
    """That attribute of the environment, which every function of compiled source can see."""
    return ast.Attribute(ast.Name("environment", ast.Load()), name, ast.Load())


def _bounded(value: Any) -> Any:
    if isinstance(value, Sized) and len(value) > OUTPUT_LIMIT_CHARACTERS:
        raise SecurityError(f"over {OUTPUT_LIMIT_CHARACTERS} characters")
    return value


def _check_widths(*texts: object) -> None:
    """Refuses what would fill a text up to any length, or to one that is only known later."""
    told = " ".join(map(str, texts))
    if re.search(r"[{*]", told) or any(int(number) > WIDEST for number in NUMBER.findall(told)):
        raise SecurityError(f"wider than {WIDEST} is refused")


def _formatted(value: object, *given: object, **named: object) -> str:
    """jinja2's filter, which is printf's. By name a width could stand behind the name."""
    if named:
        raise SecurityError("format by name is refused")
    _check_widths(*re.findall(r"%([-#0 +*.\d]*)", str(value)))
    return do_format(str(value), *given)


def _padded(value: object, width: int = 80) -> str:
    _check_widths(width)
    return do_center(str(value), width)


def _indented(value: object, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(width, str):
        _check_widths(width)
    return do_indent(str(value), width, first, blank)


def _tojson(value: Any, indent: int | None = None) -> str:
    _check_widths(indent)
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
