"""Examples that share rows (`training.packing`) do not see each other; parts of a batch add up."""

import pytest
import torch

from pipeline.recipe import SftOptions
from pipeline.sft_trainer import build_trainer
from pipeline.training_options import TrainingOptions
from serve.hardware import has_cuda
from tests.unit.pipeline.tiny import checkpoint, tokenizer
from tests.unit.pipeline.worked import practised_examples

OPTIONS = SftOptions(epochs=1, batch_examples=12, max_tokens=160, dtype="float32")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("student"), 0)


def trained(student, scratch, plan):
    torch.manual_seed(0)
    made = build_trainer(student, tokenizer(), practised_examples(), OPTIONS, scratch, 1, plan)
    rows = made.run(None)
    return made, rows


def test_packed_rows_are_fewer_and_their_loss_is_that_of_the_examples(student, tmp_path):
    _, apart = trained(student, tmp_path / "a", TrainingOptions())
    packed, together = trained(student, tmp_path / "b", TrainingOptions(packing=True))
    lengths = [len(ids) for ids in packed.trainer.train_dataset["input_ids"]]
    assert 2 <= len(lengths) < 12
    assert max(lengths) <= 160
    assert sum(lengths) > 2 * 160 * 0.6
    assert len(apart) == len(together) == packed.planned_steps() == 1
    assert together[0]["loss_nats"] == pytest.approx(apart[0]["loss_nats"], rel=1e-5)


def test_a_batch_read_in_parts_makes_the_update_of_the_whole(student, tmp_path):
    whole, once = trained(student, tmp_path / "a", TrainingOptions())
    plan = TrainingOptions(device_examples=4)
    parts, thrice = trained(student, tmp_path / "b", plan)
    assert parts.trainer._library_path is has_cuda()
    assert parts.trainer.args.train_batch_size == 4
    assert len(once) == len(thrice) == 1
    assert thrice[0]["loss_nats"] == pytest.approx(once[0]["loss_nats"], rel=1e-5)
    found = dict(parts.trainer.model.named_parameters())
    for name, weights in whole.trainer.model.named_parameters():
        torch.testing.assert_close(found[name], weights, rtol=1e-4, atol=1e-6, msg=name)


def test_the_recipe_says_where_rows_end(student, tmp_path):
    longest = max(len(tokenizer()(e.completion)["input_ids"]) for e in practised_examples())
    assert longest < OPTIONS.max_tokens  # nothing is cut: longer examples were left out before
    packed = build_trainer(
        student,
        tokenizer(),
        practised_examples(),
        OPTIONS,
        tmp_path,
        1,
        TrainingOptions(packing=True, device_examples=1),
    ).trainer
    assert packed.args.max_length == 160
    assert (packed.args.per_device_train_batch_size, packed.args.gradient_accumulation_steps) == (
        1,
        12,
    )
