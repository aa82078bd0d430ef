"""Mean squared activations of a GGUF as llama.cpp itself computes them, by its `cb_eval` hook.

    python tests/e2e/llama_activations.py GGUF IDS.json OUT.npz

What llama.cpp's imatrix tool does (tools/imatrix/imatrix.cpp, collect_imatrix), written down anew
to check ours. A process of its own: torch and llama.cpp do not share one.
"""

import ctypes
import json
import sys
from collections import defaultdict
from pathlib import Path

import llama_cpp as native
import numpy as np


class Tensor(ctypes.Structure):
    """ggml.h, struct ggml_tensor, up to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


sums, counts = defaultdict(float), defaultdict(int)


def of(address):
    return ctypes.cast(address, ctypes.POINTER(Tensor)).contents


@native.ggml_backend_sched_eval_callback
def watch(address, ask, _data):
    tensor = of(address)
    if not (tensor.src[0] and tensor.src[1]):
        return not ask
    weight, inputs = of(tensor.src[0]), of(tensor.src[1])
    name = weight.name.decode()
    wanted = name.startswith("blk.") and name.endswith(".weight") and inputs.ne[0] == weight.ne[0]
    if ask or not wanted or weight.ne[1] == 1:
        return wanted or not ask
    columns, rows = inputs.ne[0], inputs.ne[1]
    assert (inputs.type, inputs.nb[0], inputs.nb[1]) == (0, 4, 4 * columns)  # contiguous float32
    values = np.ctypeslib.as_array(
        ctypes.cast(inputs.data, ctypes.POINTER(ctypes.c_float)), shape=(rows, columns)
    )
    sums[name] += np.square(values, dtype=np.float64).sum(axis=0)
    counts[name] += rows
    return True


def main(path, ids_path, out):
    model = native.llama_model_load_from_file(path.encode(), native.llama_model_default_params())
    options = native.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = 512
    options.cb_eval = watch
    context = native.llama_init_from_model(model, options)
    for ids in json.loads(Path(ids_path).read_text()):
        native.llama_memory_clear(native.llama_get_memory(context), True)
        # Logits of every token: the last layer computes what is asked for only.
        batch = native.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        assert native.llama_decode(context, batch) == 0
        native.llama_batch_free(batch)
    np.savez(out, **{name: (sums[name] / counts[name]).astype(np.float32) for name in sums})


if __name__ == "__main__":
    main(*sys.argv[1:])
