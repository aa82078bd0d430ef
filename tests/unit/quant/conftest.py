"""Small real files for the tests of quantized weights."""

from pathlib import Path

import gguf
import numpy as np
import pytest


@pytest.fixture
def full_gguf(tmp_path):
    """Writes an F16 GGUF of given matrices that llama.cpp's quantizer takes."""

    def write(matrices: dict[str, np.ndarray]) -> Path:
        path = tmp_path / "full.gguf"
        writer = gguf.GGUFWriter(path, arch="llama")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(96)
        writer.add_feed_forward_length(256)
        writer.add_head_count(2)
        writer.add_layer_norm_rms_eps(1e-5)
        for name, values in matrices.items():
            writer.add_tensor(name, values.astype(np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
