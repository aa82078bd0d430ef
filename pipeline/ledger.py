"""What each step of the ladder cost and what it gained: tokens, operations, seconds, energy.

Operations are counted from the model's shapes: 2 a weight and token for reading or writing, 6 for
training (Kaplan et al. 2020, arXiv 2001.08361, section 2.1); attention's own are left out. An
input embedding that is only looked up does not count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.examine import ON_POLICY, ON_POLICY_STAGE, SFT, SFT_STAGE
from pipeline.ladder import BASE, Judged
from pipeline.recipe import Recipe
from pipeline.store import read_records
from quant.stats import paired
from serve.models import resolve_model

FORWARD, TRAINING = 2, 6
MILLION_BILLIONS = 1e15
COMPARED = "compare.json"


def ledger(recipe: Recipe, inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A row a step: traces and SFT together are one, practice is the next."""
    manifests = {name: manifest_of(folder) for name, folder in inputs.items()}
    student = multiplied_weights(inputs[SFT_STAGE])
    teacher = teacher_weights(recipe)
    passed = greedy(inputs["08-evaluate"])
    traces, sft = manifests["02-traces"], manifests[SFT_STAGE]
    rows = [
        _row(
            "traces and SFT",
            [traces, sft],
            student_tokens=sft["counts"]["trained_tokens"],
            teacher_tokens=traces["counts"]["completion_tokens"],
            operations=TRAINING * student * sft["counts"]["trained_tokens"]
            + FORWARD * teacher * traces["counts"]["completion_tokens"],
            gained=_gained(passed, BASE, SFT),
        )
    ]
    if ON_POLICY_STAGE in manifests:
        practice = manifests[ON_POLICY_STAGE]
        counts = practice["counts"]
        trained, written = counts.get("student_tokens", 0), counts["attempt_tokens"]
        read = counts.get("teacher_tokens", written)
        rows.append(
            _row(
                f"practice ({counts['method']})",
                [practice],
                student_tokens=trained + written,
                teacher_tokens=read,
                operations=TRAINING * student * trained
                + FORWARD * student * written
                + FORWARD * teacher * read,
                gained=_gained(passed, SFT, ON_POLICY),
            )
        )
    return rows


def compared(root: Path) -> dict[str, Any] | None:
    """What `python -m pipeline.compare` found for the run as it is now, if it was asked."""
    try:
        found: dict[str, Any] = json.loads((root / COMPARED).read_text(encoding="utf-8"))
    except OSError:
        return None
    practice = manifest_of(root / ON_POLICY_STAGE) if (root / ON_POLICY_STAGE).is_dir() else {}
    return found if found.get("fingerprint") == practice.get("fingerprint") else None


def _row(
    name: str,
    manifests: list[dict[str, Any]],
    student_tokens: int,
    teacher_tokens: int,
    operations: float,
    gained: dict[str, Any] | None,
) -> dict[str, Any]:
    took_s = sum(m["took_s"] for m in manifests)
    joules = [float(m["energy_j"]) for m in manifests if m.get("energy_j") is not None]
    energy_j = sum(joules) if len(joules) == len(manifests) else None
    points = 100 * gained["difference"] if gained else None
    return {
        "step": name,
        "student_tokens": student_tokens,
        "teacher_tokens": teacher_tokens,
        "operations": operations,
        "took_s": took_s,
        "device": manifests[-1].get("device", ""),
        "energy_j": energy_j,
        "gained": gained,
        "points_per_1e15": None if points is None else points / (operations / MILLION_BILLIONS),
        "points_per_minute": None if points is None else points / (took_s / 60),
    }


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def greedy(evaluated: Path) -> dict[str, dict[str, bool]]:
    """Rung -> item -> right or wrong, of greedy answers that could be judged."""
    table: dict[str, dict[str, bool]] = {}
    for answer in read_records(evaluated / "answers.jsonl", Judged):
        if answer.sample == 0 and answer.verdict.passed is not None:
            table.setdefault(answer.rung, {})[answer.item] = answer.verdict.passed
    return table


def _gained(
    passed: Mapping[str, Mapping[str, bool]], before: str, after: str
) -> dict[str, Any] | None:
    """The paired difference of two rungs."""
    first, second = passed.get(before, {}), passed.get(after, {})
    both = sorted(first.keys() & second.keys())
    if not both:
        return None
    result = paired([first[i] for i in both], [second[i] for i in both])
    return {**result._asdict(), "interval": list(result.interval)}


def multiplied_weights(checkpoint: Path) -> int:
    """Weights of a checkpoint that every token is multiplied with."""
    from safetensors import safe_open

    total, embedding, head = 0, 0, False
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 not a dictionary
                size = math.prod(file.get_slice(name).get_shape())
                total += size
                if name.endswith("embed_tokens.weight"):
                    embedding = size
                head = head or name.endswith("lm_head.weight")
    return total - embedding if head else total


def teacher_weights(recipe: Recipe) -> int:
    """Of a local teacher; 0 where a server does not say."""
    if recipe.teacher.engine == "http":
        return 0
    path = resolve_model(recipe.teacher.model, recipe.teacher.sha256)
    if path.is_dir():
        return multiplied_weights(path)
    from quant.inspect import inspect_gguf

    return inspect_gguf(path).weights
