"""What a stage has cost so far, the work of killed processes included.

A beat every few seconds is written beside the run's logs, so that a kill loses less than one.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from pipeline.store import write_json
from serve.energy import EnergyMeter
from serve.errors import RetortError

BEAT_S = 10.0


class Spent(NamedTuple):
    """`energy_j` is None where nothing reports energy."""

    took_s: float
    energy_j: float | None

    def __add__(self, other: object) -> Spent:
        assert isinstance(other, Spent)
        joules = [j for j in (self.energy_j, other.energy_j) if j is not None]
        return Spent(self.took_s + other.took_s, sum(joules) if joules else None)


class Stopwatch:
    """Runs from `with` on; goes on from what `path` says an unfinished stage of the same
    fingerprint has cost."""

    def __init__(self, path: Path, fingerprint: str, beat_s: float = BEAT_S) -> None:
        self._path, self._fingerprint, self._beat_s = path, fingerprint, beat_s
        self._before = _left_by(path, fingerprint)
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beats, daemon=True, name="stopwatch")

    def __enter__(self) -> Stopwatch:
        self._started_s, self._meter = time.monotonic(), EnergyMeter()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        else:
            self._write()

    def spent(self) -> Spent:
        with self._lock:
            return self._before + Spent(time.monotonic() - self._started_s, self._meter.used_j())

    def _beats(self) -> None:
        while not self._over.wait(self._beat_s):
            self._write()

    def _write(self) -> None:
        # A full disk is the stage's to report.
        with suppress(OSError, RetortError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"fingerprint": self._fingerprint, **self.spent()._asdict()})


def _left_by(path: Path, fingerprint: str) -> Spent:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["fingerprint"] == fingerprint:
            return Spent(float(found["took_s"]), found["energy_j"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return Spent(0.0, None)
