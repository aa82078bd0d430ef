"""What training needs is looked for before a run costs anything. The GPUs here are said to be."""

import pytest
import torch

from pipeline import spread
from pipeline.spread import check_strategy
from pipeline.training_options import TrainingOptions
from serve.errors import UsageError

FSDP2 = {"strategy": "fsdp2"}


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(spread, "has_cuda", lambda: True)
    monkeypatch.setattr(spread, "vllm_python", lambda: ("python", {}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("training", "method", "said"),
    [
        (
            TrainingOptions(processes=8, **FSDP2),
            "none",
            "training.processes 8 want a GPU each, this machine has 4\n"
            "hint: training.processes = 4",
        ),
        (
            TrainingOptions(sampler="vllm", sampler_gpus=(2, 4)),
            "aligned",
            "training.sampler_gpus names GPU 4, this machine has 4: 0 to 3",
        ),
    ],
)
def test_gpus_that_are_not_there_are_named(training, method, said):
    with pytest.raises(UsageError) as caught:
        check_strategy(training, method)
    assert str(caught.value) == said


@pytest.mark.usefixtures("four_gpus")
def test_gpus_that_are_there_or_not_asked_for_pass():
    check_strategy(TrainingOptions(processes=4, **FSDP2))
    check_strategy(TrainingOptions(sampler="vllm", sampler_gpus=(2, 3)), "aligned")
    # Without practice, and with practice whose attempts vLLM does not write.
    for method in ("none", "exact"):
        check_strategy(TrainingOptions(sampler="vllm", sampler_gpus=(9,)), method)


def test_processes_on_processors_share_them():
    check_strategy(TrainingOptions(processes=64, **FSDP2))


def test_a_sampler_that_is_not_installed_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="engine vllm needs vLLM, which is not installed"):
        check_strategy(TrainingOptions(sampler="vllm"), "aligned")
    check_strategy(TrainingOptions(sampler="vllm"), "none")
