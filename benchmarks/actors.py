"""Harvest: two Ray actors against two separate processes, an engine of one thread in each.

    python -m benchmarks.actors [--per-family 30] [--rounds 2]

The same teacher, prompts and file. The two processes get half of the requests each and share
nothing; their time is that of the slower one. Everything counts: interpreters, the start of Ray,
loading the model, writing the answers. Only the worked examples are read before, for both: each way
asks some requests for one token, because what they read of prompts at once is not the same.
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
# Enough for the questions of a family, and of half of them, to begin as all of them do.
EXAMPLES_PER_FAMILY = 20


def harvest(requests: list[Request], folder: Path, scale: ScaleOptions) -> None:
    """Every answer written to `folder`, as a stage does it."""
    recipe = load_recipe(find_recipe("default"))
    context = Context(0, Progress(), scale=scale)
    open_engine = partial(open_teacher, recipe.teacher)
    ask(open_engine, requests, folder / "answers.jsonl", "answers", context)


def _asked(per_family: int, max_tokens: int) -> list[Request]:
    recipe = load_recipe(find_recipe("default"))
    return requests_for(recipe, problems(recipe, per_family), max_tokens)


def two_processes(per_family: int, max_tokens: int, folder: Path) -> None:
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = []
    for number in range(PROCESSES):
        (folder / str(number)).mkdir(parents=True)
        command = [sys.executable, "-m", "benchmarks.actors", "--half", str(number)]
        command += ["--per-family", str(per_family), "--max-tokens", str(max_tokens)]
        command += ["--folder", str(folder / str(number))]
        started.append(subprocess.Popen(command, env=own))
    if any(process.wait() for process in started):
        raise SystemExit("a process failed")


def two_actors(per_family: int, max_tokens: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    requests = _asked(per_family, max_tokens)
    harvest(requests, folder, ScaleOptions(executor="ray", actors=PROCESSES))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.actors")
    parser.add_argument("--per-family", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=160, help="of an answer")
    parser.add_argument("--half", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.half is not None:
        asked = _asked(options.per_family, options.max_tokens)[options.half :: PROCESSES]
        harvest(asked, options.folder, ScaleOptions())
        return
    count = len(problems(load_recipe(find_recipe("default")), options.per_family))
    print(describe("ray", "llama-cpp-python"))
    print(f"{count} requests to the default recipe's teacher, {options.rounds} rounds")
    ways = {"two processes": two_processes, "two actors": two_actors}
    took_s: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        few = min(EXAMPLES_PER_FAMILY, options.per_family)
        for name, way in ways.items():
            way(few, 1, Path(folder) / f"examples-{name}")
        for number in range(options.rounds):
            for name, way in ways.items():
                started_s = time.monotonic()
                way(options.per_family, options.max_tokens, Path(folder) / f"{number}-{name}")
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
