"""Opens the recipe's teacher as an engine, its weights re-encoded for speed where asked."""

from __future__ import annotations

from pathlib import Path

from pipeline.recipe import TeacherOptions
from pipeline.store import write_file
from pipeline.teacher_encoding import AS_IT_IS, encoding
from quant.gguf import Encoding, quantize
from serve.engines import load_engine
from serve.engines.base import Engine
from serve.engines.child import load_in_child
from serve.engines.vllm_process import open_vllm
from serve.errors import DiskError
from serve.file_lock import locked
from serve.hardware import cores
from serve.models import cache_folder, file_sha256, pin_of, resolve_model


def teacher_identity(teacher: TeacherOptions) -> str:
    """Which model answers, in which runtime: part of every trace's key."""
    written = encoding(teacher)
    copy = "" if written == AS_IT_IS else f" as {written}"
    return f"{teacher.engine}:{teacher.model}@{pin_of(teacher.model, teacher.sha256)}{copy}"


def room_of(teacher: TeacherOptions) -> int:
    """Tokens of prompt and answer that were chosen for it; a server has its own."""
    return 0 if teacher.engine == "http" else teacher.context_tokens


def open_teacher(teacher: TeacherOptions, prefixes: int = 1) -> Engine:
    """The teacher, its file hashed before it loads; `prefixes` beginnings of prompts are kept.

    Raises UntrustedFile on another sha256, EngineError when it does not load.
    """
    if teacher.engine == "http":
        return load_engine(
            "http",
            base_url=teacher.base_url,
            model=teacher.model,
            api_key_env=teacher.api_key_env,
            concurrency=teacher.slots,
            token_budget=teacher.token_budget,
        )
    if teacher.engine == "vllm":
        return open_vllm(
            teacher_file(teacher),
            teacher.slots,
            teacher.context_tokens,
            teacher.tensor_parallel,
            teacher.data_parallel,
            teacher.memory_share,
        )
    return load_in_child(
        teacher.engine,
        path=teacher_file(teacher),
        slots=teacher.slots,
        context_tokens=teacher.context_tokens,
        prefixes=prefixes,
    )


def teacher_file(teacher: TeacherOptions) -> Path:
    """The file that answers: the verified one, or its copy in another encoding."""
    path = resolve_model(teacher.model, teacher.sha256)
    return path if encoding(teacher) == AS_IT_IS else _reencoded(path, teacher)


def _reencoded(path: Path, teacher: TeacherOptions) -> Path:
    """The teacher's GGUF in another encoding, made once, hashed before it is used again.

    Q8_0 holds the values of a four-bit file to half a percent, F16 to a thousandth, and neither
    needs unpacking.
    """
    source = teacher.sha256 or file_sha256(path)
    kind = encoding(teacher)
    target = cache_folder() / "models" / f"{source[:16]}-{kind}.gguf"
    if _proven(target):
        return target
    try:
        # Several actors of one machine want it at once.
        with locked(target.with_suffix(".lock")):
            if not _proven(target):
                quantize(path, target, Encoding(file_type=kind), cores(), requantize=True)
                write_file(_proof(target), file_sha256(target))
    except OSError as error:
        raise DiskError(f"cannot write {target}: {error.strerror}") from error
    return target


def _proof(target: Path) -> Path:
    return target.with_suffix(".sha256")


def _proven(target: Path) -> bool:
    """Whether the file is whole: its hash is written after it."""
    proof = _proof(target)
    return target.exists() and proof.exists() and proof.read_text() == file_sha256(target)
