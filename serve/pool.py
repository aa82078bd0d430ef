"""The models of a folder, each in a process of its own, opened when first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from serve.catalogue import Entry
from serve.errors import UsageError
from serve.model_process import ModelProcess, Settings, State


class UnknownModel(UsageError):
    """A name that is not in the catalogue."""


class Pool:
    """Raises nothing while models load; asking one that does not come up says why."""

    def __init__(
        self,
        entries: Sequence[Entry],
        settings: Settings,
        failed: Callable[[ModelProcess], None] = lambda _: None,
    ) -> None:
        self.entries = {entry.name: entry for entry in entries}
        self._settings, self._failed = settings, failed
        self._open: dict[str, ModelProcess] = {}
        self._lock = threading.Lock()

    @property
    def first(self) -> str:
        return next(iter(self.entries))

    def model(self, name: str | None) -> ModelProcess:
        """The model of that name, loading or ready; without a name the first of the catalogue."""
        wanted = name or self.first
        if wanted not in self.entries:
            known = ", ".join(self.entries)
            raise UnknownModel(f"no model is called {wanted!r}, only: {known}")
        with self._lock:
            if wanted not in self._open:
                self._open[wanted] = ModelProcess(
                    self.entries[wanted], self._settings, self._failed
                )
            return self._open[wanted]

    def states(self) -> dict[str, State]:
        return {name: model.state for name, model in self._open.items()}

    def well(self) -> bool:
        """The first model answers, and so does every other that ever did."""
        ever = [m for n, m in self._open.items() if m.was_ready or n == self.first]
        return bool(ever) and all(model.state == "ready" for model in ever)

    def asked(self) -> int:
        return sum(model.asked for model in self._open.values())

    def restarts(self) -> int:
        return sum(model.restarts for model in self._open.values())

    def close(self) -> None:
        for model in self._open.values():
            model.kill()
        for model in self._open.values():
            model.close()
