"""Harvest: our continuous batching against `Llama.create_chat_completion`, one request at a time.

    python -m benchmarks.harvest [--problems 64] [--single 12] [--rounds 3]

Same prompts with the same worked examples, same machine, one run; rounds alternate. Ours answers
from the weights a run uses (on AMX a Q8_0 copy), theirs from the published file. The peer keeps its
own prefix cache, as its users get it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from benchmarks.machine import describe
from pipeline.prompts import teacher_messages
from pipeline.recipe import Recipe, find_recipe, load_recipe
from pipeline.tasks.gym import family_problems
from pipeline.teacher import encoding, teacher_file
from serve.engines import load_engine
from serve.hardware import cores
from serve.messages import Request, Sampling
from serve.models import resolve_model


def questions(recipe: Recipe, count: int) -> list[str]:
    share = -(-count // len(recipe.problems.families))
    drawn = [
        list(family_problems(f.name, f.options, 20_261_122, share))
        for f in recipe.problems.families
    ]
    mixed = [problem.question for group in zip(*drawn, strict=True) for problem in group]
    return mixed[:count]


def ours(recipe: Recipe, asked: list[str], slots: int) -> float:
    """Completion tokens a second of the batched engine, model load not counted."""
    engine = load_engine(
        "llama.cpp", path=teacher_file(recipe.teacher), slots=slots, context_tokens=1024
    )
    requests = [
        Request(
            key=str(i),
            messages=teacher_messages(recipe.teacher, question),
            sampling=Sampling(temperature=0.3, top_p=0.95, max_tokens=160, seed=i),
        )
        for i, question in enumerate(asked)
    ]
    started_s = time.monotonic()
    tokens = sum(c.completion_tokens for _, c in engine.generate(requests))
    took_s = time.monotonic() - started_s
    engine.close()
    return tokens / took_s


def theirs(recipe: Recipe, asked: list[str]) -> float:
    """Completion tokens a second of the library's own chat call."""
    from llama_cpp import Llama

    model = Llama(
        str(_model(recipe)),
        n_ctx=1024,
        n_threads=cores(),
        n_threads_batch=cores(),
        use_mmap=False,
        verbose=False,
    )
    tokens = 0
    started_s = time.monotonic()
    for i, question in enumerate(asked):
        reply = model.create_chat_completion(
            [m.model_dump() for m in teacher_messages(recipe.teacher, question)],
            temperature=0.3,
            top_p=0.95,
            max_tokens=160,
            seed=i,
        )
        tokens += reply["usage"]["completion_tokens"]
    took_s = time.monotonic() - started_s
    model.close()
    return tokens / took_s


def _model(recipe: Recipe) -> Path:
    return resolve_model(recipe.teacher.model, recipe.teacher.sha256)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harvest")
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--single", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=32)
    options = parser.parse_args()
    recipe = load_recipe(find_recipe("default"))
    asked = questions(recipe, options.problems)
    print(describe("llama-cpp-python"))
    print(f"batched engine: weights {encoding(recipe.teacher)}, {options.slots} slots")
    print(f"one at a time: first {options.single} of the {len(asked)} problems, mixed families")
    rates: dict[str, list[float]] = {"batched": [], "one at a time": []}
    for _ in range(options.rounds):
        rates["one at a time"].append(theirs(recipe, asked[: options.single]))
        rates["batched"].append(ours(recipe, asked, options.slots))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(f"{name:14} {medians[name]:7.1f} tok/s  rounds {[round(v, 1) for v in values]}")
    print(f"ratio          {medians['batched'] / medians['one at a time']:7.2f}x (target 4x)")
    print(describe("llama-cpp-python"))


if __name__ == "__main__":
    main()
