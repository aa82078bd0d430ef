"""The parent's side of a worker: a model in its own process, asked by many, started again if it
dies.

Every asker has a function that is told each piece, from a thread of this module.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serve.catalogue import Entry
from serve.conversations import Ask, Reply
from serve.errors import EngineError, RetortError

# So many deaths in so many seconds, and it is not started again.
DEATHS, WITHIN_S = 3, 60.0
LAST_WORDS_CHARACTERS = 300
State = Literal["loading", "ready", "down", "failed", "closed"]
Tell = Callable[[Reply], None]


class Busy(EngineError):
    """More are waiting than may wait."""


@dataclass(frozen=True)
class Settings:
    """`slots` people at a time and `queue` more who wait, with `context_tokens` each.

    `draft`, a GGUF, guesses `draft_tokens` ahead for every other GGUF.
    """

    slots: int
    queue: int
    context_tokens: int
    threads: int | None = None
    draft: Entry | None = None
    draft_tokens: int = 4


class ModelProcess:
    """One model of a catalogue."""

    def __init__(
        self,
        entry: Entry,
        settings: Settings,
        failed: Callable[[ModelProcess], None] = lambda _: None,
    ) -> None:
        self.entry, self.settings = entry, settings
        self.context_tokens = settings.context_tokens
        self.state: State = "loading"
        self.problem = ""
        self.path: Path | None = None
        self.was_ready = False
        self.restarts = 0
        self._capacity, self._failed = settings.slots + settings.queue, failed
        self._askers: dict[str, Tell] = {}
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def asked(self) -> int:
        return len(self._askers)

    def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Until the model answers. Raises EngineError when it does not come up."""
        with self._settled:
            self._settled.wait_for(lambda: self.state in ("ready", "failed", "closed"), timeout_s)
            if self.state != "ready":
                raise EngineError(self.problem or f"{self.entry.name} is {self.state}")

    def ask(self, key: str, ask: Ask, tell: Tell) -> None:
        """Have `tell` called with every piece. Raises Busy, or EngineError while it is down."""
        with self._lock:
            if self.state != "ready":
                raise EngineError(self.problem or f"{self.entry.name} is {self.state}")
            if len(self._askers) >= self._capacity:
                raise Busy(f"{len(self._askers)} questions are being answered or wait")
            self._askers[key] = tell
            self._send({"key": key, "ask": ask.model_dump(exclude_defaults=True)})

    def cancel(self, key: str) -> None:
        """Free the asker's slot; nothing more is told."""
        with self._lock:
            if self._askers.pop(key, None) is not None:
                self._send({"cancel": key})

    def close(self) -> None:
        with self._lock:
            self._become("closed", self.problem)
            if self._child is not None:
                self._child.kill()
        self._thread.join()

    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def _send(self, line: dict[str, Any]) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        # A child that is gone is told of by the thread that reads.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._child.stdin.write(json.dumps(line) + "\n")
            self._child.stdin.flush()

    def _become(self, state: State, problem: str = "") -> None:
        """Holds the lock."""
        if self.state != "closed":
            self.state, self.problem = state, problem
            self.was_ready = self.was_ready or state == "ready"
        self._settled.notify_all()

    def _run(self) -> None:
        """Starts the child, passes on what it says, starts it again; the child dies with it."""
        deaths: list[float] = []
        while True:
            problem = self._live()
            deaths = [*[d for d in deaths if time.monotonic() - d < WITHIN_S], time.monotonic()]
            final = len(deaths) >= DEATHS or self.state == "loading"
            with self._lock:
                self._become("failed" if final else "down", problem)
                askers, self._askers = self._askers, {}
                over = self.state in ("failed", "closed")
            for tell in askers.values():
                tell(Reply(error=problem))
            if over:
                break
            self.restarts += 1
        if self.state == "failed":
            self._failed(self)

    def _live(self) -> str:
        """One child from its start to its end; why it ended."""
        try:
            path = self.path = self.entry.path()
            options = json.dumps({"path": str(path)} | self._options())
        except RetortError as error:
            return str(error.args[0])
        with tempfile.TemporaryFile() as words:
            child = subprocess.Popen(
                [sys.executable, "-m", "serve.worker", self.entry.engine, options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                encoding="utf-8",
            )
            with child:
                self._child = child
                if self.state == "closed":
                    child.kill()
                problem = self._listen(child)
                child.kill()
            words.seek(0)
            lines = words.read().decode("utf-8", "replace").strip().splitlines()
        last = f": {lines[-1][:LAST_WORDS_CHARACTERS]}" if lines else ""
        return problem or f"the process of {self.entry.name} ended with {child.returncode}{last}"

    def _options(self) -> dict[str, Any]:
        """What the engine is opened with. Raises DataError, UntrustedFile for the draft's file."""
        settings, draft = self.settings, self.settings.draft
        options: dict[str, Any] = {
            "slots": settings.slots,
            "context_tokens": settings.context_tokens,
            "threads": settings.threads,
        }
        if draft is not None and draft.name != self.entry.name and self.entry.engine == "llama.cpp":
            options |= {"draft": str(draft.path()), "draft_tokens": settings.draft_tokens}
        return options

    def _listen(self, child: subprocess.Popen[str]) -> str:
        assert child.stdout is not None
        for line in child.stdout:
            said = json.loads(line)
            if "error" in said:
                return str(said["error"])
            if "told" not in said:
                with self._lock:
                    self.context_tokens = said["context_tokens"]
                    self._become("ready")
                continue
            for key, fields in said["told"]:
                self._pass_on(key, Reply.model_validate(fields))
        return ""

    def _pass_on(self, key: str, reply: Reply) -> None:
        with self._lock:
            tell = self._askers.get(key)
            if reply.last:
                self._askers.pop(key, None)
        if tell is not None:
            tell(reply)
