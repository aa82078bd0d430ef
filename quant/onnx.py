"""A checkpoint folder to ONNX: onnxruntime-genai's own model builder, as a child process.

Reads a safetensors folder; writes a folder with `model.onnx`, its data, `genai_config.json`, the
tokenizer and the chat template, as the runtime of the same package loads it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from quant.tool import run_tool
from serve.errors import UsageError

# Name of a rung -> the builder's precision and extra options. Measured: docs/notes.md, "ONNX".
PRECISIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fp32": ("fp32", ()),
    "fp16": ("fp16", ()),
    "int8": ("int8", ()),
    "int4": ("int4", ("algo_config=k_quant_mixed",)),
}
PROVIDERS = ("cpu", "cuda", "dml")
BUILDER_TIME_LIMIT_S = 3600.0


def export(checkpoint: Path, target: Path, precision: str, provider: str = "cpu") -> None:
    """Write `checkpoint` as an ONNX folder. Raises UsageError, EngineError with the last line."""
    if precision not in PRECISIONS:
        raise UsageError(
            f"unknown ONNX precision {precision!r}", hint=f"one of {', '.join(PRECISIONS)}"
        )
    if provider not in PROVIDERS:
        raise UsageError(f"unknown provider {provider!r}", hint=f"one of {', '.join(PROVIDERS)}")
    name, extra = PRECISIONS[precision]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx-") as folder:
        partial = Path(folder) / "model"
        command = [
            *(sys.executable, "-m", "onnxruntime_genai.models.builder"),
            *("-i", str(checkpoint), "-o", str(partial), "-c", str(Path(folder) / "cache")),
            *("-p", name, "-e", provider),
            *(("--extra_options", *extra) if extra else ()),
        ]
        run_tool(
            f"ONNX builder for {precision}",
            command,
            BUILDER_TIME_LIMIT_S,
            {"HF_HUB_OFFLINE": "1"},
            partial / "model.onnx",
        )
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
