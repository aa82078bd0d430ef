"""A student that is to have another's tokens and updates, not only its tokens."""

import pytest

from pipeline.cells import Trained, _matched
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


def matched(examples, tokens, *settings):
    recipe = load_recipe(find_recipe("default"), ("sft.batch_examples=4", *settings))
    made = {"examples": examples, "supervised_tokens": tokens}
    sft = _matched(recipe, made, LIKE).sft
    return sft.epochs, sft.batch_examples


@pytest.mark.parametrize(
    ("examples", "tokens", "epochs", "batch", "updates"),
    [
        (199, 1200, 3, 40, 15),  # many short ones: a batch of more
        (36, 1190, 3, 8, 15),
        (16, 1160, 3, 4, 12),  # whole batches: the nearest number of updates
        (50, 300, 12, 50, 12),  # too few of them: more epochs, one update each
        (1, 3600, 3, 1, 3),
    ],
)
def test_epochs_bring_the_tokens_and_the_batch_brings_the_updates(
    examples, tokens, epochs, batch, updates
):
    assert matched(examples, tokens) == (epochs, batch)
    assert epochs * -(-examples // batch) == updates


def test_a_batch_divides_over_the_processes():
    spread = ("training.processes=2", "training.strategy=ddp")
    assert matched(21, 1200, *spread) == (3, 6)


def test_packed_rows_are_as_long_as_each_other_already():
    assert matched(199, 1200, "training.packing=true") == (3, 4)
