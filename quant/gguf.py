"""A checkpoint folder to GGUF: llama.cpp's own converter, then its own quantizer.

Reads a safetensors folder or a GGUF; writes one `.gguf`. The converter is the one inside the source
archive of the llama-cpp-python that will load the file. Both run as child processes.
"""

from __future__ import annotations

import os
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

from pydantic import Field

from quant.tool import run_tool
from serve.errors import DataError, UsageError
from serve.file_lock import locked
from serve.messages import Record
from serve.models import cache_folder

# llama.h, enum llama_ftype.
FILE_TYPES = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_M": 12,
    "Q4_K_M": 15,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "BF16": 32,
}
CONVERTER_TIME_LIMIT_S = 1800.0


def gguf_name(name: str, file_type: str) -> str:
    return f"{name}-{file_type}.gguf"


def convert(checkpoint: Path, target: Path) -> None:
    """Write `checkpoint` as an F16 GGUF. Raises EngineError with the converter's last line."""
    source = converter_folder()
    script = str(source / "convert_hf_to_gguf.py")
    run_tool(
        "converter",
        [sys.executable, script, str(checkpoint), "--outfile", str(target), "--outtype", "f16"],
        CONVERTER_TIME_LIMIT_S,
        {"PYTHONPATH": str(source / "gguf-py"), "HF_HUB_OFFLINE": "1"},
        target,
    )


class Encoding(Record):
    """How a GGUF's weights are written: a file type, and what departs from it.

    `overrides` are (regular expression on tensor names, tensor type), first match first.
    """

    file_type: str
    imatrix: Path | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    metadata: dict[str, str | int] = Field({})


class Job(Record):
    """One call of the quantizer."""

    source: Path
    target: Path
    encoding: Encoding
    threads: int
    requantize: bool = False


def quantize(
    source: Path, target: Path, encoding: Encoding, threads: int, requantize: bool = False
) -> None:
    """Write `source` (an F16 GGUF) as `encoding` says. Raises UsageError, EngineError.

    `requantize` lets `source` be a quantized file: its values are decoded and encoded again.
    """
    file_type = encoding.file_type
    if file_type not in FILE_TYPES:
        raise UsageError(
            f"unknown GGUF type {file_type!r}", hint=f"one of {', '.join(sorted(FILE_TYPES))}"
        )
    partial = target.with_suffix(".partial")
    job = Job(
        source=source, target=partial, encoding=encoding, threads=threads, requantize=requantize
    )
    try:
        run_tool(
            f"quantizing to {file_type}",
            [sys.executable, "-m", "quant.quantizer", job.model_dump_json()],
        )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def architecture_of(path: Path) -> str:
    """`general.architecture` of a GGUF. Raises DataError for a file that is none."""
    from quant.gguf_reader import TensorReader

    try:
        return str(TensorReader(path).fields["general.architecture"].contents())
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path.name} is not a GGUF: {error}") from error


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
    with locked(cache_folder() / "locks" / f"converter-{release}.lock"):
        if not (folder / "COMPLETE").exists():  # another run was first
            _unpack(archive, f"llama_cpp_python-{release}/vendor/llama.cpp/", folder)
    return folder


def _unpack(archive: Path, prefix: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            inner = member.name.removeprefix(prefix)
            if member.name.startswith(prefix) and inner.startswith(wanted):
                member.name = inner
                tar.extract(member, folder, filter="data")
    (folder / "COMPLETE").touch()
