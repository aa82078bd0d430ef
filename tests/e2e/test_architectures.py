"""Students of other architectures in both formats: biases, norms of q and k, tied and untied heads.

Tiny random weights under the tokenizer and template of the embedded teacher (Qwen2.5), so that what
is tested is how each architecture is converted, rendered and run, not what it knows.
"""

from contextlib import closing

import pytest
import torch
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.recipe import find_recipe, load_recipe
from pipeline.student import gguf_tokenizer
from quant import imatrix
from quant.divergence import HeldOut
from quant.gguf import Encoding, convert, quantize
from quant.inspect import inspect
from quant.onnx import export
from quant.parity import conversations
from quant.proof import prove, reference_of
from serve.engines import load_engine
from serve.engines.child import load_in_child
from serve.models import resolve_model

TEACHER = load_recipe(find_recipe("smoke")).teacher
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 2048,
}
KINDS = {
    "qwen2, tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32, "tie_word_embeddings": False}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return gguf_tokenizer(resolve_model(TEACHER.model, TEACHER.sha256))


@pytest.fixture(scope="module", params=KINDS, ids=KINDS.keys())
def student(request, tokenizer, tmp_path_factory):
    """A checkpoint folder whose every parameter, biases and norms included, is its own number."""
    model_class, config_class, more = KINDS[request.param]
    torch.manual_seed(1)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    model = model_class(config_class(vocab_size=len(tokenizer), **SIZES, **more, **ends))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand_like(parameter) + float("norm" in name))
    folder = tmp_path_factory.mktemp("student")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(student, tmp_path_factory):
    asked = conversations(["2 + 2 ="], "Think.", 60)
    with closing(load_engine("transformers", path=student, dtype="float32")) as engine:
        held_out = []
        for messages in asked[:8]:
            prompt = engine.prompt_ids(messages)
            ids = [*prompt, *engine.tokenizer.encode("5 + 7 = 12, so 12")]
            flags = [True] * (len(ids) - len(prompt))
            held_out.append(HeldOut(ids, len(prompt), len(ids), {"answer": flags}))
        return reference_of(engine, asked, held_out, tmp_path_factory.mktemp("reference"))


def test_a_gguf_of_it_computes_what_the_checkpoint_computes(student, reference, tmp_path):
    path = tmp_path / "student-F16.gguf"
    convert(student, path)
    found = prove(
        path,
        lambda: load_in_child("llama.cpp", path=path, slots=4, context_tokens=1024),
        reference,
        exact=True,
    )
    assert found.fault is None
    assert found.divergence["all"].top1_share > 0.95


def test_an_onnx_folder_of_it_computes_what_the_checkpoint_computes(student, reference, tmp_path):
    folder = tmp_path / "student-fp32"
    export(student, folder, "fp32")
    found = prove(
        folder,
        lambda: load_in_child("onnxruntime-genai", path=folder, slots=4, context_tokens=1024),
        reference,
        exact=True,
    )
    assert found.fault is None
    assert found.divergence["all"].mean_nats < 1e-4


def test_its_importance_matrix_reaches_every_tensor(student, reference, tmp_path):
    full, small = tmp_path / "student-F16.gguf", tmp_path / "student-IQ4_NL.gguf"
    convert(student, full)
    with closing(load_engine("transformers", path=student, dtype="float32")) as engine:
        sequences = [trace.ids for trace in reference.held_out]
        matrix = imatrix.collect(engine.model, sequences, inspect(full).architecture, "here")
    imatrix.write(matrix, tmp_path / "imatrix.gguf")
    quantize(full, small, Encoding(file_type="IQ4_NL", imatrix=tmp_path / "imatrix.gguf"), 2)
    assert inspect(small).shares["IQ4_NL"] > 0.9
