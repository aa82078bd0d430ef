"""Grades are what scores and logits say, in every engine that gives them; answers go on."""

import math
from contextlib import closing

import numpy as np
import pytest

from serve.engines import kept_states, load_engine
from serve.engines.child import load_in_child
from serve.engines.scoring import AFTER_STOP
from serve.messages import Message, Request, Sampling

MESSAGES = (
    Message(role="system", content="Think in short steps, then give the answer."),
    Message(role="user", content="State the final answer: 12 + 30 - 5 ="),
)
TEXTS = ("12 + 30 = 42\n42 - 5 = 37\nAnswer: 37", "Ünïcödé 漢字 🙂 007", "4")


def engines(smoke):
    yield (
        "llama.cpp",
        load_in_child("llama.cpp", path=smoke.root / "06-gguf" / "student-Q8_0.gguf", slots=4),
    )
    yield "transformers", load_engine("transformers", path=smoke.root / "04-sft", dtype="float32")


@pytest.fixture(scope="module", params=["llama.cpp", "transformers"])
def engine(request, smoke):
    chosen = dict(engines(smoke))
    for name, other in chosen.items():
        if name != request.param:
            other.close()
    with closing(chosen[request.param]) as opened:
        yield opened


def asked(texts=TEXTS):
    return [Request(key=str(i), messages=MESSAGES, begun=t) for i, t in enumerate(texts)]


def test_a_grade_is_the_score_of_the_same_text(engine):
    for text, grade in zip(TEXTS, engine.grade(asked(), top=5), strict=True):
        score = engine.score(MESSAGES, text)
        assert grade.scores.ids == score.ids
        assert grade.scores.byte_offsets == score.byte_offsets
        close = [
            abs(a - b) for a, b in zip(grade.scores.logprobs_nats, score.logprobs_nats, strict=True)
        ]
        # A batch of other size rounds differently (llama.cpp multiplies in 8 bits).
        assert max(close) < 0.35
        assert np.mean(close) < 0.05


def test_rows_are_the_likeliest_tokens_and_the_end(engine):
    text = TEXTS[0]
    (grade,) = engine.grade(asked([text]), top=5)
    ids = [*engine.prompt_ids(MESSAGES), *grade.scores.ids]
    logits_TV = engine.logits(ids)[-len(grade.scores.ids) - 1 :].astype(np.float64)
    logprobs_TV = logits_TV - np.logaddexp.reduce(logits_TV, axis=1, keepdims=True)
    assert len(grade.top_ids) == len(grade.scores.ids) + 1
    for row, best, nats in zip(logprobs_TV, grade.top_ids, grade.top_logprobs_nats, strict=True):
        assert list(nats) == sorted(nats, reverse=True)
        assert nats[0] == pytest.approx(row.max(), abs=0.3)
        assert row[best[0]] == pytest.approx(row.max(), abs=0.3)
        assert sum(math.exp(n) for n in nats) <= 1.0001
    ends = list(engine.end_ids())
    assert grade.end_nats == pytest.approx(np.logaddexp.reduce(logprobs_TV[-1][ends]), abs=0.5)


def test_a_grade_may_stop_after_an_unlikely_token(engine):
    """llama.cpp reads no further than it must; an engine that reads texts whole has all of it."""
    text = "12 + 30 = 42\n" + "42 - 5 = 37\n" * 16
    (whole,) = engine.grade(asked([text]), top=5)
    early = whole.scores.logprobs_nats[:12]
    below = math.exp(min(early)) * 1.5
    stopping = [r.model_copy(update={"stop_below": below}) for r in asked([text, TEXTS[2]])]
    grade, _ = engine.grade(stopping, top=5)
    count = len(grade.scores.ids)
    assert grade.scores.ids == whole.scores.ids[:count]
    assert grade.scores.byte_offsets == whole.scores.byte_offsets[:count]
    assert grade.scores.logprobs_nats == pytest.approx(whole.scores.logprobs_nats[:count], abs=0.35)
    assert grade.text_bytes == len(text.encode())
    if engine.name.startswith("transformers"):
        assert (grade.stopped_at, count) == (None, len(whole.scores.ids))
    else:
        assert early.index(min(early)) + AFTER_STOP < count <= 64 < len(whole.scores.ids)
        assert grade.stopped_at == whole.scores.byte_offsets[count]
        assert len(grade.top_ids) == count
        assert grade.read_tokens < whole.read_tokens


def test_tokens_say_their_bytes(engine):
    pieces = engine.vocabulary()
    for text in TEXTS:
        ids = engine.score(MESSAGES, text).ids
        assert b"".join(pieces[i] or b"" for i in ids) == text.encode()


def test_an_answer_goes_on_where_it_was_begun(engine):
    greedy = Sampling(max_tokens=24)
    ((_, whole),) = engine.generate([Request(key="a", messages=MESSAGES, sampling=greedy)])
    assert len(whole.ids) > 8
    pieces = engine.vocabulary()
    begun = b"".join(pieces[i] or b"" for i in whole.ids[:6]).decode()
    rest = Sampling(max_tokens=len(whole.ids) - 6)
    request = Request(key="b", messages=MESSAGES, sampling=rest, begun=begun)
    ((_, more),) = engine.generate([request])
    assert more.prompt_tokens == whole.prompt_tokens + 6
    assert len(more.ids) > 2
    assert max(behind_nats(engine, begun, more.ids)) < 0.5


def behind_nats(engine, begun, ids):
    """How far each token is behind the likeliest one in its place: near ties fall either way."""
    start = [*engine.prompt_ids(MESSAGES), *engine.score(MESSAGES, begun).ids]
    logits_TV = engine.logits([*start, *ids])[len(start) - 1 : -1].astype(np.float64)
    return [float(row.max() - row[i]) for row, i in zip(logits_TV, ids, strict=True)]


def test_an_answer_goes_on_from_what_was_graded(smoke):
    """The same words as without, twice the same ones; a key that was not graded is read whole."""
    path = smoke.root / "06-gguf" / "student-Q8_0.gguf"
    greedy = Sampling(max_tokens=16)
    going_on = [
        Request(key=key, messages=MESSAGES, begun=begun, sampling=greedy)
        for key, begun in (("0", "12 + 30 = 42\n42"), ("1", TEXTS[1]), ("other", "12 + 30"))
    ]
    with closing(load_in_child("llama.cpp", path=path, slots=4)) as engine:
        alone = dict(engine.generate(going_on))
        found = []
        for _ in range(2):
            engine.grade(asked(), top=5)
            found.append({k: (c.ids, c.prompt_tokens) for k, c in engine.generate(going_on)})
        after = dict(engine.generate(going_on))
        behind = [
            behind_nats(engine, request.begun, found[0][request.key][0]) for request in going_on
        ]
    assert found[0] == found[1]
    assert {k: c.ids for k, c in after.items()} == {k: c.ids for k, c in alone.items()}
    assert found[0]["other"][0] == alone["other"].ids
    for key, (_, prompt_tokens) in found[0].items():
        assert prompt_tokens == alone[key].prompt_tokens
    assert max(map(max, behind)) < 0.5


def test_more_kinds_of_prompts_than_prefixes_are_kept(smoke, monkeypatch, tmp_path):
    """Each is graded after its own prefix, also where that comes from the disk into the place of
    one that others of the same call begin with."""
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path))
    monkeypatch.setattr(kept_states, "WORTH_S", 0.0)
    path = smoke.root / "06-gguf" / "student-Q8_0.gguf"
    leads = [
        Message(role="system", content=f"{word} " * 20) for word in ("Think", "Answer", "Sing")
    ]
    requests = [
        Request(key=str(i), messages=(leads[i % 3], MESSAGES[-1]), begun=TEXTS[0]) for i in range(6)
    ]
    with closing(load_engine("llama.cpp", path=path, slots=8, prefixes=3)) as engine:
        wanted = engine.grade(requests, top=5)
    with closing(load_engine("llama.cpp", path=path, slots=8, prefixes=1)) as engine:
        for found in (engine.grade(requests, top=5), engine.grade(requests, top=5)):
            assert [g.scores for g in found] == [g.scores for g in wanted]
    assert wanted[0].scores != wanted[1].scores != wanted[2].scores


def test_an_answer_at_the_end_of_the_context_is_graded_beside_a_longer_one(smoke):
    path = smoke.root / "06-gguf" / "student-Q8_0.gguf"
    with closing(load_engine("llama.cpp", path=path, slots=4, context_tokens=256)) as engine:
        each = len(engine.score(MESSAGES, " 12" * 10).ids) // 10
        words = (225 - len(engine.prompt_ids(MESSAGES))) // each
        lead = Message(role="system", content=" 12" * words)
        crowded = (lead, MESSAGES[-1])
        room = 255 - len(engine.prompt_ids(crowded))
        texts = [" 12" * (room // each), " 12" * (160 // each)]
        requests = [
            Request(key=text, messages=messages, begun=text)
            for messages, text in zip((crowded, MESSAGES), texts, strict=True)
        ]
        for request, grade in zip(requests, engine.grade(requests, 5), strict=True):
            score = engine.score(request.messages, request.begun)
            assert grade.scores.ids == score.ids
            assert len(grade.top_ids) == len(score.ids) + 1
        assert room - 4 < len(engine.score(crowded, texts[0]).ids) < 64


@pytest.mark.parametrize("name", ["llama.cpp", "transformers"])
def test_kept_prefixes_change_no_number(smoke, name):
    other = (Message(role="system", content="Answer at once."), MESSAGES[-1])
    requests = [
        Request(key=str(i), messages=messages, begun=TEXTS[0])
        for i, messages in enumerate((MESSAGES, other, MESSAGES, other, MESSAGES))
    ]
    path = smoke.root / ("04-sft" if name == "transformers" else "06-gguf/student-Q8_0.gguf")
    found = []
    for prefixes in (1, 2):
        with closing(load_in_child(name, path=path, slots=4, prefixes=prefixes)) as engine:
            found.append([engine.grade([request], top=5)[0] for request in requests])
    assert found[0] == found[1]
    assert found[0][0] == found[0][2] == found[0][4] != found[0][1] == found[0][3]
