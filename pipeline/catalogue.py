"""Who can be talked to after a run: the entries of `chat.json`, in the run and in the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.examine import ArtifactRung, artifact_rungs
from pipeline.prompts import student_messages, teacher_messages
from pipeline.recipe import Recipe, StudentOptions


def run_catalogue(
    recipe: Recipe, inputs: Mapping[str, Path], chosen: str | None
) -> list[dict[str, Any]]:
    """Teacher, then the chosen student, then the others, smallest first."""
    teacher = {
        "name": "teacher",
        "engine": recipe.teacher.engine,
        "model": _where_it_is(recipe.teacher.model),
        "sha256": recipe.teacher.sha256,
        "lead": [m.model_dump() for m in teacher_messages(recipe.teacher, "")[:-1]],
    }
    rungs = sorted(
        artifact_rungs(inputs, recipe.asked_student, recipe.evaluate),
        key=lambda rung: (rung.name != chosen, rung.size_bytes, rung.name),
    )
    students = [
        student_entry(recipe.asked_student, rung, f"{rung.path.parent.name}/{rung.path.name}")
        for rung in rungs
    ]
    return [teacher] * (recipe.teacher.engine == "llama.cpp") + students


def _where_it_is(reference: str) -> str:
    """A path of a recipe is relative to where the run was started, one of a catalogue to its own
    folder."""
    kind, _, rest = reference.partition(":")
    return f"path:{Path(rest).expanduser().resolve()}" if kind == "path" else reference


def student_entry(student: StudentOptions, rung: ArtifactRung, path: str) -> dict[str, Any]:
    """An artifact that lies at `path` beside its `chat.json`, and the turns before a question."""
    return {
        "name": f"student {rung.name}",
        "engine": rung.engine,
        "model": f"path:{path}",
        "sha256": rung.sha256,
        "lead": [m.model_dump() for m in student_messages(student, "")[:-1]],
        "tags": student.tags,
    }
