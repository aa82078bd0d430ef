"""The recipe's section `training`: what it refuses, what it changes, what it leaves alone."""

import pytest

from pipeline.all import stages
from pipeline.recipe import Recipe
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.run import RunDir
from pipeline.training_options import TrainingOptions
from serve.errors import RecipeError


def smoke(*overrides):
    return load_recipe(find_recipe("smoke"), overrides)


def fingerprints(recipe, tmp_path):
    run = RunDir(tmp_path)
    return {stage.name: run.fingerprint(stage, {}, 1) for stage in stages(recipe)}


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (
            ["training.processes=2"],
            "training: processes 2 need a strategy: ddp, fsdp2 or zero3",
        ),
        (["training.processes=0", "training.strategy=ddp"], "training.processes = 0: "),
        (["training.strategy=fsdp1"], "training.strategy = 'fsdp1': "),
        (['training.report_to=["mlflow"]'], "training.report_to.0 = 'mlflow': "),
        (["training.gpus=2"], "unknown key training.gpus"),
        (
            ["training.processes=2", "training.strategy=ddp", "sft.method=qlora"],
            "sft.method qlora trains in one process: training.strategy none",
        ),
        (
            ["training.processes=3", "training.strategy=ddp"],
            "sft.batch_examples 4 does not divide over 3 processes that read 2 at a time",
        ),
        (
            [
                *("hardware.gpus=8", "hardware.gpu_memory_gib=80", "hardware.gpu_tflops=900"),
                *("hardware.gpu_gb_per_s=3000", "teacher.engine=vllm", "scale.executor=ray"),
                *("teacher.tensor_parallel=2", "scale.gpus_per_actor=1"),
            ],
            "scale.gpus_per_actor 1 is less than the teacher's 2 GPUs",
        ),
    ],
)
def test_what_cannot_be_is_refused(said, fault):
    with pytest.raises(RecipeError) as caught:
        smoke(*said)
    assert str(caught.value).startswith(f"smoke.toml: {fault}")


def test_a_recipe_that_does_not_use_it_says_nothing_of_it():
    recipe = smoke()
    assert "training" not in recipe.model_dump(mode="json")
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    spread = smoke("training.processes=2", "training.strategy=fsdp2")
    assert spread.model_dump(mode="json")["training"]["processes"] == 2


def test_packing_alone_makes_another_student(tmp_path):
    before = fingerprints(smoke(), tmp_path)
    spread = smoke("training.processes=4", "training.strategy=zero3", "training.device_examples=1")
    after = fingerprints(spread, tmp_path)
    changed = {name for name, value in before.items() if after[name] != value}
    assert changed == {"10-bundle", "report"}  # they carry the whole recipe
    packed = fingerprints(smoke("training.packing=true"), tmp_path)
    changed = {name for name, value in before.items() if packed[name] != value}
    assert changed == {"04-sft", "10-bundle", "report"}


@pytest.mark.parametrize(
    ("processes", "device_examples", "expected"),
    [
        (1, None, (16, 1)),
        (2, None, (8, 1)),
        (3, None, (6, 1)),
        (2, 4, (4, 2)),
        (2, 3, (3, 3)),
        (32, None, (1, 1)),
        (2, 64, (8, 1)),
    ],
)
def test_a_batch_is_read_in_shares(processes, device_examples, expected):
    options = TrainingOptions(processes=processes, strategy="ddp", device_examples=device_examples)
    assert options.steps_of(16) == expected
