"""llama.cpp's quantizer as a process.

    python -m quant.quantizer JOB        (JOB: a `quant.gguf.Job` in JSON)

A process of its own, because native code that crashes must not end the run, and because a Ctrl-C
that arrives inside llama.cpp's log callback would be swallowed there.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
import llama_cpp as native
import numpy as np

from quant import imatrix
from quant.gguf import FILE_TYPES, Job
from serve.engines.llama_native import last_log_line


def main(arguments: Sequence[str]) -> int:
    """Write the file. Returns llama.cpp's status, its last words on stderr."""
    job = Job.model_validate_json(arguments[0])
    options = native.llama_model_quantize_default_params()
    options.ftype = FILE_TYPES[job.encoding.file_type]
    options.nthread = job.threads
    options.allow_requantize = job.requantize
    # What the options point at must live until the call returns.
    kept = [
        _overrides(job.encoding.overrides),
        _metadata({**job.encoding.metadata}),
        _importance(job) if job.encoding.imatrix else None,
    ]
    options.tt_overrides, options.kv_overrides = kept[0], kept[1]
    if kept[2] is not None:
        options.imatrix = kept[2]
    status: int = native.llama_model_quantize(
        str(job.source).encode(), str(job.target).encode(), ctypes.byref(options)
    )
    if status != 0:
        print(last_log_line(), file=sys.stderr)
    return status


def _overrides(pairs: Sequence[tuple[str, str]]) -> Any:
    """Ended by a null pattern."""
    array = (native.llama_model_tensor_override * (len(pairs) + 1))()
    for slot, (pattern, kind) in zip(array, pairs, strict=False):
        slot.pattern, slot.type = pattern.encode(), int(gguf.GGMLQuantizationType[kind])
    return array


def _metadata(values: Mapping[str, str | int]) -> Any:
    """Ended by an empty key. llama.cpp holds 127 bytes of a string."""
    array = (native.llama_model_kv_override * (len(values) + 1))()
    for slot, (key, value) in zip(array, sorted(values.items()), strict=False):
        slot.key = key.encode()
        if isinstance(value, int):
            slot.tag, slot.value.val_i64 = native.LLAMA_KV_OVERRIDE_TYPE_INT, value
        else:
            slot.tag = native.LLAMA_KV_OVERRIDE_TYPE_STR
            slot.value.val_str = value.encode()[:127]
    return array


def _importance(job: Job) -> Any:
    """Ended by a null name."""
    assert job.encoding.imatrix is not None
    matrix = imatrix.read(job.encoding.imatrix)
    array = (native.llama_model_imatrix_data * (len(matrix.mean_squares) + 1))()
    for slot, (name, means) in zip(array, matrix.mean_squares.items(), strict=False):
        values = np.ascontiguousarray(means, dtype=np.float32)
        slot.name, slot.size = name.encode(), len(values)
        slot.data = (ctypes.c_float * len(values))(*values)
    return array


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
