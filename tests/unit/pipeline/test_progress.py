import io

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_was_done_before_is_no_part_of_the_rate(clock):
    said = io.StringIO()
    with Progress(Console(file=said, width=100)).bar("answers", 900) as bar:
        bar.known(480)
        clock[0] = 30.0
        bar.advance(20)
    # 20 in 30 s: the 400 that are left take 600 s.
    assert said.getvalue() == "  answers: 500/900, 0.7/s, 600 s left \n"


def test_a_terminal_shows_what_is_known_at_once():
    shown = Progress(Console(file=io.StringIO(), force_terminal=True, width=100))
    with shown.bar("answers", 10) as bar:
        bar.known(4)
        (task,) = shown.rich.tasks
        assert (task.completed, task.total) == (4, 10)
        assert task.speed is None
        bar.advance(2)
        assert task.completed == 6
