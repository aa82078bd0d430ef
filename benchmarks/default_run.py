"""The default run from nothing to the report: minutes a stage, peak memory, and the rerun.

    python -m benchmarks.default_run [--recipe default] [--run FOLDER]

Runs `python -m pipeline.all` in an empty folder, watching the memory of the process and its
children, then runs it again with nothing changed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.machine import describe

TARGET_MINUTES = {"default": 35.0, "smoke": 3.0}
TARGET_MEMORY_GB = 8.0
TARGET_RERUN_S = 5.0


def watched(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident memory (GB) of a command and its children."""
    started_s = time.monotonic()
    child = subprocess.Popen(command)
    process = psutil.Process(child.pid)
    peak_bytes = 0
    while child.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak_bytes = max(peak_bytes, sum(p.memory_info().rss for p in family))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.2)
    if child.returncode != 0:
        sys.exit(child.returncode)
    return time.monotonic() - started_s, peak_bytes / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.default_run")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--run", type=Path)
    options = parser.parse_args()
    root = options.run or Path(tempfile.mkdtemp()) / options.recipe
    command = [sys.executable, "-m", "pipeline.all", options.recipe, "--run", str(root)]
    before = describe("torch", "llama-cpp-python")
    took_s, peak_gb = watched(command)
    again_s, _ = watched(command)
    print(before)
    for path in sorted(root.glob("*/manifest.json")) + sorted(root.glob("*.manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        print(f"{manifest['stage']:14} {manifest['took_s']:7.1f} s")
    target = TARGET_MINUTES.get(options.recipe, float("nan"))
    print(f"whole run      {took_s / 60:7.1f} min (target {target:g})")
    print(f"peak memory    {peak_gb:7.1f} GB (target {TARGET_MEMORY_GB:g})")
    print(f"second run     {again_s:7.1f} s (target {TARGET_RERUN_S:g})")
    print(describe("torch", "llama-cpp-python"))


if __name__ == "__main__":
    main()
