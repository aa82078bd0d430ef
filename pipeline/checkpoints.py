"""Which checkpoint of a killed training was written whole."""

from __future__ import annotations

import shutil
from pathlib import Path

# Written into a checkpoint folder after everything else: a folder without it was being written.
COMPLETE = "COMPLETE"


def newest_complete(folder: Path) -> Path | None:
    """The last checkpoint that was written whole; younger unfinished ones are removed."""
    complete = []
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.partition("-")[2])):
        if (path / COMPLETE).exists():
            complete.append(path)
        else:
            shutil.rmtree(path)
    return complete[-1] if complete else None
