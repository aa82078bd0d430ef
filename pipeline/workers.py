"""Processes that share out work on a big file, and die with the one that asked for them.

Results come in the order of the tasks, so that who worked on what shows nowhere. What a worker runs
is a function of a module; it takes and returns small things, and leaves big ones in files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import TypeVar

from serve.errors import RetortError
from serve.hardware import cores

# A file up to this size is done before processes for it have started.
ALONE_BYTES = 32 * 2**20
# More processes than this would wait for the disk.
MOST_WORKERS = 8

Task = TypeVar("Task")
Result = TypeVar("Result")


def workers_for(size_bytes: int) -> int:
    """How many are worth their start for so many bytes of traces."""
    return 1 if size_bytes <= ALONE_BYTES else min(cores(), MOST_WORKERS)


class Workers:
    """`map` of `count` processes; of this process alone where that is 1."""

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self._pool = pool

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of `tasks`. An error of a worker is raised here."""
        if self._pool is None:
            yield from map(work, tasks)
            return
        try:
            yield from self._pool.map(work, tasks)
        except BrokenProcessPool as error:
            raise RetortError(
                "a worker process ended early",
                hint="out of memory, or a script that starts stages outside `if __name__ == ...`",
            ) from error


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Fresh processes: forked ones would inherit the threads' locks of whatever is loaded here."""
    if count == 1:
        yield Workers(None)
        return
    fresh = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=fresh, initializer=_die_with_the_parent)
    try:
        yield Workers(pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _die_with_the_parent() -> None:
    """A killed parent cannot tell anyone; Ctrl-C, which everyone hears, is its to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
