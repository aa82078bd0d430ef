"""Stage 06: the student's checkpoint becomes GGUF files, each loaded once before it counts.

Reads `04-sft`; writes `student-TYPE.gguf`. Judging what they kept is the evaluation's task.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.recipe import GgufOptions
from pipeline.run import Context
from quant.gguf import ladder
from serve.hardware import cores

STAGE_VERSION = 1
LIBRARIES = ("llama-cpp-python", "gguf")
NAME = "student"


def run(
    config: GgufOptions, inputs: Mapping[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Write one file a type. Raises EngineError when a file cannot be made."""
    for old in out.glob("*.gguf"):
        old.unlink()
    with context.progress.bar("converting", len(config.types)) as bar:
        files = ladder(inputs["04-sft"], out, NAME, config.types, cores())
        bar.advance(len(files))
    return {"size_bytes": {f.name: f.stat().st_size for f in files}}
