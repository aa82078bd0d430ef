"""A student that is to have another's tokens and updates, not only its tokens."""

import pytest

from pipeline.cells import Trained, _matched
from pipeline.recipe import Recipe
from pipeline.recipe_files import find_recipe, load_recipe

LIKE = Trained(
    fingerprint="full",
    examples=20,
    epochs=3,
    supervised_tokens=3600,
    trained_tokens=7200,
    updates=15,
    took_s=60.0,
    mean_answer_tokens=50.0,
    right={"a": True},
    tokens_per_trace=60.0,
    suites={},
)


def matched(examples, tokens, *settings, length=120.0):
    recipe = load_recipe(find_recipe("default"), ("sft.batch_examples=4", *settings))
    made = {"examples": examples, "supervised_tokens": tokens}
    return _matched(recipe, made, length, LIKE)


@pytest.mark.parametrize(
    ("examples", "tokens", "epochs", "batch", "updates"),
    [
        (199, 1200, 3, 40, 15),  # many short ones: a batch of more
        (36, 1190, 3, 8, 15),
        (15, 1160, 3, 3, 15),
        (16, 1160, 3, 4, 12),  # as near as the 18 of a batch of 3
        (50, 300, 12, 50, 12),  # too few of them: more epochs, an update each
        (66, 1200, 3, 14, 15),  # 14 to 16 make as many, 14 with the fullest last batch
        (1, 3600, 3, 1, 3),
    ],
)
def test_epochs_bring_the_tokens_and_the_batch_brings_the_updates(
    examples, tokens, epochs, batch, updates
):
    found = matched(examples, tokens)
    assert (found.sft.epochs, found.sft.batch_examples) == (epochs, batch)
    assert epochs * -(-examples // batch) == updates
    assert found.training.steps_of(batch)[0] <= 4  # as long ones: no more are read at a time
    assert Recipe.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(("length", "at_a_time"), [(120, 4), (60, 8), (40, 10), (10, 40), (999, 1)])
def test_as_many_tokens_are_read_at_a_time_as_before(length, at_a_time):
    """The other student's 20 examples of 120 tokens in parts of 4, these in a batch of 40."""
    assert matched(199, 1200, length=length).training.steps_of(40)[0] == at_a_time


def test_a_batch_divides_over_the_processes_and_their_readings():
    spread = ("training.processes=2", "training.strategy=ddp")
    assert matched(21, 1200, *spread).sft.batch_examples == 6
    assert matched(35, 1200, *spread).sft.batch_examples == 8


def test_the_batch_of_packed_rows_stays():
    found = matched(199, 1200, "training.packing=true")
    assert (found.sft.epochs, found.sft.batch_examples) == (3, 4)
