"""Stage 03: which traces are worth learning from, and why the others are not.

Reads `traces.jsonl`, `references.jsonl` where few are selected, and the evaluation items where
leaks of them are looked for; writes `kept.jsonl` and `dropped.jsonl` (key and reason), and counts
per family. Every trace ends in exactly one of the two. Leaks are in `overlaps.jsonl`.

In passes over the file, a part at a time, in several processes where it is big: each trace by
itself (`pipeline/scan.py`), the traces of a problem beside each other (`pipeline/rivals.py`), and
out in order. What grows with the number of traces is on disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.decisions import Decisions, Plan
from pipeline.recipe import CurateOptions
from pipeline.records import content_key
from pipeline.run import SCRATCH, Context
from pipeline.selection import solved_problems
from pipeline.workers import workers, workers_for

STAGE_VERSION = 2
LIBRARIES: tuple[str, ...] = ()

EVALUATION = ("eval.jsonl", "gate.jsonl")


def run(
    config: CurateOptions, inputs: Mapping[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Split traces into kept and dropped. Returns kept and dropped by reason, per family."""
    source = inputs["02-traces"] / "traces.jsonl"
    plan = Plan(workers_for(source.stat().st_size))
    return curated(config, inputs, out, context, plan)


def curated(
    config: CurateOptions, inputs: Mapping[str, Path], out: Path, context: Context, plan: Plan
) -> dict[str, Any]:
    """What `run` does, the work cut as `plan` says, which changes no byte of it."""
    source = inputs["02-traces"] / "traces.jsonl"
    scratch = out / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed process left is of no use
    scratch.mkdir(parents=True)
    counts: dict[str, Any] = {}
    evaluation = tuple(inputs["01-problems"] / name for name in EVALUATION if config.decontaminate)
    with workers(plan.workers) as crew:
        decisions = Decisions(source, config, evaluation, scratch, crew, plan, context.progress)
        if config.decontaminate:
            counts["decontaminate"] = decisions.drop_leaks(out / "overlaps.jsonl")
        if config.keep != "everything":
            decisions.drop_rivals()
    if config.select == "s1":
        solved = solved_problems(inputs["03-references"])
        seed = int(content_key(context.seed, "03-curated")[:15], 16)
        decisions.drop_all_but_s1(solved, seed)
    counts |= decisions.write(out / "kept.jsonl", out / "dropped.jsonl")
    shutil.rmtree(scratch)
    return counts
