"""What each step of the ladder cost and what it gained: tokens, operations, seconds, energy.

Operations are counted from the model's shapes: 2 a weight and token for reading or writing, 6 for
training (Kaplan et al. 2020, arXiv 2001.08361, section 2.1); attention's own are left out. An
input embedding that is only looked up does not count. Nor do prompts, what a continuation reads
again, and looks at held-out problems: of the default run about a sixth of what traces cost and a
quarter of what practice costs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.examine import ON_POLICY_STAGE, SFT, SFT_STAGE
from pipeline.ladder import BASE, Judged, against, greedy
from pipeline.recipe import Recipe
from pipeline.store import read_records
from pipeline.weights import multiplied_weights, teacher_weights

FORWARD, TRAINING = 2, 6
MILLION_BILLIONS = 1e15
COMPARED = "compare.json"
# Stages before SFT that ask the teacher.
ASKING = ("02-traces", "02-general", "03-references")


def ledger(recipe: Recipe, inputs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """A row a step: traces and SFT together are one, practice is the next."""
    passed = greedy_by_rung(inputs["08-evaluate"])
    gained = against(passed.get(BASE, {}), passed.get(SFT, {}))
    rows = [supervision(recipe, inputs, gained)]
    if ON_POLICY_STAGE in inputs:
        # The gate asks more items where the evaluation's do not tell.
        gate = json.loads((inputs["09-gate"] / "gate.json").read_text(encoding="utf-8"))
        rows.append(practice(recipe, inputs, gate["practice"]))
    return rows


def supervision(
    recipe: Recipe, inputs: Mapping[str, Path], gained: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What the teacher's answers and SFT cost."""
    sft = manifest_of(inputs[SFT_STAGE])
    asking = [manifest_of(inputs[name]) for name in ASKING if name in inputs]
    trained = sft["counts"]["trained_tokens"]
    return _row(
        "traces and SFT",
        [*asking, manifest_of(inputs["04-examples"]), sft],
        student_tokens=trained,
        teacher_tokens=sum(manifest["counts"]["completion_tokens"] for manifest in asking),
        student_operations=TRAINING * multiplied_weights(inputs[SFT_STAGE]) * trained,
        teacher=teacher_weights(recipe),
        gained=gained,
    )


def practice(
    recipe: Recipe, inputs: Mapping[str, Path], gained: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What attempts, their grading and the updates cost."""
    manifest = manifest_of(inputs[ON_POLICY_STAGE])
    counts = manifest["counts"]
    trained, written = counts.get("student_tokens", 0), counts["attempt_tokens"]
    student = multiplied_weights(inputs[SFT_STAGE])
    return _row(
        f"practice ({counts['method']})",
        [manifest],
        student_tokens=trained + written,
        teacher_tokens=counts.get("teacher_tokens", written),
        student_operations=TRAINING * student * trained + FORWARD * student * written,
        teacher=teacher_weights(recipe),
        gained=gained,
    )


def compared(root: Path) -> dict[str, Any] | None:
    """What `python -m pipeline.compare` found for the run as it is now, if it was asked."""
    try:
        found: dict[str, Any] = json.loads((root / COMPARED).read_text(encoding="utf-8"))
    except OSError:
        return None
    practised = manifest_of(root / ON_POLICY_STAGE) if (root / ON_POLICY_STAGE).is_dir() else {}
    if "measure" not in found:  # by an earlier release, which knew seconds only
        found |= {"measure": "took_s", "budget": found["seconds"], "spent": found["spent_s"]}
    return found if found.get("fingerprint") == practised.get("fingerprint") else None


def _row(
    name: str,
    manifests: list[dict[str, Any]],
    student_tokens: int,
    teacher_tokens: int,
    student_operations: int,
    teacher: int | None,
    gained: dict[str, Any] | None,
) -> dict[str, Any]:
    """`teacher`: its weights, None where nobody says; operations are then not known either."""
    operations = None
    if teacher is not None:
        operations = student_operations + FORWARD * teacher * teacher_tokens
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
        "points_per_1e15": None
        if points is None or operations is None
        else points / (operations / MILLION_BILLIONS),
        "points_per_minute": None if points is None else points / (took_s / 60),
    }


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return found


def greedy_by_rung(evaluated: Path) -> dict[str, dict[str, bool]]:
    """Rung -> item -> right or wrong, of greedy answers that could be judged."""
    by_rung: defaultdict[str, list[Judged]] = defaultdict(list)
    for answer in read_records(evaluated / "answers.jsonl", Judged):
        by_rung[answer.rung].append(answer)
    return {rung: greedy(answers) for rung, answers in by_rung.items()}
