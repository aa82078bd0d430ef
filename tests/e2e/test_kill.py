"""kill -9 while collecting, training and resuming: the files end with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run import file_sha256
from tests.e2e.conftest import ROOT, run_smoke

SAME_BYTES = [
    "01-problems/train.jsonl",
    "01-problems/eval.jsonl",
    "02-traces/traces.jsonl",
    "03-curated/kept.jsonl",
    "03-curated/dropped.jsonl",
    "04-examples/examples.jsonl",
    "04-sft/examples.jsonl",
    "04-sft/losses.jsonl",
    "04-sft/model.safetensors",
    "06-gguf/imatrix.gguf",
    "06-gguf/student-F16.gguf",
    "06-gguf/student-Q8_0.gguf",
    "06-gguf/student-Q4_K_M.gguf",
]


def kill_when(root: Path, ready: Callable[[], bool], limit_s: float = 1500.0) -> None:
    """Start the run and kill -9 it at the moment `ready` holds."""
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.all", "smoke", "--run", str(root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    ) as child:
        deadline_s = time.monotonic() + limit_s
        while not ready():
            assert child.poll() is None, f"ended with {child.returncode} before the kill"
            assert time.monotonic() < deadline_s, "never ready for the kill"
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoints(root: Path) -> int:
    return len(list((root / "04-sft" / "scratch").glob("checkpoints/checkpoint-*/COMPLETE")))


@pytest.mark.heavy
def test_killed_three_times_and_still_the_same_bytes(smoke, tmp_path):
    root = tmp_path / "smoke"
    answers = root / "02-traces" / "scratch" / "answers.jsonl"
    kill_when(root, lambda: lines(answers) >= 10)
    acknowledged = answers.read_bytes()
    acknowledged = acknowledged[: acknowledged.rindex(b"\n") + 1]
    kill_when(root, lambda: lines(answers) >= 25)
    assert answers.read_bytes().startswith(acknowledged)
    kill_when(root, lambda: checkpoints(root) >= 1)
    finished = run_smoke(root, "--until", "06-gguf")
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert finished.stdout == "stopped after 06-gguf; the same command without --until goes on\n"
    assert not (root / "08-evaluate").exists()
    assert lines(answers) == 32
    assert different_files(root, smoke.root) == []


def different_files(one: Path, other: Path) -> list[str]:
    return [name for name in SAME_BYTES if file_sha256(one / name) != file_sha256(other / name)]
