"""llama.cpp's quantizer as a process.

    python -m quant.quantizer SOURCE TARGET FTYPE THREADS REQUANTIZE

A process of its own, because native code that crashes must not end the run, and because a Ctrl-C
that arrives inside llama.cpp's log callback would be swallowed there.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp as native

from serve.engines.llama_native import last_log_line


def main(arguments: list[str]) -> int:
    """Write the file. Returns llama.cpp's status, its last words on stderr."""
    source, target, file_type, threads, requantize = arguments
    options = native.llama_model_quantize_default_params()
    options.ftype = int(file_type)
    options.nthread = int(threads)
    options.allow_requantize = requantize == "True"
    status: int = native.llama_model_quantize(
        source.encode(), target.encode(), ctypes.byref(options)
    )
    if status != 0:
        print(last_log_line(), file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
