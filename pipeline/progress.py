"""Progress of anything over two seconds: a bar with rate and time left, or a line now and then.

Written to stderr. A terminal gets a rich bar; a pipe or a log gets a plain line every 20 seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

PLAIN_EVERY_S = 20.0


class Bar:
    """One task in progress. `note` is shown behind the counts."""

    def __init__(self, progress: Progress, label: str, total: int, task: TaskID | None) -> None:
        self._progress, self._label, self._total, self._task = progress, label, total, task
        self._done = self._before = 0
        self._started_s = self._printed_s = time.monotonic()

    def known(self, count: int) -> None:
        """What an earlier run did already: shown as done, and no part of the rate."""
        self._before += count
        self._done += count
        if self._task is not None:
            self._progress.rich.reset(self._task, completed=self._done)

    def advance(self, count: int = 1, note: str = "") -> None:
        self._done += count
        now_s = time.monotonic()
        rate = (self._done - self._before) / max(1e-9, now_s - self._started_s)
        if self._task is not None:
            self._progress.rich.update(self._task, advance=count, note=note, rate=f"{rate:.1f}/s")
        elif now_s - self._printed_s > PLAIN_EVERY_S:
            self._printed_s = now_s
            left_s = (self._total - self._done) / max(1e-9, rate)
            self._progress.console.print(
                f"  {self._label}: {self._done}/{self._total}, {rate:.1f}/s, "
                f"{left_s:.0f} s left {note}",
                highlight=False,
            )


class Progress:
    """Where bars are drawn, and where one-line remarks go."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.rich = RichProgress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
        )

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        if not self.console.is_terminal:
            yield Bar(self, label, total, None)
            return
        task = self.rich.add_task(label, total=total, note="", rate="")
        self.rich.start()
        try:
            yield Bar(self, label, total, task)
        finally:
            self.rich.remove_task(task)
            if not self.rich.task_ids:
                self.rich.stop()
