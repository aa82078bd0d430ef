"""Beginnings of prompts that took long to read, kept on disk: a teacher's worked examples are read
once on a machine, not once for every stage of every run.

What is kept is llama.cpp's own state of a sequence, the numbers that reading would give again. It
lies in the cache folder, up to `KEPT_BYTES` of it; what was unused longest goes first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from serve.engines.llama_native import DECODE_BATCH_TOKENS, LlamaModel, native_build
from serve.models import cache_folder

# Reading that took less is done again sooner than a file of some 20 MB is written and hashed.
WORTH_S = 2.0
KEPT_BYTES = 2**30
# Of what is written, and of how the engine reads: another one finds nothing of before.
FORMAT = "1"
DIGEST_BYTES = 32


class KeptStates:
    """Those of one open model. What cannot be read or written is done without."""

    def __init__(self, model: LlamaModel, threads: int) -> None:
        self._model = model
        self._folder = cache_folder() / "prefixes"
        file = model.path.stat()
        # Long-rope models rotate keys by how long a context was asked for.
        context = model.context_tokens
        reading = (FORMAT, native_build(), DECODE_BATCH_TOKENS, threads, context)
        self._who = repr((model.path.resolve(), file.st_size, file.st_mtime_ns, reading))

    def restore(self, ids: Sequence[int], sequence: int) -> bool:
        """Have the empty `sequence` hold `ids` as if it had read them; False where none is kept."""
        path = self._path(ids)
        try:
            content = path.read_bytes()
        except OSError:
            return False
        with contextlib.suppress(OSError):
            os.utime(path)
        state = content[DIGEST_BYTES:]
        if hashlib.sha256(state).digest() != content[:DIGEST_BYTES]:
            return False
        if not self._model.restore(sequence, state):
            self._model.clear_sequence(sequence)
            return False
        return True

    def keep(self, ids: Sequence[int], sequence: int, took_s: float) -> None:
        """Write down what `sequence` holds after reading `ids`, if that took long enough."""
        if took_s < WORTH_S:
            return
        state = self._model.state(sequence)
        if len(state) > KEPT_BYTES:
            return
        # A full disk or a cache that belongs to someone else costs time, not the answer.
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                try:
                    file.write(hashlib.sha256(state).digest() + state)
                    file.flush()
                    os.replace(file.name, self._path(ids))
                except OSError:
                    os.unlink(file.name)
                    raise
            self._make_room()

    def _path(self, ids: Sequence[int]) -> Path:
        key = hashlib.sha256(f"{self._who} {tuple(ids)}".encode()).hexdigest()
        return self._folder / f"{key}.state"

    def _make_room(self) -> None:
        """Temporary files of writers that were killed are as old as they look, and go as well."""
        files = [(p.stat().st_mtime_ns, p.stat().st_size, p) for p in self._folder.iterdir()]
        room = KEPT_BYTES
        for _, size, path in sorted(files, reverse=True):
            room -= size
            if room < 0:
                path.unlink(missing_ok=True)
