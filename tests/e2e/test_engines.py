"""The real student in every engine: the promises of the Engine protocol."""

import hashlib
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.student import student_checkpoint
from serve.engines import load_engine
from serve.engines.child import load_in_child
from serve.engines.packed_linear import PackedLinear
from serve.errors import EngineError, UsageError
from serve.messages import Message, Request, Sampling
from serve.models import resolve_model

RECIPE = load_recipe(find_recipe("smoke"))
QUESTIONS = [f"What is {a} plus {a + 3}?" for a in range(24)]


@pytest.fixture(scope="module")
def gguf() -> Path:
    return resolve_model(RECIPE.student.model, RECIPE.student.sha256)


@pytest.fixture(scope="module")
def llama(gguf):
    engine = load_engine("llama.cpp", path=gguf, slots=16, context_tokens=512)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference():
    engine = load_engine(
        "transformers", path=student_checkpoint(RECIPE.student), slots=8, dtype="float32"
    )
    yield engine
    engine.close()


def turns(question: str) -> tuple[Message, ...]:
    return (
        Message(role="system", content="Answer briefly."),
        Message(role="user", content=question),
    )


def requests(temperature: float = 1.0, **options) -> list[Request]:
    return [
        Request(
            key=str(i),
            messages=turns(question),
            sampling=Sampling(temperature=temperature, seed=i, max_tokens=24, **options),
        )
        for i, question in enumerate(QUESTIONS)
    ]


def test_a_completion_depends_on_its_request_alone(llama, gguf):
    """Bit for bit: other company, other order, other slot count, one by one."""
    asked = requests()
    expected = {key: c.ids for key, c in llama.generate(asked)}
    assert len(set(expected.values())) > len(asked) // 2
    for some in (asked[::-1], asked[3:8], asked[11:12]):
        assert {k: c.ids for k, c in llama.generate(some)} == {r.key: expected[r.key] for r in some}
    other = load_engine("llama.cpp", path=gguf, slots=4, context_tokens=512)
    try:
        assert {k: c.ids for k, c in other.generate(asked)} == expected
    finally:
        other.close()


def test_an_opening_is_read_once_and_the_prompt_stays_the_same(llama, monkeypatch):
    messages = turns(QUESTIONS[3])
    cut = llama._prompts.cut
    plain, opened = cut(messages), cut(messages, "What is ")
    assert opened.shared + opened.own == plain.shared + plain.own
    assert len(opened.shared) > len(plain.shared) > 0
    assert cut(messages, "Who was ") == plain
    asked = [r.model_copy(update={"opening": "What is "}) for r in requests()]
    together = {k: c.ids for k, c in llama.generate(asked)}
    assert {k: c.ids for k, c in llama.generate(asked[5:9])} == {
        r.key: together[r.key] for r in asked[5:9]
    }
    decoded, decode = [], llama.model.decode
    monkeypatch.setattr(llama.model, "decode", lambda b: (decoded.append(len(b)), decode(b)))
    one_token = [r.model_copy(update={"sampling": Sampling(max_tokens=1)}) for r in asked]
    assert len(dict(llama.generate(one_token))) == len(asked)
    prompts = [cut(r.messages, "What is ") for r in asked]
    assert sum(decoded) - sum(len(p.own) for p in prompts) in (0, len(opened.shared))


def test_samples_of_one_prompt_share_its_prefill_and_differ(llama):
    asked = [
        Request(
            key=str(seed),
            messages=turns("Tell me something."),
            sampling=Sampling(temperature=1.0, seed=seed, max_tokens=16),
        )
        for seed in range(6)
    ]
    together = {k: c.ids for k, c in llama.generate(asked)}
    alone = {k: c.ids for r in asked for k, c in llama.generate([r])}
    assert together == alone
    assert len(set(together.values())) > 3


def test_a_stream_says_what_generate_says(llama):
    request = requests(temperature=0.0)[2]
    ((_, whole),) = llama.generate([request])
    chunks = list(llama.stream(request))
    assert chunks[-1].finish == whole.finish
    assert sum(c.tokens for c in chunks) == whole.completion_tokens
    streamed = "".join(c.text for c in chunks)
    # One row a step rounds differently from a padded step: the beginning must agree.
    assert streamed[:20] == whole.text[:20]


def test_a_stop_string_ends_the_answer_before_it(llama):
    ((_, cut),) = llama.generate(requests(temperature=0.0, stop=("equation",))[2:3])
    ((_, whole),) = llama.generate(requests(temperature=0.0)[2:3])
    assert "equation" in whole.text
    assert (cut.text, cut.finish) == (whole.text.partition("equation")[0], "stop")


def test_the_token_limit_is_length_and_never_stop(llama):
    answers = dict(llama.generate(requests(temperature=0.0)))
    for completion in answers.values():
        assert (completion.finish == "length") == (completion.completion_tokens == 24)


def test_prompt_ids_are_equal_in_both_runtimes(llama, reference):
    for question in [*QUESTIONS, "Grüße, 東京! <b>x</b>\n\n  spaced   out\t", "a" * 300]:
        assert llama.prompt_ids(turns(question)) == reference.prompt_ids(turns(question))


def test_scores_agree_between_the_runtimes(llama, reference):
    text = "The answer is 2 plus 5, which is 7."
    ours, theirs = (e.score(turns(QUESTIONS[2]), text) for e in (llama, reference))
    assert (ours.ids, ours.byte_offsets) == (theirs.ids, theirs.byte_offsets)
    # The GGUF keeps its Q4_1 weights and quantizes activations; the reference is float32.
    assert np.mean(np.abs(np.subtract(ours.logprobs_nats, theirs.logprobs_nats))) < 0.15
    assert sum(ours.logprobs_nats) < 0


def test_logits_have_a_row_a_token(llama):
    ids = llama.prompt_ids(turns("Hello"))
    logits_TV = llama.logits(ids)
    assert logits_TV.shape == (len(ids), 49_152)


def test_the_reference_repeats_itself_and_obeys_seeds(reference):
    asked = requests()[:8]
    first = {k: c.ids for k, c in reference.generate(asked)}
    assert {k: c.ids for k, c in reference.generate(asked)} == first
    greedy = {k: c.ids for k, c in reference.generate(requests(temperature=0.0)[:8])}
    assert greedy != first


def test_a_prompt_that_does_not_fit_is_refused_by_name(llama):
    long = Request(key="long-one", messages=turns("word " * 600))
    with pytest.raises(EngineError, match=r"does not fit 512 tokens .* request long-one"):
        list(llama.generate([long]))


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(hashlib.sha256(b"x").digest() * 100)
    with pytest.raises(EngineError, match=r"broken\.gguf does not load"):
        load_engine("llama.cpp", path=path)


def test_an_unknown_engine_lists_the_known_ones():
    with pytest.raises(UsageError) as caught:
        load_engine("magic")
    assert (
        caught.value.hint
        == "one of llama.cpp, onnxruntime-genai, onnxruntime, transformers, vllm, http"
    )


def test_rows_that_end_leave_the_block_and_the_others_go_on(reference, monkeypatch):
    rows, forward = [], reference.model.forward

    def counted(**inputs):
        rows.append(len(inputs["input_ids"]))
        return forward(**inputs)

    monkeypatch.setattr(reference.model, "forward", counted)
    asked = [
        r.model_copy(update={"sampling": Sampling(max_tokens=4 + 6 * i)})
        for i, r in enumerate(requests()[:8])
    ]
    answers = dict(reference.generate(asked))
    assert (rows[0], rows[-1]) == (8, 1)
    monkeypatch.undo()
    for request in asked:
        prompt = reference.prompt_ids(request.messages)
        limit = request.sampling.max_tokens
        alone = reference.model.generate(
            torch.tensor([prompt]), max_new_tokens=limit, do_sample=False
        )[0, len(prompt) :].tolist()
        ended = alone[-1] == reference.tokenizer.eos_token_id
        assert list(answers[request.key].ids) == (alone[:-1] if ended else alone)
        assert answers[request.key].finish == ("stop" if ended else "length")


@pytest.mark.parametrize("stop", [(), ("equation",)], ids=["to its end", "to a stop string"])
def test_the_reference_streams_what_it_generates(reference, stop):
    request = requests(temperature=0.0, stop=stop)[2]
    ((_, whole),) = reference.generate([request])
    chunks = list(reference.stream(request))
    assert "".join(c.text for c in chunks) == whole.text
    assert sum(c.tokens for c in chunks) == whole.completion_tokens
    assert chunks[-1].finish == whole.finish == ("stop" if stop else "length")
    assert len(chunks) > 5


def test_a_reader_that_leaves_ends_the_stream_s_work(reference, monkeypatch):
    steps, forward = [], reference.model.forward
    monkeypatch.setattr(
        reference.model, "forward", lambda **inputs: (steps.append(1), forward(**inputs))[1]
    )
    pieces = reference.stream(
        Request(key="left", messages=turns(QUESTIONS[2]), sampling=Sampling(max_tokens=24))
    )
    next(pieces)
    taken = len(steps)
    pieces.close()
    assert len(steps) == taken < 24


def test_no_generation_config_changes_an_answer(tmp_path, reference):
    plain = student_checkpoint(RECIPE.student)
    for file in plain.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((plain / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(
        json.dumps({**config, "do_sample": True, "temperature": 2.0, "repetition_penalty": 3.0})
    )
    asked = requests(temperature=0.0)[:4]
    expected = {k: c.ids for k, c in reference.generate(asked)}
    other = load_engine("transformers", path=tmp_path, slots=8, dtype="float32")
    assert {k: c.ids for k, c in other.generate(asked)} == expected


def test_every_layer_of_a_float32_student_answers_from_packed_weights(reference):
    linear = [m for m in reference.model.modules() if isinstance(m, torch.nn.Linear)]
    assert len(linear) == 30 * 7 + 1
    assert {type(module) for module in linear} == {PackedLinear}


def test_a_child_answers_like_the_engine_itself(llama, gguf):
    child = load_in_child("llama.cpp", path=gguf, slots=16, context_tokens=512)
    try:
        asked = requests()
        answered = {k: c.ids for k, c in child.generate(asked)}
        assert answered == {k: c.ids for k, c in llama.generate(asked)}
        scored = child.score(turns(QUESTIONS[2]), "It is 7.")
        assert scored == llama.score(turns(QUESTIONS[2]), "It is 7.")
    finally:
        child.close()


def test_a_child_streams_piece_by_piece_and_survives_a_caller_that_leaves(llama, gguf):
    child = load_in_child("llama.cpp", path=gguf, slots=16, context_tokens=512)
    try:
        request = requests(temperature=0.0)[2]
        expected = [c.text for c in llama.stream(request)]
        assert len(expected) > 5
        for left in (child.stream(request), child.generate(requests())):
            next(iter(left))
        streamed = child.stream(request)
        assert [c.text for c in streamed] == expected
    finally:
        child.close()


def test_a_crash_in_native_code_ends_the_child_and_names_the_signal(gguf):
    child = load_in_child("llama.cpp", path=gguf, slots=4, context_tokens=512)
    try:
        answers = child.generate(requests())
        next(answers)
        child._child.send_signal(signal.SIGILL)
        with pytest.raises(EngineError, match=r"of engine llama\.cpp:.* ended with signal SIGILL"):
            list(answers)
    finally:
        child.close()


def test_a_child_that_cannot_load_says_why(tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError, match=r"broken\.gguf does not load"):
        load_in_child("llama.cpp", path=path)
