"""Harvest: two Ray actors against two separate processes, an engine of one thread in each.

    python -m benchmarks.actors [--per-family 30] [--rounds 2]

The same teacher, prompts and file. The two processes get half of the requests each and share
nothing; their time is that of the slower one. Everything counts: interpreters, the start of Ray,
loading the model, writing the answers. Only the worked examples are read before, for both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.harvest import problems, requests_for
from benchmarks.machine import describe
from pipeline.asking import ask
from pipeline.progress import Progress
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.run import Context
from pipeline.scale_options import ScaleOptions
from pipeline.teacher import open_teacher
from serve.messages import Request

PROCESSES = 2


def harvest(requests: list[Request], folder: Path, scale: ScaleOptions) -> None:
    """Every answer written to `folder`, as a stage does it."""
    recipe = load_recipe(find_recipe("default"))
    context = Context(0, Progress(), scale=scale)
    open_engine = partial(open_teacher, recipe.teacher)
    ask(open_engine, requests, folder / "answers.jsonl", "answers", context)


def _half(number: int, per_family: int, folder: Path) -> None:
    requests = requests_for(*_asked(per_family))
    harvest(requests[number::PROCESSES], folder, ScaleOptions())


def _asked(per_family: int):  # type: ignore[no-untyped-def]
    recipe = load_recipe(find_recipe("default"))
    return recipe, problems(recipe, per_family)


def two_processes(per_family: int, folder: Path) -> None:
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = []
    for number in range(PROCESSES):
        (folder / str(number)).mkdir(parents=True)
        command = [sys.executable, "-m", "benchmarks.actors", "--per-family", str(per_family)]
        command += ["--half", str(number), "--folder", str(folder / str(number))]
        started.append(subprocess.Popen(command, env=own))
    if any(process.wait() for process in started):
        raise SystemExit("a process failed")


def two_actors(per_family: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    requests = requests_for(*_asked(per_family))
    harvest(requests, folder, ScaleOptions(executor="ray", actors=PROCESSES))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.actors")
    parser.add_argument("--per-family", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--half", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.half is not None:
        _half(options.half, options.per_family, options.folder)
        return
    count = len(problems(load_recipe(find_recipe("default")), options.per_family))
    print(describe("ray", "llama-cpp-python"))
    print(f"{count} requests to the default recipe's teacher, {options.rounds} rounds")
    ways = {"two processes": two_processes, "two actors": two_actors}
    took_s: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        # What was read of them is kept on disk: the way that comes first would read for both.
        two_processes(1, Path(folder) / "examples")
        for number in range(options.rounds):
            for name, way in ways.items():
                started_s = time.monotonic()
                way(options.per_family, Path(folder) / f"{number}-{name}")
                took_s[name].append(time.monotonic() - started_s)
    alone_s = statistics.median(took_s["two processes"])
    for name, values in took_s.items():
        median_s = statistics.median(values)
        print(
            f"{name:16} {count / median_s:6.2f} answers/s {alone_s / median_s:5.2f}x  "
            f"rounds {[round(v, 1) for v in values]} s"
        )
    print("target 0.95x")
    print(describe("ray"))


if __name__ == "__main__":
    main()
