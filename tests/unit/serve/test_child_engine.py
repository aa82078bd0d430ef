"""The parent's side of an engine in a process of its own."""

import subprocess
import threading

import pytest

from serve.engines.child import ChildEngine


def test_an_interrupt_while_the_watchdog_starts_leaves_no_thread_behind(monkeypatch):
    begun = []

    def start(timer):
        begun.append(timer)
        threading.Thread.start(timer)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Timer, "start", start)
    engine = object.__new__(ChildEngine)
    engine._silence_limit_s = 600.0
    with subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE, text=True) as child:
        engine._child = child
        with pytest.raises(KeyboardInterrupt):
            engine._read()
        child.kill()
    (watchdog,) = begun
    watchdog.join(timeout=5)
    assert not watchdog.is_alive()
    assert watchdog.daemon
