"""Writes a finished run's report anew, with what was found out about the run since."""

from __future__ import annotations

from pathlib import Path

from pipeline.all import stages
from pipeline.progress import Progress
from pipeline.recipe_files import recorded_recipe
from pipeline.run import Context, RunDir, run_stage


def show_again(root: Path, progress: Progress) -> None:
    """Do the run's last stage again. The caller holds the run's lock."""
    recipe = recorded_recipe(root)
    run = RunDir(root)
    table = stages(recipe)
    inputs = {s.name: m for s in table if (m := run.manifest(s)) is not None and not s.files}
    stage = table[-1]
    fingerprint = run.fingerprint(stage, {n: inputs[n] for n in stage.needs}, recipe.run.seed)
    run_stage(run, stage, fingerprint, Context(recipe.run.seed, progress))
