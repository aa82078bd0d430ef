"""An engine in a process of its own: native code that crashes ends the child, not the run.

llama.cpp and torch must not share a process either: both set up a thread's AMX tiles once and trust
them ever after, so whichever came first dies of an illegal instruction.

`python -m serve.engines.child NAME OPTIONS` is the child: JSON lines in, JSON lines out.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TextIO

import numpy as np

from serve.engines.base import Engine, LogitsTV
from serve.errors import EngineEnded, EngineError, RetortError
from serve.messages import Chunk, Completion, Grade, Message, Request, TokenScores

PR_SET_PDEATHSIG = 1
# Loaded here, because nothing may be between fork and exec.
LIBC = ctypes.CDLL(None)
LAST_WORDS_CHARACTERS = 300
# Between two replies lies a model's loading, or an answer: minutes for thousands of tokens.
SILENCE_LIMIT_S = 1800.0


class ChildEngine:
    """The parent's side, to be asked once it is `ready`.

    `close` ends the child; so does the end of the thread that made it.
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        silence_limit_s: float = SILENCE_LIMIT_S,
        python: str = sys.executable,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._silence_limit_s, self._silent = silence_limit_s, False
        # The child's last words: a file, because a pipe that nobody reads fills up.
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            [python, "-m", "serve.engines.child", name, json.dumps(options, default=str)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            encoding="utf-8",
        )
        self.name = name
        self.batch_invariant, self.block = False, 1
        self._unread, self._turn = False, 0

    def ready(self) -> ChildEngine:
        """Itself, once the model is loaded. Raises EngineError when it does not come up."""
        hello = self._read()
        self.name = str(hello["name"])
        self.batch_invariant = bool(hello["batch_invariant"])
        self.block = int(hello["block"])
        return self

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        self._words.close()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None and not pipe.closed:
                # What was not sent to a child that died is of no use, and its death has been said.
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        for reply in self._replies("generate", requests=[r.model_dump() for r in requests]):
            yield reply["key"], Completion.model_validate(reply["completion"])

    def stream(self, request: Request) -> Iterator[Chunk]:
        for reply in self._replies("stream", request=request.model_dump()):
            yield Chunk.model_validate(reply["chunk"])

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        self._send("score", messages=[m.model_dump() for m in messages], completion=completion)
        return TokenScores.model_validate(self._read()["scores"])

    def grade(self, requests: Sequence[Request], top: int) -> list[Grade]:
        self._send("grade", requests=[r.model_dump() for r in requests], top=top)
        return [Grade.model_validate(grade) for grade in self._read()["grades"]]

    def vocabulary(self) -> list[bytes | None]:
        self._send("vocabulary")
        return [None if t is None else t.encode("latin-1") for t in self._read()["pieces"]]

    def logits(self, ids: Sequence[int]) -> LogitsTV:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "logits.npy"
            self._send("logits", ids=[int(i) for i in ids], path=str(path))
            self._read()
            result: LogitsTV = np.load(path)
            return result

    def reload(self, path: Path) -> None:
        """Answer with another checkpoint's weights, where the engine can (vLLM)."""
        self._send("reload", path=str(path))
        self._read()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        self._send("prompt_ids", messages=[m.model_dump() for m in messages])
        return [int(i) for i in self._read()["ids"]]

    def end_ids(self) -> tuple[int, ...]:
        self._send("end_ids")
        return tuple(int(i) for i in self._read()["ids"])

    def peak_memory_bytes(self) -> int | None:
        """The most memory the child ever held, where /proc says so."""
        try:
            status = Path(f"/proc/{self._child.pid}/status").read_text(encoding="ascii")
        except OSError:
            return None
        line = next((x for x in status.splitlines() if x.startswith("VmHWM:")), "")
        return int(line.split()[1]) * 1024 if line else None

    def _replies(self, verb: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """Replies up to the last; a caller may leave before, and the next call waits them out."""
        self._send(verb, **fields)
        self._unread, turn = True, self._turn
        while "done" not in (reply := self._read()):
            yield reply
            if turn != self._turn:
                raise EngineError(f"{self.name} was asked something else before this answer ended")
        self._unread = False

    def _send(self, verb: str, **fields: Any) -> None:
        assert self._child.stdin is not None
        self._turn += 1
        while self._unread:  # a caller left before the end of the last answer
            self._unread = "done" not in self._read()
        try:
            self._child.stdin.write(json.dumps({"verb": verb, **fields}) + "\n")
            self._child.stdin.flush()
        except (BrokenPipeError, ValueError):
            self._ended()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        watchdog = threading.Timer(self._silence_limit_s, self._give_up)
        # An interrupt may come anywhere, and nobody should wait half an hour for a thread to end.
        watchdog.daemon = True
        try:
            watchdog.start()
            line = self._child.stdout.readline()
        finally:
            watchdog.cancel()
        if not line.endswith("\n"):  # nothing, or what a kill cut off
            self._ended()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineError(reply["error"], hint=reply["hint"])
        return reply

    def _give_up(self) -> None:
        self._silent = True
        self._child.kill()

    def _ended(self) -> NoReturn:
        code = self._child.wait()
        if self._silent:
            raise EngineEnded(
                f"the process of engine {self.name} gave no sign for {self._silence_limit_s:g} s"
            )
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._words.seek(0)
        lines = self._words.read().decode("utf-8", "replace").strip().splitlines()
        last = f": {lines[-1][:LAST_WORDS_CHARACTERS]}" if lines else ""
        raise EngineEnded(f"the process of engine {self.name} ended with {how}{last}")


def load_in_child(
    name: str, silence_limit_s: float = SILENCE_LIMIT_S, **options: Any
) -> ChildEngine:
    """Like `load_engine`, in a child process. Raises EngineError when it does not come up.

    A child that says nothing for `silence_limit_s`, as one that hangs, is killed.
    """
    return ChildEngine(name, options, silence_limit_s).ready()


def replies_apart() -> TextIO:
    """Where replies go: a descriptor of their own, because native code prints where it likes."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def die_with_parent() -> None:
    """Ask the kernel to end this process when the one that started it is gone (Linux)."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _child(name: str, options: dict[str, Any]) -> None:
    replies = replies_apart()

    def reply(**fields: Any) -> None:
        replies.write(json.dumps(fields) + "\n")

    try:
        from serve.engines import load_engine

        engine = load_engine(name, **options)
        reply(name=engine.name, batch_invariant=engine.batch_invariant, block=engine.block)
        for line in sys.stdin:
            _serve(engine, json.loads(line), reply)
    except BrokenPipeError:
        os._exit(0)  # the parent left
    except RetortError as error:
        reply(error=str(error.args[0]), hint=error.hint)


def _serve(engine: Engine, asked: dict[str, Any], reply: Any) -> None:
    verb = asked["verb"]
    messages = [Message.model_validate(m) for m in asked.get("messages", [])]
    if verb == "score":
        reply(scores=engine.score(messages, asked["completion"]).model_dump())
    elif verb == "grade":
        requests = [Request.model_validate(r) for r in asked["requests"]]
        reply(grades=[g.model_dump() for g in engine.grade(requests, asked["top"])])
    elif verb == "vocabulary":
        pieces = engine.vocabulary()
        reply(pieces=[None if p is None else p.decode("latin-1") for p in pieces])
    elif verb == "logits":
        np.save(asked["path"], engine.logits(asked["ids"]))
        reply(done=True)
    elif verb == "reload" and hasattr(engine, "reload"):
        engine.reload(Path(asked["path"]))
        reply(done=True)
    elif verb == "prompt_ids":
        reply(ids=engine.prompt_ids(messages))
    elif verb == "end_ids":
        reply(ids=engine.end_ids())
    elif verb == "stream":
        for chunk in engine.stream(Request.model_validate(asked["request"])):
            reply(chunk=chunk.model_dump())
        reply(done=True)
    else:
        for key, completion in engine.generate(
            [Request.model_validate(r) for r in asked["requests"]]
        ):
            reply(key=key, completion=completion.model_dump())
        reply(done=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    die_with_parent()
    given = json.loads(sys.argv[2])
    if "path" in given:
        given["path"] = Path(given["path"])
    _child(sys.argv[1], given)
