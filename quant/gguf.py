"""A checkpoint folder to GGUF files: llama.cpp's own converter, then its own quantizer.

Reads a safetensors folder; writes one `.gguf` a type. The converter is the one inside the source
archive of the llama-cpp-python that will load the file. Both run as child processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from serve.errors import DataError, EngineError, UsageError
from serve.models import cache_folder

# llama.h, enum llama_ftype.
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q8_0": 7,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_XS": 30,
    "BF16": 32,
}
CONVERTER_TIME_LIMIT_S = 1800.0


def gguf_name(name: str, file_type: str) -> str:
    return f"{name}-{file_type}.gguf"


def convert(checkpoint: Path, target: Path) -> None:
    """Write `checkpoint` as an F16 GGUF. Raises EngineError with the converter's last line."""
    source = converter_folder()
    environment = {**os.environ, "PYTHONPATH": str(source / "gguf-py"), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        str(source / "convert_hf_to_gguf.py"),
        str(checkpoint),
        "--outfile",
        str(target),
        "--outtype",
        "f16",
    ]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=CONVERTER_TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"converter took over {CONVERTER_TIME_LIMIT_S} s") from error
    if done.returncode != 0 or not target.exists():
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise EngineError(f"converter ended with {done.returncode}: {lines[-1]}")


def quantize(
    source: Path, target: Path, file_type: str, threads: int, requantize: bool = False
) -> None:
    """Write `source` (an F16 GGUF) as `file_type`. Raises UsageError, EngineError.

    `requantize` lets `source` be a quantized file: its values are decoded and encoded again.
    """
    if file_type not in FILE_TYPES:
        raise UsageError(
            f"unknown GGUF type {file_type!r}", hint=f"one of {', '.join(sorted(FILE_TYPES))}"
        )
    partial = target.with_suffix(".partial")
    options = [str(source), str(partial), FILE_TYPES[file_type], threads, requantize]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "quant.quantizer", *map(str, options)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ["no message"]
            raise EngineError(
                f"quantizing to {file_type} ended with {done.returncode}: {lines[-1]}"
            )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def ladder(
    checkpoint: Path, out: Path, name: str, types: Sequence[str], threads: int
) -> list[Path]:
    """One file a type, in the order given. F16 is made on the way and kept only when asked for."""
    with tempfile.TemporaryDirectory(dir=out, prefix=".f16-") as folder:
        full = Path(folder) / gguf_name(name, "F16")
        convert(checkpoint, full)
        files = []
        for file_type in types:
            target = out / gguf_name(name, file_type)
            if file_type != "F16":
                quantize(full, target, file_type, threads)
            files.append(target)
        if "F16" in types:
            os.replace(full, out / gguf_name(name, "F16"))
    return files


def converter_folder() -> Path:
    """llama.cpp's converter at the commit of the runtime, unpacked once from its sdist."""
    release = version("llama-cpp-python")
    folder = cache_folder() / "converter" / release
    if (folder / "COMPLETE").exists():
        return folder
    archive = cache_folder() / "sdist" / f"llama_cpp_python-{release}.tar.gz"
    if not archive.exists():
        raise DataError(
            f"the source archive of llama-cpp-python {release} is not in the cache",
            hint="run `make converter`",
        )
    folder.mkdir(parents=True, exist_ok=True)
    wanted = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")
    prefix = f"llama_cpp_python-{release}/vendor/llama.cpp/"
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            inner = member.name.removeprefix(prefix)
            if member.name.startswith(prefix) and inner.startswith(wanted):
                member.name = inner
                tar.extract(member, folder, filter="data")
    (folder / "COMPLETE").touch()
    return folder
