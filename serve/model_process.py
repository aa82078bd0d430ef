"""The parent's side of a worker: a model in its own process, asked by many, started again if it
dies.

Every asker has a function that is told each piece, from a thread of this module.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from serve.catalogue import Entry
from serve.conversations import Ask, Reply
from serve.errors import EngineError, RetortError

# So many deaths without having been up for so long, and it is not started again.
DEATHS, UP_S = 3, 60.0
# Of a process that people wait for. Some runtimes read a whole prompt in silence, on a slow laptop
# at so many tokens a second.
SILENCE_LIMIT_S, SLOW_READING_TOKENS_PER_S, LOOKED_EVERY_S = 300.0, 5.0, 5.0
# For a file of many gigabytes on a slow disk.
LOADING_LIMIT_S = 600.0
# A file that is being hashed cannot be told to stop; the process does not wait for it.
CLOSED_WITHIN_S = 1.0
LAST_WORDS_CHARACTERS = 300
State = Literal["loading", "ready", "down", "failed", "closed"]
Tell = Callable[[Reply], None]
log = logging.getLogger("retort.serve")


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
        # Of what keeps it from starting: a file that is another one is worth its own exit code.
        self.kind: type[RetortError] = EngineError
        self.path: Path | None = None
        self.was_ready = False
        self.restarts = 0
        self._capacity, self._failed = settings.slots + settings.queue, failed
        self._askers: dict[str, Tell] = {}
        # Questions to a model that is still loading.
        self._unsent: dict[str, dict[str, Any]] = {}
        self._heard_s = time.monotonic()
        self._lock = threading.Lock()
        # To the child that is there, written by a thread: a pipe to one that hangs fills up, and
        # who asks must not wait for that.
        self._outbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._child: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def asked(self) -> int:
        return len(self._askers)

    def ask(self, key: str, ask: Ask, tell: Tell) -> None:
        """Have `tell` called with every piece, once the model is there.

        Raises Busy, or EngineError while the model is down.
        """
        with self._lock:
            if self.state not in ("ready", "loading"):
                raise EngineError(self.problem or f"{self.entry.name} is {self.state}")
            if len(self._askers) >= self._capacity:
                raise Busy(f"{len(self._askers)} questions are being answered or wait")
            if not self._askers:
                self._heard_s = time.monotonic()
            self._askers[key] = tell
            line = {"key": key, "ask": ask.model_dump(exclude_defaults=True)}
            if self.state == "ready":
                self._send(line)
            else:
                self._unsent[key] = line

    def cancel(self, key: str) -> None:
        """Free the asker's slot; nothing more is told."""
        with self._lock:
            if self._askers.pop(key, None) is not None and self._unsent.pop(key, None) is None:
                self._send({"cancel": key})

    def kill(self) -> None:
        """Begin to end; nobody is answered from here on."""
        with self._lock:
            self._become("closed", self.problem)
            if self._child is not None:
                self._child.kill()

    def close(self) -> None:
        self.kill()
        self._thread.join(CLOSED_WITHIN_S)

    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def _send(self, line: dict[str, Any]) -> None:
        self._outbox.put(json.dumps(line) + "\n")

    def _become(self, state: State, problem: str = "") -> None:
        """Holds the lock."""
        if self.state != "closed":
            self.state, self.problem = state, problem
            self.was_ready = self.was_ready or state == "ready"

    def _run(self) -> None:
        """Starts the child, passes on what it says, starts it again; the child dies with it."""
        deaths = 0
        while True:
            self._ready_s: float | None = None
            problem = self._lived()
            up_s = time.monotonic() - self._ready_s if self._ready_s is not None else 0.0
            deaths = 1 if up_s >= UP_S else deaths + 1
            final = deaths >= DEATHS or self.state == "loading"
            with self._lock:
                self._become("failed" if final else "down", problem)
                askers, self._askers = self._askers, {}
                self._unsent = {}
                over = self.state in ("failed", "closed")
            for tell in askers.values():
                tell(Reply(error=problem))
            if over:
                break
            self.restarts += 1
        if self.state == "failed":
            self._failed(self)

    def _lived(self) -> str:
        """Why a child ended or did not start, in words that name no place on this disk."""
        try:
            problem = self._live()
        except Exception as error:
            log.exception("%s", self.entry.name)
            problem = f"{self.entry.name} cannot be started: {error}"
        entries = [self.entry, *([self.settings.draft] if self.settings.draft else [])]
        places = [str(self.path)] if self.path else []
        for entry in entries:
            places += [entry.location, entry.location.partition(":")[2]]
        return reduce(lambda told, place: told.replace(place, Path(place).name), places, problem)

    def _live(self) -> str:
        """One child from its start to its end; why it ended."""
        try:
            path = self.path = self.entry.path()
            options = json.dumps({"path": str(path)} | self._options())
        except RetortError as error:
            self.kind = type(error)
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
                outbox = self._outbox = queue.SimpleQueue()
                writer = threading.Thread(target=_write, args=[child, outbox], daemon=True)
                writer.start()
                if self.state == "closed":
                    child.kill()
                threading.Thread(target=self._watch, args=[child], daemon=True).start()
                problem = self._listen(child)
                child.kill()
                outbox.put(None)
                writer.join()
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

    def _watch(self, child: subprocess.Popen[str]) -> None:
        """A process that hangs is ended; the thread that reads then tells those who wait."""
        limit_s, started_s = SILENCE_LIMIT_S, time.monotonic()
        if self.entry.engine != "llama.cpp":  # which reads in parts, and gives a sign after each
            limit_s = max(limit_s, self.settings.context_tokens / SLOW_READING_TOKENS_PER_S)
        while child.poll() is None:
            time.sleep(LOOKED_EVERY_S)
            with self._lock:
                ready = self.state == "ready"
                heard_s = self._heard_s if ready else started_s
                silent_s = time.monotonic() - heard_s
                hangs = silent_s > (limit_s if ready else LOADING_LIMIT_S)
                hangs = hangs and (bool(self._askers) or not ready)
            if hangs:
                log.error("%s: no sign for %.0f s", self.entry.name, silent_s)
                child.kill()

    def _listen(self, child: subprocess.Popen[str]) -> str:
        assert child.stdout is not None
        for line in child.stdout:
            if not line.endswith("\n"):
                break  # killed while it spoke
            said = json.loads(line)
            self._heard_s = time.monotonic()
            if "error" in said:
                return str(said["error"])
            if "told" not in said:
                if said["note"]:
                    log.warning("%s: %s", self.entry.name, said["note"])
                with self._lock:
                    self.context_tokens = said["context_tokens"]
                    self._ready_s = self._heard_s
                    self._become("ready")
                    for unsent in self._unsent.values():
                        self._send(unsent)
                    self._unsent = {}
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


def _write(child: subprocess.Popen[str], outbox: queue.SimpleQueue[str | None]) -> None:
    """Pass lines on to the child until there is a None, then close its pipe."""
    assert child.stdin is not None
    # A child that is gone is told of by the thread that reads.
    with contextlib.suppress(BrokenPipeError):
        while (line := outbox.get()) is not None:
            child.stdin.write(line)
            child.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()  # what was not sent is of no use to a child that is gone
