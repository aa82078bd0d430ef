"""Two real children as one engine."""

from contextlib import closing

import pytest

from pipeline.recipe_files import find_recipe, load_recipe
from serve.engines.child import ChildEngine, load_in_child
from serve.engines.copies import Copies
from serve.engines.vllm_process import _gpus_of_copies
from serve.errors import EngineError, UsageError
from serve.messages import Message, Request, Sampling
from serve.models import resolve_model

RECIPE = load_recipe(find_recipe("smoke"))
ASKED = [
    Request(
        key=str(a),
        messages=(Message(role="user", content=f"What is {a} plus {a + 3}?"),),
        sampling=Sampling(temperature=1.0, seed=a, max_tokens=16),
        begun="It is" if a % 2 else "",
    )
    for a in range(9)
]


def options():
    path = resolve_model(RECIPE.student.model, RECIPE.student.sha256)
    return {"path": path, "slots": 4, "context_tokens": 256, "threads": 1}


@pytest.fixture
def copies():
    children = [ChildEngine("llama.cpp", options()) for _ in range(2)]
    with closing(Copies([child.ready() for child in children])) as engine:
        engine.children = children
        yield engine


@pytest.fixture(scope="module")
def alone():
    with closing(load_in_child("llama.cpp", **options())) as engine:
        yield dict(engine.generate(ASKED)), engine.grade(ASKED, 3)


def test_two_copies_say_what_one_says(copies, alone):
    answers, grades = alone
    found = dict(copies.generate(ASKED))
    assert {k: c.ids for k, c in found.items()} == {k: c.ids for k, c in answers.items()}
    for one, two in zip(grades, copies.grade(ASKED, 3), strict=True):
        assert one.scores.ids == two.scores.ids
        assert one.scores.logprobs_nats == pytest.approx(two.scores.logprobs_nats, abs=0.4)
    assert (copies.batch_invariant, copies.block) == (True, 1)


def test_whoever_leaves_early_may_ask_again(copies, alone):
    left = copies.generate(ASKED)
    next(left)
    left.close()
    found = dict(copies.generate(ASKED))
    assert {k: c.ids for k, c in found.items()} == {k: c.ids for k, c in alone[0].items()}


def test_a_copy_that_dies_ends_the_answer_with_its_reason(copies):
    copies.children[1]._child.kill()
    with pytest.raises(EngineError, match="ended with signal SIGKILL"):
        list(copies.generate(ASKED))


def test_copies_share_out_the_gpus_that_are_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert _gpus_of_copies(1, 1) == [{}]
    assert _gpus_of_copies(2, 2) == [
        {"CUDA_VISIBLE_DEVICES": "4,5"},
        {"CUDA_VISIBLE_DEVICES": "6,7"},
    ]
    with pytest.raises(UsageError, match=r"8 GPUs are wanted: CUDA_VISIBLE_DEVICES names 4"):
        _gpus_of_copies(2, 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _gpus_of_copies(1, 2) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
