"""The second exporter's folders, in onnxruntime itself."""

import json
from pathlib import Path

import pytest

from pipeline.examine import engine_for
from pipeline.recipe import find_recipe, load_recipe
from quant import optimum
from quant.optimum import for_older_readers
from quant.proof import prove
from serve.engines.child import load_in_child
from serve.errors import DataError, EngineError
from serve.messages import Message, Request, Sampling

RECIPE = load_recipe(find_recipe("smoke"))


@pytest.fixture(scope="module")
def fp32(smoke, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("optimum") / "student-fp32"
    optimum.export(smoke.root / "04-sft", folder, "fp32")
    return folder


def proof(path: Path, reference, exact: bool = False):
    return prove(
        path,
        lambda: load_in_child(engine_for(path), path=path, slots=4, context_tokens=1024),
        reference,
        exact,
    )


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


def test_a_batch_a_stream_and_a_prompt_alone_say_the_same(fp32):
    requests = [
        Request(
            key=str(n),
            messages=(
                Message(role="system", content=RECIPE.student.system),
                Message(role="user", content=f"State the final answer: {n} + {7 * n} ="),
            ),
            sampling=Sampling(max_tokens=24, temperature=temperature, seed=n),
        )
        for n, temperature in ((1, 0.0), (30, 0.0), (500, 1.0))
    ]
    engine = load_in_child("onnxruntime", path=fp32, slots=8, context_tokens=512)
    together = {key: done.ids for key, done in engine.generate(requests)}
    for request in requests:
        ((_, alone),) = engine.generate([request])
        assert together[request.key] == alone.ids
        chunks = list(engine.stream(request.messages, request.sampling))
        assert "".join(chunk.text for chunk in chunks) == alone.text
    engine.close()


def test_an_older_reader_is_told_the_rotary_base():
    newer = {"a": 1, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}
    assert for_older_readers(newer) == {**newer, "rope_theta": 1e5, "rope_scaling": None}
    scaled = {"rope_parameters": {"rope_theta": 1e5, "rope_type": "linear", "factor": 2.0}}
    assert for_older_readers(scaled)["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert for_older_readers({"rope_theta": 5.0}) == {"rope_theta": 5.0}


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(EngineError, match=r"optimum for fp32 ended with 1: .*no-such-model"):
        optimum.export(checkpoint, tmp_path / "out", "fp32")
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="optimum's environment is not in the cache") as refused:
        optimum.export(checkpoint, tmp_path / "out", "fp32")
    assert refused.value.hint == "run `make optimum`"
