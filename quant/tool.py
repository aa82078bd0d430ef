"""Runs somebody else's program as a child, and says in one line why it failed."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from serve.errors import EngineError

EXCEPTION = re.compile(r"[\w.]+(Error|Exception): ")


def run_tool(
    name: str,
    command: Sequence[str],
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
    writes: Path | None = None,
) -> None:
    """Raises EngineError with the reason in `command`'s stderr, or when it takes too long.

    `writes` is a file that must be there afterwards.
    """
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{name} took over {timeout_s:g} s") from error
    if done.returncode != 0 or (writes and not writes.exists()):
        raise EngineError(f"{name} ended with {done.returncode}: {_reason(done.stderr)}")


def _reason(stderr: str) -> str:
    """The last line; of a Python traceback the one that names the exception, advice follows it."""
    lines = stderr.strip().splitlines() or ["no message"]
    return next((line for line in reversed(lines) if EXCEPTION.match(line)), lines[-1])
