"""The importance matrix: sums of the right activations, under the right names."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from quant import imatrix
from serve.errors import DataError

TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
SEQUENCES = [[1, 2, 3, 4], [5, 6, 7]]
LAYER = ("attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up")


def tiny(kind: str = "llama", tied: bool = False):
    torch.manual_seed(0)
    configs = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    models = {"llama": LlamaForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
    return models[kind](configs[kind](**TINY, tie_word_embeddings=tied)).eval()


@torch.no_grad()
def test_means_are_those_of_the_inputs_of_each_weight():
    model = tiny()
    matrix = imatrix.collect(model, SEQUENCES, "llama", "here")
    states = torch.cat(
        [
            model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor(ids)))
            for ids in SEQUENCES
        ]
    )
    expected = states.pow(2).mean(dim=0).numpy()
    for name in ("q", "k", "v"):
        np.testing.assert_allclose(
            matrix.mean_squares[f"blk.0.attn_{name}.weight"], expected, rtol=1e-5
        )
    last = torch.cat([model.model(torch.tensor([ids])).last_hidden_state[0] for ids in SEQUENCES])
    np.testing.assert_allclose(
        matrix.mean_squares["output.weight"], last.pow(2).mean(dim=0).numpy(), rtol=1e-5
    )
    assert (matrix.tokens, matrix.dataset) == (7, "here")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_matrix_of_the_model_has_its_gguf_name(kind, tied):
    matrix = imatrix.collect(tiny(kind, tied), SEQUENCES, kind, "here")
    names = {f"blk.{block}.{name}.weight" for block in range(2) for name in LAYER}
    assert set(matrix.mean_squares) == names | {"token_embd.weight" if tied else "output.weight"}
    assert {len(matrix.mean_squares[f"blk.1.{n}.weight"]) for n in LAYER} == {16, 24}


def test_hooks_leave_the_model_as_it_was():
    model = tiny()
    imatrix.collect(model, SEQUENCES, "llama", "here")
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_a_file_says_what_was_collected(tmp_path):
    matrix = imatrix.collect(tiny(), SEQUENCES, "llama", "kept traces")
    path = tmp_path / "imatrix.gguf"
    imatrix.write(matrix, path)
    again = imatrix.read(path)
    assert (again.tokens, again.dataset) == (7, "kept traces")
    assert sorted(again.mean_squares) == sorted(matrix.mean_squares)
    for name, means in matrix.mean_squares.items():
        np.testing.assert_allclose(again.mean_squares[name], means, rtol=1e-6)
    # What llama.cpp's own tools look for.
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == 7
    assert {t.name for t in reader.tensors} >= {
        "blk.0.attn_q.weight.in_sum2",
        "blk.0.attn_q.weight.counts",
    }


def other_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, arch="llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_other_files_are_refused(tmp_path):
    other_gguf(tmp_path / "model.gguf")
    (tmp_path / "text.gguf").write_text("not a GGUF at all, but long enough to have a header")
    for name in ("model.gguf", "text.gguf"):
        with pytest.raises(DataError, match=f"{name} is not an importance matrix"):
            imatrix.read(tmp_path / name)


def test_nothing_to_collect_from_is_an_error():
    with pytest.raises(DataError, match="an importance matrix needs tokens, none given"):
        imatrix.collect(tiny(), [], "llama", "here")
    with pytest.raises(DataError, match="GGUF architecture 'lama' is not one of"):
        imatrix.collect(tiny(), SEQUENCES, "lama", "here")
