"""The student as a plain safetensors checkpoint, whatever file it arrived in.

A GGUF is dequantized once by transformers and kept in the cache folder, named by its sha256.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.recipe import StudentOptions
from serve.errors import DataError, DiskError
from serve.file_lock import locked
from serve.models import cache_folder, file_sha256, pin_of, resolve_model

# Bump when the conversion below changes what it writes.
CONVERSION_VERSION = 3


def student_identity(student: StudentOptions) -> str:
    return f"{student.model}@{pin_of(student.model, student.sha256)}"


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
        try:
            with locked(cache_folder() / "locks" / "checkpoints.lock"):
                folder.parent.mkdir(parents=True, exist_ok=True)
                if not (folder / "COMPLETE").exists():  # another run was first
                    _dequantize(path, folder)
        except OSError as error:
            raise DiskError(f"cannot write the student checkpoint to {folder}: {error}") from error
    return folder


def _dequantize(gguf: Path, folder: Path) -> None:
    """Write the checkpoint beside its final place, then rename: never a half-written student.

    What killed processes left there goes first. Raises OSError.
    """
    import torch
    from transformers import AutoModelForCausalLM

    packed = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    tokenizer = gguf_tokenizer(gguf)
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # `save_pretrained` refuses a model that came from GGUF, so its weights move into a fresh one.
    plain = type(packed)(config).to(torch.bfloat16)
    plain.load_state_dict(packed.state_dict())
    plain.generation_config = packed.generation_config
    for left in folder.parent.glob(".partial-*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as name:
        temporary = Path(name) / "checkpoint"
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "COMPLETE").touch()
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)


def gguf_tokenizer(gguf: Path) -> Any:
    """The tokenizer of a GGUF as the file describes it.

    transformers rebuilds vocabulary and merges, but takes the begin token for the end token, drops
    the pre-tokenizer's name and gives a byte-level BPE the byte fallback of a sentencepiece one
    (llama.cpp's converter then writes a vocabulary that aborts on a line feed).
    """
    from gguf import GGUFReader
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    fields = GGUFReader(gguf).fields
    for name in ("bos", "eos", "unknown", "padding"):
        field = fields.get(f"tokenizer.ggml.{name}_token_id")
        if field is not None:
            token = tokenizer.convert_ids_to_tokens(int(field.contents()))
            attribute = {"unknown": "unk", "padding": "pad"}.get(name, name)
            setattr(tokenizer, f"{attribute}_token", token)
    if fields["tokenizer.ggml.model"].contents() == "gpt2":
        # Byte-level BPE has every byte in its vocabulary and falls back on none.
        raw = tokenizer.backend_tokenizer
        raw.model.byte_fallback = False
        raw.model.fuse_unk = False
        raw.decoder = decoders.ByteLevel()
        before_merges = fields.get("tokenizer.ggml.pre")
        if before_merges is not None and before_merges.contents() == "smollm":
            raw.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
                ]
            )
    return tokenizer
