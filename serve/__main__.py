"""Serve the models of a bundle or a run to OpenAI's clients.

    python -m serve BUNDLE [--port 8000]

Listens on this machine only; another address needs `--api-key`, or RETORT_API_KEY, and clients that
send it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from serve.catalogue import CATALOGUE, Entry, read_catalogue
from serve.errors import DataError, RetortError, UsageError
from serve.limits import LOOPBACK
from serve.model_process import ModelProcess, Settings
from serve.pool import Pool
from serve.server import create_app

DRAIN_S = 8
# All of them are in one batch of 512 rows, each with its guesses.
MOST_SLOTS = 64


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _serve(options)
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _serve(options: argparse.Namespace) -> int:
    key = options.api_key or os.environ.get("RETORT_API_KEY") or None
    local = options.host in LOOPBACK
    if not local and key is None:
        raise UsageError(f"--host {options.host} is open to others and needs --api-key")
    held = read_catalogue(options.bundle)
    _check_names(held, options.models or ())
    entries = _checkable(held, options.models)
    draft = _draft(entries, options.draft)
    if options.models:
        entries = [entry for entry in entries if entry.name in options.models]
    if not entries:
        raise DataError(f"{options.bundle} holds no model to serve")
    if draft is not None and not any(_guessed_for(entry, draft) for entry in entries):
        raise UsageError(f"--draft {draft.name!r} has no other GGUF of those served to guess for")
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listening = socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise UsageError(
            f"port {options.port} cannot be used: {error}", hint="try --port"
        ) from error
    down: list[ModelProcess] = []

    def give_up(model: ModelProcess) -> None:
        """A model that nobody could talk to yet is only refused to those who ask for it."""
        if model.was_ready or model.entry.name == pool.first:
            down.append(model)
            server.should_exit = True

    settings = Settings(
        options.slots,
        options.queue,
        options.context_tokens,
        options.threads,
        draft,
        options.draft_tokens,
    )
    pool = Pool(entries, settings, give_up)
    config = uvicorn.Config(
        create_app(pool, key, LOOPBACK if local else ()),
        timeout_graceful_shutdown=DRAIN_S,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    server = uvicorn.Server(config)
    names = ", ".join(entry.name for entry in entries)
    host, port = listening.getsockname()[:2]
    host = f"[{host}]" if family == socket.AF_INET6 else host
    print(f"serving {names} at http://{host}:{port}/v1 (Ctrl-C ends)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if down:
        raise down[0].kind(f"{down[0].entry.name} does not stay up: {down[0].problem}")
    return 0


def _check_names(entries: Sequence[Entry], wanted: Sequence[str]) -> None:
    names = [entry.name for entry in entries]
    unknown = next((name for name in wanted if name not in names), None)
    if unknown is not None:
        there = ", ".join(map(repr, names))
        raise UsageError(f"--models: no model {unknown!r}", hint=f"there are {there}")


def _guessed_for(entry: Entry, draft: Entry) -> bool:
    return entry.engine == "llama.cpp" and entry.name != draft.name


def _checkable(entries: Sequence[Entry], wanted: Sequence[str] | None) -> list[Entry]:
    """Those whose file can be checked before it is loaded. Raises DataError for a wanted other."""
    unknown = [entry.name for entry in entries if entry.sha256 is None]
    asked = next((name for name in unknown if name in (wanted or ())), None)
    if asked is not None:
        raise DataError(f"{asked} is not served: {CATALOGUE} has no sha256 to check its file by")
    if unknown and not wanted:
        print(f"not served, for want of a sha256: {', '.join(unknown)}", file=sys.stderr)
    return [entry for entry in entries if entry.sha256 is not None]


def _draft(entries: Sequence[Entry], name: str | None) -> Entry | None:
    if name is None:
        return None
    ggufs = [entry for entry in entries if entry.engine == "llama.cpp"]
    found = next((entry for entry in ggufs if entry.name == name), None)
    if found is None:
        names = ", ".join(repr(entry.name) for entry in ggufs)
        raise UsageError(f"--draft {name!r} is no GGUF of the folder", hint=f"there are {names}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve", description="Serve the models of a bundle to OpenAI's clients."
    )
    parser.add_argument("bundle", type=Path, help="a bundle or a run, for example runs/default")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_between(0, 65_535), default=8000)
    parser.add_argument("--api-key", help="what clients must send (or RETORT_API_KEY)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="default: all of the folder")
    parser.add_argument(
        "--slots", type=_between(1, MOST_SLOTS), default=8, help="answered at a time"
    )
    parser.add_argument(
        "--queue", type=_between(0, 10_000), default=16, help="waiting, then refused with 429"
    )
    parser.add_argument(
        "--context-tokens", type=_between(64, 2**20), default=2048, help="prompt and answer"
    )
    parser.add_argument(
        "--draft", metavar="NAME", help="a small GGUF of the folder that guesses for larger ones"
    )
    parser.add_argument("--draft-tokens", type=_between(1, 64), default=4, help="guessed at a time")
    parser.add_argument("--threads", type=_between(1, 1024), help="of a GGUF (default: all cores)")
    return parser


def _between(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.lstrip("-").isdecimal() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {low} to {high}")
        return int(text)

    return number


if __name__ == "__main__":
    sys.exit(main())
