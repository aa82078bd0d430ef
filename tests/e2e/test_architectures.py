"""Students of other architectures in both formats: biases, norms of q and k, tied and untied heads.

Tiny random weights under the tokenizer and template of the embedded teacher (Qwen2.5), so that what
is tested is how each architecture is converted, rendered and run, not what it knows.
"""

import logging
import shutil
from contextlib import closing

import numpy as np
import pytest
import torch
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline import export as export_stage
from pipeline import quantize as quantize_stage
from pipeline.calibration import calibration_sequences
from pipeline.progress import Progress
from pipeline.recipe import GgufOptions, OnnxOptions
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Example
from pipeline.run import Context
from pipeline.student import gguf_tokenizer
from quant import imatrix, round_onnx
from quant.divergence import HeldOut
from quant.gguf import Encoding, convert, quantize
from quant.gguf_reader import matrices, values_of
from quant.inspect import inspect
from quant.onnx import export
from quant.parity import conversations
from quant.proof import reference_of
from serve.engines import load_engine
from serve.models import resolve_model
from tests.e2e.proving import proof

TEACHER = load_recipe(find_recipe("smoke")).teacher
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
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
    found = proof(path, reference, exact=True)
    assert found.fault is None
    assert found.divergence["all"].top1_share > 0.95


def test_an_onnx_folder_of_it_computes_what_the_checkpoint_computes(student, reference, tmp_path):
    folder = tmp_path / "student-fp32"
    export(student, folder, "fp32")
    found = proof(folder, reference, exact=True)
    assert found.fault is None
    assert found.divergence["all"].mean_nats < 1e-4


@pytest.fixture
def with_examples(student, tmp_path):
    """The checkpoint as the training stage leaves it: with the examples it was trained on."""
    folder = tmp_path / "04-sft"
    shutil.copytree(student, folder)
    turns = ({"role": "system", "content": "Think."},)
    examples = [
        Example(
            key=str(n),
            family="sums",
            prompt=(*turns, {"role": "user", "content": f"{n} + {7 * n} ="}),
            completion=f"{n} + {7 * n} = {8 * n}, so {8 * n}",
        )
        for n in range(40)
    ]
    lines = "".join(example.model_dump_json() + "\n" for example in examples)
    (folder / "examples.jsonl").write_text(lines)
    return folder


CONTEXT = Context(seed=1, progress=Progress(), log=logging.getLogger("test"))


def moments_of(student, names: dict[str, str]) -> dict[str, torch.Tensor]:
    """Second moments of every weight's inputs along the examples it was trained on."""
    with (
        closing(load_engine("transformers", path=student, dtype="float32")) as engine,
        torch.inference_mode(),
        imatrix.inputs_watched(engine.model, names, lambda x: x.T @ x) as watched,
    ):
        for ids in calibration_sequences(student, 1000):
            engine.model(torch.tensor([ids]))
    return {name: watched.sums[watched.same.get(name, name)] for name in names.values()}


def output_error(moments: torch.Tensor, loss) -> float:
    """Squared error of a layer's outputs for the losses (R, C) of its weights."""
    loss = torch.from_numpy(np.ascontiguousarray(loss))
    return float(((loss @ moments) * loss).sum())


def test_gguf_files_rounded_on_its_traces_are_nearer_to_it(with_examples, reference, tmp_path):
    files = {}
    for name, gptq_tokens, bits in (("plain", 0, ()), ("ours", 1000, (6.0,))):
        out = tmp_path / name
        out.mkdir()
        options = GgufOptions(
            types=("F16", "Q4_0"),
            imatrix_tokens=1000,
            gptq_tokens=gptq_tokens,
            bits=bits,
            sensitivity_tokens=64,
        )
        quantize_stage.run(options, {"04-sft": with_examples}, out, CONTEXT)
        files |= {(name, path.stem): path for path in out.glob("student-*.gguf")}
    for key in (("ours", "student-Q4_0"), ("ours", "student-6bpw")):
        assert proof(files[key], reference).fault is None
    assert inspect(files["ours", "student-6bpw"]).bits_per_weight <= 6.0
    bits = [inspect(files[kind, "student-Q4_0"]).bits_per_weight for kind in ("plain", "ours")]
    assert bits[0] == bits[1]
    full, plain, ours = (
        matrices(files[key])
        for key in (("ours", "student-F16"), ("plain", "student-Q4_0"), ("ours", "student-Q4_0"))
    )
    architecture = inspect(files["ours", "student-F16"]).architecture
    with closing(load_engine("transformers", path=with_examples, dtype="float32")) as engine:
        names = imatrix.gguf_names(engine.model, architecture)
    moments = moments_of(with_examples, names)
    errors = [
        sum(
            output_error(moments[name], values_of(full[name]) - values_of(file[name]))
            for name in names.values()
        )
        for file in (plain, ours)
    ]
    # Inputs of random weights hardly correlate, so there is little to gain; other weights' moments
    # would make it worse.
    assert errors[1] < 0.97 * errors[0]


def test_an_onnx_folder_rounded_on_its_traces_is_nearer_to_it(with_examples, reference, tmp_path):
    nodes = {}
    with closing(load_engine("transformers", path=with_examples, dtype="float32")) as engine:
        model = engine.model
        for name, gptq_tokens in (("plain", 0), ("ours", 1000)):
            out = tmp_path / name
            out.mkdir()
            options = OnnxOptions(precisions=("int4",), gptq_tokens=gptq_tokens)
            export_stage.run(options, {"04-sft": with_examples}, out, CONTEXT)
            nodes[name] = round_onnx._nodes(out / "student-int4", model)
        assert proof(tmp_path / "ours/student-int4", reference).fault is None
        moments = moments_of(with_examples, {name: name for name in nodes["ours"]})
        errors = {"plain": 0.0, "ours": 0.0}
        for kind, found in nodes.items():
            for name, node in found.items():
                coded = round_onnx._read(*node.arrays)
                width = coded.codes.shape[1] // coded.scale.shape[1]
                scale, base = (np.repeat(x, width, axis=1) for x in (coded.scale, coded.base))
                exact = [model.get_submodule(m).weight.detach().numpy() for m in node.modules]
                loss = np.concatenate(exact) - (scale * coded.levels[coded.codes] + base)
                errors[kind] += output_error(moments[name], loss)
    assert len(nodes["ours"]) >= 4
    assert errors["ours"] < 0.97 * errors["plain"]


def test_its_importance_matrix_reaches_every_tensor(student, reference, tmp_path):
    full, small = tmp_path / "student-F16.gguf", tmp_path / "student-IQ4_NL.gguf"
    convert(student, full)
    with closing(load_engine("transformers", path=student, dtype="float32")) as engine:
        sequences = [trace.ids for trace in reference.held_out]
        matrix = imatrix.collect(engine.model, sequences, inspect(full).architecture, "here")
    imatrix.write(matrix, tmp_path / "imatrix.gguf")
    quantize(full, small, Encoding(file_type="IQ4_NL", imatrix=tmp_path / "imatrix.gguf"), 2)
    assert inspect(small).shares["IQ4_NL"] > 0.9
