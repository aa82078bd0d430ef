"""Bytes go where they save most: groups, prices, and the choice within a budget."""

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM

from quant import imatrix
from quant.sensitivity import (
    Price,
    allocate,
    groups_of,
    leave_out_what_is_not_noise,
    overrides_of,
    price_groups,
)
from serve.errors import DataError, UsageError


def test_groups_are_kinds_in_bands_of_layers():
    names = [f"blk.{b}.{kind}.weight" for b in range(12) for kind in ("attn_q", "ffn_up")]
    groups = groups_of([*names, "token_embd.weight"], blocks=12)
    assert list(groups)[:3] == ["attn_q 0-2", "ffn_up 0-2", "attn_q 3-5"]
    assert groups["attn_q 9-11"] == tuple(f"blk.{b}.attn_q.weight" for b in (9, 10, 11))
    assert groups["token_embd.weight"] == ("token_embd.weight",)
    assert sum(map(len, groups.values())) == 25


PRICES = {
    "fragile": {"Q4": Price(40, 1.0), "Q5": Price(50, 0.2), "Q8": Price(80, 0.01)},
    "robust": {"Q4": Price(40, 0.05), "Q5": Price(50, 0.02), "Q8": Price(80, 0.001)},
}


@pytest.mark.parametrize(
    ("budget", "chosen"),
    [
        (80, {"fragile": "Q4", "robust": "Q4"}),
        (90, {"fragile": "Q5", "robust": "Q4"}),
        (120, {"fragile": "Q8", "robust": "Q4"}),
        (130, {"fragile": "Q8", "robust": "Q5"}),
        (160, {"fragile": "Q8", "robust": "Q8"}),
    ],
)
def test_bytes_go_where_they_save_most(budget, chosen):
    assert allocate(PRICES, budget) == chosen


def test_a_type_off_the_hull_is_never_chosen():
    prices = {"g": {"a": Price(10, 1.0), "waste": Price(20, 0.95), "b": Price(30, 0.1)}}
    assert [allocate(prices, budget)["g"] for budget in (10, 29, 30)] == ["a", "a", "b"]
    worse = {"g": {"a": Price(10, 1.0), "larger and worse": Price(20, 1.5)}}
    assert allocate(worse, 100) == {"g": "a"}


def test_a_budget_below_everything_is_refused():
    with pytest.raises(UsageError, match="79 bytes are too few: the smallest file has 80"):
        allocate(PRICES, 79)


def test_a_pattern_matches_its_group_and_nothing_else():

    ((pattern, kind),) = overrides_of(
        {"g": "Q5_0"}, {"g": ("blk.1.attn_q.weight", "output.weight")}
    )
    assert kind == "Q5_0"
    assert re.search(pattern, "blk.1.attn_q.weight")
    assert re.search(pattern, "output.weight")
    for other in ("blk.11.attn_q.weight", "blk.1xattn_q.weight", "token_output.weight"):
        assert not re.search(pattern, other)


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
    monkeypatch.setattr("quant.sensitivity.NARROW_TYPES", ("Q4_1", "Q5_0", "Q8_0"))
    monkeypatch.setattr("quant.sensitivity.TYPES", ("Q4_1", "Q5_0", "Q8_0"))
    monkeypatch.setattr("quant.sensitivity.NOISE_LIMIT", 50.0)
    student, ids = model(), [[1, 5, 9, 13, 17, 21], [2, 4, 8, 16, 32, 63]]
    # Half precision exactly, as a checkpoint in bfloat16 nearly always is.
    student.load_state_dict({k: v.half().float() for k, v in student.state_dict().items()})
    full = write(tmp_path / "full.gguf", student, Kind.F16)
    encoded = {
        kind: write(tmp_path / f"{kind}.gguf", student, Kind[kind])
        for kind in ("Q4_1", "Q5_0", "Q8_0")
    }
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
    asked = []

    def measured(kind, names):
        asked.append((kind, names))
        return whole[kind]

    leave_out_what_is_not_noise(nats, {"a": ["1", "2"], "b": ["3"], "wide": ["4"]}, measured)
    assert nats == {
        "a": {"Q5_0": 0.02, "Q8_0": 0.0001},
        "b": {"Q5_0": 0.03, "Q8_0": 0.0001},
        "wide": {"Q4_K": 0.01},
    }
    assert ("Q4_1", ["1", "2", "3"]) in asked
    assert ("Q4_K", ["4"]) in asked
    assert len(asked) == 4
