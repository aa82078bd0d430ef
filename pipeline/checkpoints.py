"""Which checkpoint of a killed training was written whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.store import write_file

# Written into a checkpoint folder after everything else: a folder without it was being written.
COMPLETE = "COMPLETE"


# How many processes shared what, beside the checkpoints: a share is no use to another number.
SHAPE = ".shape"
ONE_PROCESS = "none 1"


def forget_other_shapes(folder: Path, shape: str) -> None:
    """Remove checkpoints of a training that was spread another way (strategy and processes)."""
    kept = folder.with_suffix(SHAPE)
    found = kept.read_text(encoding="ascii") if kept.exists() else ONE_PROCESS
    if found != shape:
        shutil.rmtree(folder, ignore_errors=True)
    write_file(kept, shape)


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
