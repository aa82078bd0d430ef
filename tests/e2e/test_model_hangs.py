"""A model's process that hangs, as one that a machine's memory starves: ended and started again."""

import os
import queue
import signal
import time

from serve import model_process
from serve.catalogue import read_catalogue
from serve.conversations import Ask
from tests.e2e.serving import write_bundle


def test_a_model_that_hangs_is_ended_and_started_again(monkeypatch, tmp_path):
    monkeypatch.setattr(model_process, "SILENCE_LIMIT_S", 10.0)
    monkeypatch.setattr(model_process, "SLOW_READING_TOKENS_PER_S", 1000.0)
    monkeypatch.setattr(model_process, "LOOKED_EVERY_S", 0.1)
    (entry,) = read_catalogue(write_bundle(tmp_path))
    model = model_process.ModelProcess(entry, model_process.Settings(1, 1, 256, 1))
    try:
        told = queue.SimpleQueue()
        model.ask("x", Ask(begun="1, 2, 3,", max_tokens=4), told.put)
        assert "".join(reply.content for reply in until_last(told)) == " 4, "
        time.sleep(11)  # nobody waits for an idle one
        assert model.state == "ready"
        os.kill(model.pid(), signal.SIGSTOP)
        # More than a pipe holds: who asks does not wait until it is read.
        asked_s = time.monotonic()
        model.ask("y", Ask(begun="1, 2, 3," * 40_000, max_tokens=4), told.put)
        assert time.monotonic() - asked_s < 5.0
        assert until_last(told)[-1].error == "the process of student ended with -9"
        deadline_s = time.monotonic() + 60
        while model.restarts == 0 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert model.restarts == 1
    finally:
        model.close()


def until_last(told):
    replies = [told.get(timeout=60)]
    while not replies[-1].last:
        replies.append(told.get(timeout=60))
    return replies
