"""The ONNX folders of a real student, in the runtime that ships them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipeline.calibration import calibration_sequences, load_student
from quant.inspect import inspect
from quant.onnx import export
from quant.round_onnx import round_again
from serve.engines.child import load_in_child
from serve.engines.onnx_rows import Graph, RaggedRows
from serve.errors import DataError, EngineError, UsageError
from serve.messages import Message, Request
from tests.e2e.proving import proof, requests

# Lengths of prompt differ with them.
NUMBERS = range(1, 16, 2)


@pytest.fixture(scope="module")
def int8(smoke) -> Path:
    return smoke.root / "07-onnx" / "student-int8"


@pytest.fixture(scope="module")
def engine(int8):
    opened = load_in_child("onnxruntime-genai", path=int8, slots=8, context_tokens=512)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def fp32(smoke, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "student-fp32"
    export(smoke.root / "04-sft", folder, "fp32")
    return folder


def test_the_float_folder_computes_what_the_checkpoint_computes(fp32, reference):
    found = proof(fp32, reference, exact=True)
    assert found.fault is None
    assert found.divergence["all"].mean_nats < 1e-4
    assert found.inspection.bits_per_weight == 32.0


def test_int8_is_near_and_says_what_it_holds(int8, reference):
    found = proof(int8, reference)
    assert found.fault is None
    assert found.divergence["all"].mean_nats < 0.05
    assert found.inspection.types["int8"] > 100
    assert found.inspection.end_tokens == (2,)


@pytest.mark.heavy
def test_int4_rounded_on_kept_traces_is_nearer_than_the_builders_own(smoke, reference, tmp_path):
    folder = tmp_path / "student-int4"
    export(smoke.root / "04-sft", folder, "int4")
    before = proof(folder, reference)
    model = load_student(smoke.root / "04-sft")
    round_again(folder, model, calibration_sequences(smoke.root / "04-sft", 2048))
    after = proof(folder, reference)
    assert after.fault is None
    assert after.divergence["all"].mean_nats < 0.5 * before.divergence["all"].mean_nats
    assert after.inspection == before.inspection


def test_a_stream_says_what_generate_says(engine):
    request = requests(NUMBERS)[2]
    ((_, whole),) = engine.generate([request])
    chunks = list(engine.stream(request))
    assert "".join(c.text for c in chunks) == whole.text
    assert sum(c.tokens for c in chunks) == whole.completion_tokens
    assert chunks[-1].finish == whole.finish
    assert len(chunks) > 5


def test_a_batch_computes_what_the_runtime_computes_for_each_prompt(fp32):
    """Over prompts of several lengths, two more tokens, and rows that left in between.

    In float32: int8 activations round otherwise in larger products.
    """
    engine = load_in_child("onnxruntime-genai", path=fp32, slots=8, context_tokens=512)
    prompts = [engine.prompt_ids(request.messages) for request in requests(NUMBERS)]
    assert len({len(prompt) for prompt in prompts}) > 1
    config = json.loads((fp32 / "genai_config.json").read_text())["model"]["decoder"]
    graph = Graph(fp32 / "model.onnx", config["num_key_value_heads"], config["head_size"])
    rows = RaggedRows(graph, prompts, answer_tokens=4)

    def check() -> None:
        for prompt, logits in zip(prompts, rows.logits_BV, strict=True):
            assert np.abs(engine.logits(prompt)[-1] - logits).max() < 2e-3

    check()
    for token in (30, 31):
        kept = [0, 3, 4, 7] if token == 31 else list(range(8))
        rows.keep(kept)
        prompts = [[*prompts[row], token] for row in kept]
        rows.append([token] * len(kept))
        check()
    engine.close()


def test_a_batch_answers_every_request(engine):
    asked = requests(NUMBERS)
    answers = dict(engine.generate(asked))
    assert sorted(answers) == sorted(request.key for request in asked)
    assert all(answer.completion_tokens > 5 for answer in answers.values())
    assert all(answer.text.startswith("<think>\n") for answer in answers.values())


def test_each_request_keeps_its_own_seed(engine):
    asked = requests(NUMBERS, temperature=1.0)
    first = {k: c.ids for k, c in engine.generate(asked)}
    assert first == {k: c.ids for k, c in engine.generate(asked[::-1])}
    assert len(set(first.values())) == len(asked)


def test_a_stop_string_and_the_token_limit_end_an_answer(engine):
    whole = dict(engine.generate(requests(NUMBERS)))
    assert {c.completion_tokens == 24 for c in whole.values() if c.finish == "length"} == {True}
    cut = dict(engine.generate(requests(NUMBERS, stop=("=",))))
    for key, completion in cut.items():
        assert completion.text == whole[key].text.partition("=")[0]


def test_scores_are_those_of_its_own_logits(engine):
    messages = requests(NUMBERS)[0].messages
    scores = engine.score(messages, "The answer is 8.")
    prompt = engine.prompt_ids(messages)
    logits = engine.logits([*prompt, *scores.ids]).astype(np.float64)
    assert logits.shape == (len(prompt) + len(scores.ids), 49_152)
    rows = logits[len(prompt) - 1 : -1]
    expected = rows[np.arange(len(rows)), scores.ids] - np.log(np.exp(rows).sum(axis=1))
    assert scores.logprobs_nats == pytest.approx(expected, abs=1e-4)
    assert scores.byte_offsets[:3] == (0, 3, 10)


def test_a_prompt_that_does_not_fit_is_refused_by_name(engine):
    long = Request(key="long-one", messages=(Message(role="user", content="word " * 600),))
    with pytest.raises(EngineError, match=r"does not fit 512 tokens .*request long-one"):
        list(engine.generate([long]))


def swapped_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>assisdant"))


def wrong_end_token(folder: Path) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["eos_token_id"] = [0]
    path.write_text(json.dumps(config))


def cut(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def every_weight_lost(folder: Path) -> None:
    path = folder / "model.onnx.data"
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (every_weight_lost, r"divergence: \d+\.\d+ nats from the student, limit 1\.0"),
        (swapped_template, r"parity: conversation 0, token \d+: student"),
        (wrong_end_token, r"parity: token 2 ends the student and not the artifact"),
        (cut, r"inspect: student-int8 is not a whole ONNX model: .* ends at byte \d+ of a file"),
    ],
)
def test_a_damaged_folder_is_refused_by_the_step_that_is_there_for_it(
    int8,
    reference,
    tmp_path,
    damage,
    fault,
):
    folder = tmp_path / int8.name
    shutil.copytree(int8, folder)
    damage(folder)
    assert re.match(fault, proof(folder, reference).fault)


def test_one_scrambled_matrix_of_the_float_folder_is_refused(fp32, reference, tmp_path):
    folder = tmp_path / fp32.name
    shutil.copytree(fp32, folder)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    (tensor,) = (t for t in graph.initializer if "layers.12.mlp.down_proj" in t.name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    shape = (int(place["offset"]), tuple(tensor.dims))
    data = np.memmap(folder / place["location"], np.float32, "r+", *shape)
    data[:] = data[::-1].copy()
    data.flush()
    found = proof(folder, reference, exact=True)
    assert re.match(r"parity: an unquantized file is \d\.\d+ nats from the student", found.fault)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="empty is not a whole ONNX model"):
        inspect((tmp_path / "empty").mkdir() or tmp_path / "empty")
    with pytest.raises(EngineError, match="empty does not load"):
        load_in_child("onnxruntime-genai", path=tmp_path / "empty")
    with pytest.raises(UsageError, match="unknown ONNX precision 'int3'"):
        export(tmp_path, tmp_path / "out", "int3")
    with pytest.raises(EngineError, match="ONNX builder for int8 ended with 1"):
        export(tmp_path / "empty", tmp_path / "out", "int8")
