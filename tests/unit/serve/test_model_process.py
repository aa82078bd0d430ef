"""The parent's side of a model: who waits while it loads, and what is told when it cannot."""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serve.catalogue import Entry
from serve.conversations import Ask
from serve.errors import EngineError, UntrustedFile
from serve.model_process import CLOSED_WITHIN_S, Busy, ModelProcess, Settings
from serve.pool import Pool

NO = EngineError("no")
SETTINGS = Settings(slots=1, queue=1, context_tokens=64)
LIMIT_S = 20.0


@dataclass(frozen=True)
class Slow(Entry):
    """Its file is being hashed until `hashed` is set; then `error` is raised."""

    error: Exception = NO
    hashed: threading.Event = field(default_factory=threading.Event)

    def path(self):
        assert self.hashed.wait(LIMIT_S)
        raise self.error


class Known(Entry):
    """One whose file is there."""

    def __init__(self, name):
        super().__init__(name, "llama.cpp", f"path:deep/folder/{name}.gguf", None, ())

    def path(self):
        return Path(f"/m/{self.name}.gguf")


def slow(error=NO, location="path:my models/b/s.gguf"):
    return Slow("student", "llama.cpp", location, None, (), error=error)


def until(wanted):
    started_s = time.monotonic()
    while not wanted():
        assert time.monotonic() - started_s < LIMIT_S
        time.sleep(0.01)


def test_who_asks_while_a_model_loads_waits_in_the_queue_and_is_told_why_it_failed():
    entry, told = slow(), []
    model = ModelProcess(entry, SETTINGS)
    model.ask("x", Ask(begun="1"), told.append)
    model.ask("y", Ask(begun="1"), told.append)
    with pytest.raises(Busy):
        model.ask("z", Ask(begun="1"), told.append)
    assert model.asked == 2
    model.cancel("y")
    assert model.asked == 1
    entry.hashed.set()
    until(lambda: told)
    assert [reply.error for reply in told] == ["no"]
    assert (model.state, model.problem) == ("failed", "no")
    with pytest.raises(EngineError, match="no"):
        model.ask("x", Ask(begun="1"), told.append)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (PermissionError(13, "Permission denied"), "student cannot be started: [Errno 13] Perm"),
        (UntrustedFile("sha256 of path:my models/b/s.gguf is 1"), "sha256 of s.gguf is 1"),
        (EngineError("checkpoint my models/b/s.gguf does not load"), "checkpoint s.gguf does not"),
    ],
)
def test_whatever_keeps_a_model_from_loading_is_told_without_its_place(error, problem):
    entry = slow(error)
    entry.hashed.set()
    given_up = threading.Event()
    model = ModelProcess(entry, SETTINGS, lambda _: given_up.set())
    assert given_up.wait(LIMIT_S)
    assert model.state == "failed"
    assert model.problem.startswith(problem)


def test_a_pool_ends_while_its_models_are_still_being_hashed():
    entries = [slow(), Slow("other", "llama.cpp", "path:x", None, ())]
    pool = Pool(entries, SETTINGS)
    models = [pool.model(name) for name in pool.entries]
    started_s = time.monotonic()
    pool.close()
    assert time.monotonic() - started_s < 2 * CLOSED_WITHIN_S + 1
    assert [model.state for model in models] == ["closed", "closed"]
    for entry in entries:
        entry.hashed.set()


def test_a_draft_guesses_for_every_other_gguf_and_for_nothing_else():
    settings = Settings(slots=1, queue=1, context_tokens=64, draft=Known("small"), draft_tokens=3)
    given = {}
    for name, engine in (("large", "llama.cpp"), ("small", "llama.cpp"), ("onnx", "onnxruntime")):
        entry = Slow(name, engine, f"path:{name}", None, ())
        model = ModelProcess(entry, settings)
        given[name] = model._options()
        entry.hashed.set()
        model.close()
    assert (given["large"]["draft"], given["large"]["draft_tokens"]) == ("/m/small.gguf", 3)
    assert "draft" not in given["small"] | given["onnx"]


def test_no_place_of_a_draft_is_told():
    entry = Slow("large", "llama.cpp", "path:m/large.gguf", None, ())
    entry.hashed.set()
    object.__setattr__(entry, "error", UntrustedFile("sha256 of path:deep/folder/small.gguf is 1"))
    settings = Settings(slots=1, queue=1, context_tokens=64, draft=Known("small"))
    model = ModelProcess(entry, settings)
    until(lambda: model.state == "failed")
    assert model.problem == "sha256 of small.gguf is 1"
    assert model.kind is UntrustedFile
