"""A checkpoint folder to ONNX by Hugging Face's optimum, for architectures the builder lacks.

optimum needs an older transformers than training does, so it lives in an environment of its own
(`make optimum`) and is called as a command. Weights are quantized here, by onnxruntime.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from quant.tool import run_tool
from serve.errors import DataError
from serve.models import cache_folder

RELEASE = "0.1.0"
EXPORT_TIME_LIMIT_S = 3600.0
# The exporter writes the graph alone; the rest is the checkpoint's own.
CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)
BITS = {"int8": 8, "int4": 4}
BLOCK_WEIGHTS = 32
# onnxruntime multiplies by int8 activations at this level, as the builder's graphs do.
ACCURACY_LEVEL = 4


def export(checkpoint: Path, target: Path, precision: str) -> None:
    """Write `checkpoint` as an ONNX folder: fp32, int8 or int4.

    Raises DataError without the exporter's environment, EngineError with the exporter's last line.
    """
    tool = cache_folder() / f"optimum-{RELEASE}" / "bin" / "optimum-cli"
    if not tool.exists():
        raise DataError("optimum's environment is not in the cache", hint="run `make optimum`")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx-") as folder:
        source, partial = Path(folder) / "checkpoint", Path(folder) / "model"
        shutil.copytree(checkpoint, source, ignore=shutil.ignore_patterns("scratch"))
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        (source / "config.json").write_text(json.dumps(for_older_readers(config)), encoding="utf-8")
        task = ("--task", "text-generation-with-past")
        run_tool(
            f"optimum for {precision}",
            [str(tool), "export", "onnx", "--model", str(source), *task, str(partial)],
            EXPORT_TIME_LIMIT_S,
            {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
            partial / "model.onnx",
        )
        for name in CARRIED:
            if (checkpoint / name).exists():
                shutil.copyfile(checkpoint / name, partial / name)
        if precision in BITS:
            _quantize(partial, BITS[precision])
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)


def for_older_readers(config: dict[str, Any]) -> dict[str, Any]:
    """transformers 4 reads the rotary base and scaling from two fields, 5 writes them into one.

    Left alone, an exporter with transformers 4 takes its default base and says nothing. Raises
    DataError for bases that differ between layers, which 4 has no one place for.
    """
    rope = dict(config.get("rope_parameters") or {})
    if not rope:
        return config
    if "rope_theta" not in rope:
        raise DataError("optimum's transformers cannot read rope_parameters without rope_theta")
    older = {**config, "rope_theta": rope.pop("rope_theta"), "rope_scaling": None}
    if "partial_rotary_factor" in rope:
        older["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = rope
    return older


def _quantize(folder: Path, bits: int) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(folder / "model.onnx"),
        bits=bits,
        block_size=BLOCK_WEIGHTS,
        is_symmetric=True,
        accuracy_level=ACCURACY_LEVEL,
    )
    quantizer.process()
    for old in folder.glob("model.onnx*"):
        old.unlink()
    quantizer.model.save_model_to_file(str(folder / "model.onnx"), use_external_data_format=True)
