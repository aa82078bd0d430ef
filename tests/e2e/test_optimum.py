"""The second exporter's folders, in onnxruntime itself."""

import json
from pathlib import Path

import pytest

from pipeline.examine import engine_for
from quant import optimum
from quant.optimum import for_older_readers
from serve.engines import onnx_plain
from serve.engines.child import load_in_child
from serve.engines.onnx_plain import PlainGraph, PlainRows
from serve.engines.onnx_rows import open_session
from serve.errors import DataError, EngineError
from tests.e2e.proving import proof, requests

ASKED = [*requests((1, 30, 7000)), *requests((500,), temperature=1.0)]


@pytest.fixture(scope="module")
def fp32(smoke, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("optimum") / "student-fp32"
    optimum.export(smoke.root / "04-sft", folder, "fp32")
    return folder


def test_the_float_folder_computes_what_the_checkpoint_computes(fp32, reference):
    assert engine_for(fp32) == "onnxruntime"
    found = proof(fp32, reference, exact=True)
    assert found.fault is None
    assert found.divergence["all"].mean_nats < 1e-4
    assert (found.inspection.blocks, found.inspection.end_tokens) == (30, (2,))


def test_int8_is_near_and_says_what_it_holds(smoke, reference, tmp_path):
    folder = tmp_path / "student-int8"
    optimum.export(smoke.root / "04-sft", folder, "int8")
    found = proof(folder, reference)
    assert found.fault is None
    assert found.divergence["all"].mean_nats < 0.05
    assert found.inspection.types["int8"] > 200


@pytest.fixture(scope="module")
def engine(fp32):
    opened = load_in_child("onnxruntime", path=fp32, slots=8, context_tokens=512)
    yield opened
    opened.close()


def test_a_stream_says_what_generate_says(engine):
    for request in ASKED:
        ((_, whole),) = engine.generate([request])
        chunks = list(engine.stream(request))
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert whole.completion_tokens > 5


def test_a_batch_computes_what_each_prompt_gets_alone(fp32, engine, monkeypatch):
    """Read in parts, two more tokens, and a row that left in between."""
    monkeypatch.setattr(onnx_plain, "READ_TOKENS", 120)
    prompts = [engine.prompt_ids(request.messages) for request in ASKED]
    assert len({len(prompt) for prompt in prompts}) > 1
    rows = PlainRows(PlainGraph(open_session(fp32 / "model.onnx")), prompts)

    def check() -> None:
        for prompt, logits in zip(prompts, rows.logits_BV, strict=True):
            assert engine.logits(prompt)[-1] == pytest.approx(logits, abs=2e-3)

    check()
    for token in (30, 31):
        kept = [0, 1, 3] if token == 31 else [0, 1, 2, 3]
        rows.keep(kept)
        prompts = [[*prompts[row], token] for row in kept]
        rows.append([token] * len(kept))
        check()
    assert len(dict(engine.generate(ASKED))) == 4


def test_an_older_reader_is_told_the_rotary_base():
    newer = {"a": 1, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}
    assert for_older_readers(newer) == {**newer, "rope_theta": 1e5, "rope_scaling": None}
    scaled = {"rope_parameters": {"rope_theta": 1e5, "rope_type": "linear", "factor": 2.0}}
    assert for_older_readers(scaled)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert for_older_readers({"rope_theta": 5.0}) == {"rope_theta": 5.0}
    partial = {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}
    assert for_older_readers(partial)["partial_rotary_factor"] == 0.5
    with pytest.raises(DataError, match="rope_parameters without rope_theta"):
        for_older_readers({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})


def test_the_pin_is_the_one_that_names_the_environment():
    pins = (Path(__file__).parents[2] / "optimum.txt").read_text().splitlines()
    assert f"optimum-onnx=={optimum.RELEASE}" in pins


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(EngineError, match=r"^optimum for fp32 ended with 1: .*no-such-model"):
        optimum.export(checkpoint, tmp_path / "out", "fp32")
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="optimum's environment is not in the cache") as refused:
        optimum.export(checkpoint, tmp_path / "out", "fp32")
    assert refused.value.hint == "run `make optimum`"
