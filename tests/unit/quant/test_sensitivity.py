"""What quantizing a group of tensors costs, measured on a tiny student."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM

from quant import imatrix
from quant.gguf import Encoding, quantize
from quant.sensitivity import price_groups, rounds_of, without_bias
from serve.errors import DataError


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def write(path: Path, student: LlamaForCausalLM, kind: Kind) -> Path:
    """The student's matrices in `kind`, the rows of q in another order as the converter does."""
    writer = gguf.GGUFWriter(path, arch="llama")
    names = {**imatrix.gguf_names(student, "llama"), "model.embed_tokens": "token_embd.weight"}
    for module, name in names.items():
        values = student.get_submodule(module).weight.detach().numpy()
        if "attn_q" in name:
            values = values[::-1].copy()
        data = values.astype(np.float16) if kind == Kind.F16 else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=None if kind == Kind.F16 else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def priced(tmp_path, monkeypatch):
    monkeypatch.setattr("quant.sensitivity.NOISE_LIMIT", 50.0)
    student, ids = model(), [[1, 5, 9, 13, 17, 21], [2, 4, 8, 16, 32, 63]]
    # Half precision exactly, as a checkpoint in bfloat16 nearly always is.
    student.load_state_dict({k: v.half().float() for k, v in student.state_dict().items()})
    full = write(tmp_path / "full.gguf", student, Kind.F16)
    encoded = [
        write(tmp_path / f"{kind}.gguf", student, Kind[kind]) for kind in ("Q4_1", "Q5_0", "Q8_0")
    ]
    matrix = imatrix.collect(student, ids, "llama", "here")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    prices = price_groups(student, full, encoded, matrix, ids)
    return student, before, prices, (full, encoded, matrix, ids)


def test_every_group_costs_less_in_a_finer_type(priced):
    _, _, prices, _ = priced
    assert sorted(prices) == sorted(
        [f"{kind} 0-0" for kind in ("attn_k", "attn_output", "attn_q", "attn_v")]
        + [f"ffn_{kind} 0-0" for kind in ("down", "gate", "up")]
        + ["token_embd.weight"]
    )
    for kinds in prices.values():
        assert kinds["Q4_1"].kl_nats > kinds["Q5_0"].kl_nats > kinds["Q8_0"].kl_nats > 0
        assert kinds["Q8_0"].size_bytes > kinds["Q5_0"].size_bytes > kinds["Q4_1"].size_bytes


def test_the_student_comes_back_unchanged(priced):
    student, before, _, _ = priced
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_gguf_of_another_student_is_refused(priced):
    student, _, _, rest = priced
    with torch.no_grad():
        student.model.layers[0].self_attn.q_proj.weight.mul_(2)
    with pytest.raises(DataError, match=r"blk\.0\.attn_q\.weight of the GGUF does not hold"):
        price_groups(student, *rest)


def test_a_type_whose_prices_do_not_add_up_is_left_out():
    nats = {
        "a": {"Q4_1": 0.001, "Q5_0": 0.02, "Q8_0": 0.0001},
        "b": {"Q4_1": 0.001, "Q5_0": 0.03, "Q8_0": 0.0001},
        "wide": {"Q4_K": 0.01},
    }
    whole = {"Q4_1": 0.4, "Q5_0": 0.06, "Q8_0": 0.0002, "Q4_K": 0.012}
    assert without_bias(nats, whole) == {
        "a": {"Q5_0": 0.02, "Q8_0": 0.0001},
        "b": {"Q5_0": 0.03, "Q8_0": 0.0001},
        "wide": {"Q4_K": 0.01},
    }


def test_a_round_writes_every_tensor_in_one_of_its_types(full_gguf, tmp_path):
    """The real quantizer, on rows that divide by 256 and rows that do not."""
    values = np.random.default_rng(0).normal(size=(64, 256))
    path = full_gguf({"blk.0.ffn_down.weight": values, "blk.0.ffn_up.weight": values[:, :96]})
    found = []
    for number, overrides in enumerate(rounds_of(path)):
        target = tmp_path / f"{number}.gguf"
        quantize(path, target, Encoding(file_type="Q8_0", overrides=overrides), threads=1)
        types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(target).tensors}
        found.append((types["blk.0.ffn_down.weight"], types["blk.0.ffn_up.weight"]))
    assert found == [
        ("Q3_K", "IQ4_NL"),
        ("IQ4_XS", "Q4_1"),
        ("Q4_K", "Q5_0"),
        ("Q5_K", "Q5_1"),
        ("Q6_K", "Q8_0"),
        ("Q8_0", "Q8_0"),
    ]
