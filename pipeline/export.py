"""Stage 07: the student's checkpoint becomes ONNX folders.

Reads the trained student; writes `student-PRECISION/`, each with model, tokenizer and template,
four-bit weights rounded on what the student writes itself. Judging what they kept is the task of
the evaluation and the gate.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.calibration import calibration_sequences, load_student
from pipeline.examine import final_checkpoint
from pipeline.recipe import OnnxOptions
from pipeline.run import Context
from quant import onnx, optimum
from quant.round_onnx import round_again
from serve.models import folder_bytes

STAGE_VERSION = 3
LIBRARIES = ("onnxruntime", "onnxruntime-genai", "onnx", "onnx-ir", "torch", "transformers")
NAME = "student"


def run(
    config: OnnxOptions, inputs: Mapping[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Write one folder a precision. Raises EngineError when one cannot be made."""
    shutil.rmtree(out)
    out.mkdir()
    checkpoint = final_checkpoint(inputs)
    built = config.exporter == "genai"
    rounding = built and "int4" in config.precisions and config.gptq_tokens > 0
    steps = len(config.precisions) + rounding
    with context.progress.bar("exporting", steps) as bar:
        for precision in config.precisions:
            folder = out / f"{NAME}-{precision}"
            if built:
                onnx.export(checkpoint, folder, precision, config.provider)
            else:
                optimum.export(checkpoint, folder, precision)
            bar.advance(1)
        if rounding:
            sequences = calibration_sequences(checkpoint, config.gptq_tokens)
            round_again(out / f"{NAME}-int4", load_student(checkpoint), sequences)
            bar.advance(1)
    return {"size_bytes": {p.name: folder_bytes(p) for p in sorted(out.glob(f"{NAME}-*"))}}
