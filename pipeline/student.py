"""The student as a plain safetensors checkpoint, whatever file it arrived in.

A GGUF is dequantized once by transformers and kept in the cache folder, named by its sha256.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from pipeline.recipe import StudentOptions
from serve.errors import DataError, DiskError
from serve.models import cache_folder, file_sha256, resolve_model

# Bump when the conversion below changes what it writes.
CONVERSION_VERSION = 1


def student_identity(student: StudentOptions) -> str:
    return f"{student.model}@{student.sha256 or 'unpinned'}"


def student_checkpoint(student: StudentOptions) -> Path:
    """A folder with `model.safetensors`, config and tokenizer. Raises UntrustedFile, DataError."""
    path = resolve_model(student.model, student.sha256)
    if path.is_dir():
        return path
    if path.suffix != ".gguf":
        raise DataError(f"student {student.model} is neither a checkpoint folder nor a .gguf file")
    sha256 = student.sha256 or file_sha256(path)
    name = f"{sha256[:16]}-{version('transformers')}-{CONVERSION_VERSION}"
    folder = cache_folder() / "checkpoints" / name
    if not (folder / "COMPLETE").exists():
        _dequantize(path, folder)
    return folder


def _dequantize(gguf: Path, folder: Path) -> None:
    """Write the checkpoint beside its final place, then rename: never a half-written student."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # `save_pretrained` refuses a model that came from GGUF, so its weights move into a fresh one.
    plain = type(packed)(config).to(torch.bfloat16)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "COMPLETE").touch()
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    except OSError as error:
        raise DiskError(f"cannot write the student checkpoint to {folder}: {error}") from error
