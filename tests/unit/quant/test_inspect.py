"""What a file holds, read from files written here."""

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from quant.inspect import inspect_gguf
from serve.errors import DataError

TEMPLATE = "{{ messages }}"


def write(path: Path, kinds: dict[str, Kind], template: str | None = TEMPLATE) -> Path:
    """Matrices of 4 x 256 weights in the given types, and one norm."""
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(7)
    writer.add_string("retort.imatrix.sha256", "abc")
    if template:
        writer.add_chat_template(template)
    values = np.linspace(-1, 1, 4 * 256, dtype=np.float32).reshape(4, 256)
    for name, kind in kinds.items():
        size = gguf.quant_shape_to_byte_shape((4, 256), kind)
        raw = np.zeros(size, dtype=np.uint8) if kind.name.endswith("_K") else None
        data = raw if raw is not None else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(256, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_everything_is_read_from_the_file(tmp_path):
    path = write(
        tmp_path / "student-Q4_K_M.gguf",
        {
            "blk.0.attn_q.weight": Kind.Q4_K,
            "blk.0.ffn_up.weight": Kind.Q4_K,
            "token_embd.weight": Kind.Q8_0,
        },
    )
    found = inspect_gguf(path)
    assert found.types == {"Q4_K": 2, "Q8_0": 1, "F32": 1}
    assert found.shares == {"Q4_K": 1.0}
    weights, size = 3 * 1024 + 256, 2 * 4 * 144 + 1024 * 34 // 32 + 256 * 4
    assert (found.weights, found.bits_per_weight) == (weights, round(8 * size / weights, 3))
    assert (found.tokenizer, found.end_tokens) == ("gpt2/smollm", (2, 7))
    assert found.template_sha256 == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert found.metadata["retort.imatrix.sha256"] == "abc"
    assert found.warnings == ()


def test_a_label_that_lies_is_said(tmp_path):
    kinds = {
        "blk.0.attn_q.weight": Kind.Q5_0,
        "blk.0.ffn_up.weight": Kind.Q5_0,
        "blk.0.ffn_down.weight": Kind.Q4_K,
    }
    found = inspect_gguf(write(tmp_path / "student-Q4_K_M.gguf", kinds))
    assert found.warnings == (
        f"Q4_K_M in name only: 67 % Q5_0, 33 % Q4_K; {found.bits_per_weight:.2f} bits a weight",
    )


def test_a_missing_template_is_said(tmp_path):
    kinds = {"blk.0.attn_q.weight": Kind.Q8_0}
    found = inspect_gguf(write(tmp_path / "student-Q8_0.gguf", kinds, template=None))
    assert (found.template_sha256, found.warnings) == (None, ("no chat template",))


@pytest.mark.parametrize("kept", [0, 20, 300])
def test_a_cut_file_is_refused(tmp_path, kept):
    path = write(tmp_path / "student-Q8_0.gguf", {"blk.0.attn_q.weight": Kind.Q8_0})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"student-Q8_0\.gguf is not a whole GGUF"):
        inspect_gguf(path)
