"""Which checkpoint of a killed training was written whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.records import content_key
from pipeline.store import write_file
from serve.errors import TrainingDiverged

# Written into a checkpoint folder after everything else: a folder without it was being written.
COMPLETE = "COMPLETE"
# The student as it was before updates that broke, beside nothing else that is whole.
LAST_GOOD = "last-good"


def forget_others(folder: Path, proof: Path, *said: object) -> None:
    """Remove what a training left unfinished that was told anything else than `said`.

    `proof` is the file that says what it was told. Resumed as they stand, its weights and moments
    would end up in a student that never saw them.
    """
    key = content_key(*said)
    if not proof.exists() or proof.read_text(encoding="ascii") != key:
        shutil.rmtree(folder, ignore_errors=True)
        write_file(proof, key)


def newest_complete(folder: Path) -> Path | None:
    """The last checkpoint that was written whole; younger unfinished ones are removed."""
    complete = []
    for path in sorted(folder.glob("checkpoint-*"), key=steps_done):
        if (path / COMPLETE).exists():
            complete.append(path)
        else:
            shutil.rmtree(path)
    return complete[-1] if complete else None


def steps_done(checkpoint: Path | None) -> int:
    """Behind the training that a checkpoint was written by."""
    return int(checkpoint.name.partition("-")[2]) if checkpoint is not None else 0


def kept_beside(error: TrainingDiverged, folder: Path) -> TrainingDiverged:
    """The same error, which says where the student before the broken updates lies."""
    kept = f"the student before them: {folder.parent.name}/{folder.name}"
    return TrainingDiverged(f"{error.args[0]}; {kept}", hint=error.hint)
