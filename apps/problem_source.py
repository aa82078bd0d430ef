"""Fresh problems with a verdict, where the folder is a run and the pipeline is installed.

The pipeline answers in a process of its own: a laptop that holds a bundle alone needs none of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serve.catalogue import REGRESSION_CASES


class ProblemSource:
    """Asks `pipeline.fresh_problems`, which is started with the first question."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._child: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    @property
    def available(self) -> bool:
        return (self._run / "01-problems").is_dir() and find_spec("pipeline") is not None

    def another(self, seed: int) -> dict[str, Any]:
        """A problem nobody was trained or examined on, or `{"error"}`."""
        return self._ask({"seed": seed})

    def passed(self, problem: dict[str, Any], text: str, cut: bool) -> bool | None:
        """The verifier's word on an answer; None when it has none. One that was cut is wrong."""
        finish = "length" if cut else "stop"
        return self._ask({"problem": problem, "text": text, "finish": finish}).get("passed")

    def keep(self, problem: dict[str, Any]) -> Path:
        """Append the problem to the run's regression cases."""
        path = self._run / REGRESSION_CASES
        with self._lock, path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(problem, ensure_ascii=False) + "\n")
        return path

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            child = self._child = self._child or self._started()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps(question) + "\n")
                child.stdin.flush()
                line = child.stdout.readline()
            except BrokenPipeError:
                line = ""
            if not line:
                self._child = None
                return {"error": "the run's problems cannot be read"}
            reply: dict[str, Any] = json.loads(line)
            return reply

    def _started(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.fresh_problems", str(self._run)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
