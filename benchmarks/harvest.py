"""Harvest: our continuous batching against `Llama.create_chat_completion`, one request at a time.

    python -m benchmarks.harvest [--per-family 40] [--single 4] [--rounds 3]

Same prompts with the same worked examples, same machine, one run; rounds alternate. Ours answers
from the weights a run uses (on AMX a Q8_0 copy) and from the published file, theirs from the
latter. The peer keeps its own prefix cache, as its users get it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from benchmarks.machine import describe
from benchmarks.peer import one_at_a_time
from pipeline.asking import with_openings
from pipeline.prompts import teacher_messages
from pipeline.recipe import Recipe
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Problem
from pipeline.tasks.gym import family_problems
from pipeline.teacher import teacher_file
from pipeline.teacher_encoding import encoding
from serve.engines import load_engine
from serve.messages import Request, Sampling
from serve.models import resolve_model


def problems(recipe: Recipe, per_family: int) -> list[Problem]:
    """Family after family, so that the peer too finds the examples of the last prompt read."""
    return [
        problem
        for f in recipe.problems.families
        for problem in family_problems(f.name, f.options, 20_261_122, per_family)
    ]


def requests_for(recipe: Recipe, asked: list[Problem], max_tokens: int = 160) -> list[Request]:
    return [
        Request(
            key=str(i),
            messages=teacher_messages(recipe.teacher, problem.question, problem.family),
            sampling=Sampling(temperature=0.3, top_p=0.95, max_tokens=max_tokens, seed=i),
        )
        for i, problem in enumerate(asked)
    ]


def ours(path: Path, requests: list[Request], slots: int) -> float:
    """Completion tokens a second of the batched engine, model load not counted."""
    engine = load_engine("llama.cpp", path=path, slots=slots, context_tokens=1024)
    started_s = time.monotonic()
    tokens = sum(c.completion_tokens for _, c in engine.generate(with_openings(requests)))
    took_s = time.monotonic() - started_s
    engine.close()
    return tokens / took_s


def theirs(path: Path, requests: list[Request]) -> float:
    """Completion tokens a second of the library's own chat call."""
    took_s, tokens = one_at_a_time(path, requests)
    return tokens / took_s


def _model(recipe: Recipe) -> Path:
    return resolve_model(recipe.teacher.model, recipe.teacher.sha256)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harvest")
    parser.add_argument("--per-family", type=int, default=40, help="batched")
    parser.add_argument("--single", type=int, default=4, help="one at a time, per family")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=32)
    options = parser.parse_args()
    recipe = load_recipe(find_recipe("default"))
    asked, alone = (
        requests_for(recipe, problems(recipe, count))
        for count in (options.per_family, options.single)
    )
    files = {f"batched, {encoding(recipe.teacher)}": teacher_file(recipe.teacher)}
    files["batched, published file"] = _model(recipe)
    print(describe("llama-cpp-python"))
    print(f"{len(asked)} problems batched over {options.slots} slots, {len(alone)} one at a time")
    rates: dict[str, list[float]] = {"one at a time": [], **{name: [] for name in files}}
    for _ in range(options.rounds):
        rates["one at a time"].append(theirs(_model(recipe), alone))
        for name, path in files.items():
            rates[name].append(ours(path, asked, options.slots))
    single = statistics.median(rates["one at a time"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"{name:24} {median:7.1f} tok/s {median / single:5.2f}x  "
            f"rounds {[round(v, 1) for v in values]}"
        )
    print("target 4x")
    print(describe("llama-cpp-python"))


if __name__ == "__main__":
    main()
