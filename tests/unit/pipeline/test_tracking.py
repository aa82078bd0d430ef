"""Where a training's numbers go as well: a real TensorBoard file, and what is refused."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.recipe import SftOptions
from pipeline.sft_trainer import build_trainer
from pipeline.tracking import follow, followed, following
from pipeline.training_options import TrainingOptions
from serve.errors import UsageError
from tests.unit.pipeline.tiny import checkpoint, tokenizer
from tests.unit.pipeline.worked import practised_examples

NAMES = ("RETORT_LOGS", "TENSORBOARD_LOGGING_DIR", "TRACKIO_DIR", "WANDB_DIR", "WANDB_PROJECT")


@pytest.fixture(autouse=True)
def untouched_environment(monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_tensorboard_has_every_step(tmp_path):
    follow(("tensorboard",), tmp_path / "logs")
    plan = TrainingOptions(report_to=("tensorboard",))
    options = SftOptions(epochs=1, batch_examples=4, dtype="float32")
    student = checkpoint(tmp_path / "student", 0)
    scratch = tmp_path / "scratch"
    rows = build_trainer(student, tokenizer(), practised_examples(), options, scratch, 1, plan).run(
        None
    )
    written = EventAccumulator(str(tmp_path / "logs" / "tensorboard" / "sft")).Reload()
    losses = written.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3]
    assert [event.value for event in losses] == pytest.approx([r["loss_nats"] for r in rows])


def test_a_loop_of_our_own_is_followed_too(tmp_path):
    follow(("tensorboard",), tmp_path / "logs")
    with following(("tensorboard",), "practice") as tell:
        tell({"train/loss": 0.5}, 1)
        tell({"train/loss": 0.25, "train/beta": 0.0}, 2)
    written = EventAccumulator(str(tmp_path / "logs" / "tensorboard" / "practice")).Reload()
    assert [(e.step, e.value) for e in written.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]
    assert [(e.step, e.value) for e in written.Scalars("train/beta")] == [(2, 0.0)]


def test_a_tracker_that_is_not_installed_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        follow(("wandb",), tmp_path)
    assert str(caught.value) == (
        "training.report_to names wandb, which is not installed\nhint: pip install wandb"
    )


def test_without_trackers_nothing_is_followed(tmp_path):
    follow((), tmp_path)
    assert followed((), "sft") == {"report_to": "none"}
    with following((), "practice") as tell:
        tell({"train/loss": 0.5}, 1)
    assert not list(tmp_path.iterdir())
