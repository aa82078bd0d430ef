"""Training in processes of its own, by `accelerate launch`; their steps and errors come here.

    [training]
    processes = 8
    strategy = "fsdp2"

The processes are `pipeline/training_process.py`, one a GPU, or a share of this machine's processors
over gloo. They read a job from a file and tell their steps on their standard output, a JSON line
each; they end when this process does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import SftOptions, StudentOptions
from pipeline.store import write_file, write_json
from pipeline.training_options import TrainingOptions
from serve import errors
from serve.engines.child import die_with_parent
from serve.engines.vllm_process import vllm_python
from serve.errors import RetortError, UsageError
from serve.hardware import cores, has_cuda
from serve.messages import Record

# The launcher gives its processes thirty.
ENDS_WITHIN_S = 40.0
LAST_WORDS_CHARACTERS, LOGGED_CHARACTERS = 400, 20_000
OnStep = Callable[[int, float], None]
log = logging.getLogger("retort")


class Job(Record):
    """What every process of a training reads. Folders are whole paths."""

    base: Path
    scratch: Path
    out: Path
    seed: int
    training: TrainingOptions
    resume: Path | None


class SftJob(Job):
    """Learn `examples`."""

    examples: Path
    options: SftOptions


class ExactJob(Job):
    """Practise on `problems` under a teacher of the same vocabulary."""

    teacher: Path
    problems: Path
    held_out: Path
    examples: Path
    student: StudentOptions
    options: OnPolicyOptions


def train_spread(job: Job, on_step: OnStep) -> list[dict[str, Any]]:
    """Do `job` in `job.training.processes` processes; its rows, a step each.

    Raises what a process raised, and RetortError for one that ended without a word.
    """
    job_path, plan_path = job.scratch / "job.json", job.scratch / "accelerate.json"
    write_file(job_path, job.model_dump_json())
    write_json(job.scratch / ZERO3, ZERO3_CONFIG)
    write_json(plan_path, launch_plan(job.training, job.scratch))
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(plan_path)),
        *("--module", "pipeline.training_process", type(job).__name__, str(job_path)),
    ]
    with tempfile.TemporaryFile() as words:
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            encoding="utf-8",
            env={**os.environ, **_environment(job.training)},
            start_new_session=True,  # an interrupt is this process's to hand on
            preexec_fn=die_with_parent,
        )
        try:
            rows = _listen(launcher, on_step)
            if launcher.wait() or rows is None:
                raise RetortError(
                    f"training over {job.training.processes} processes ended with exit code "
                    f"{launcher.returncode}{_last_words(words)}",
                    hint="the same command goes on from its last checkpoint",
                )
            return rows
        finally:
            _end(launcher)


def check_strategy(training: TrainingOptions, method: str = "none") -> None:
    """Before anything is paid for: what training and practice by `method` need is here.

    Raises UsageError for what is not installed, and for GPUs that are not there.
    """
    if training.strategy == "zero3" and find_spec("deepspeed") is None:
        raise UsageError(
            "training.strategy zero3 needs DeepSpeed, which is not installed",
            hint="make deepspeed",
        )
    sampled = training.sampler == "vllm" and method not in ("none", "exact")
    if sampled:
        vllm_python()
    if (sampled or training.processes > 1) and has_cuda():
        _check_gpus(training, sampled)


def _check_gpus(training: TrainingOptions, sampled: bool) -> None:
    import torch

    here = torch.cuda.device_count()
    if training.processes > here:
        raise UsageError(
            f"training.processes {training.processes} want a GPU each, this machine has {here}",
            hint=f"training.processes = {here}",
        )
    if sampled and max(training.sampler_gpus, default=0) >= here:
        raise UsageError(
            f"training.sampler_gpus names GPU {max(training.sampler_gpus)}, this machine has "
            f"{here}: 0 to {here - 1}"
        )


def launch_plan(training: TrainingOptions, folder: Path) -> dict[str, Any]:
    """accelerate's config for a strategy (JSON is YAML as well); DeepSpeed's lies in `folder`.

    The precision is the trainer's to say, and where layers are computed again.
    """
    plan: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "num_machines": 1,
        "num_processes": training.processes,
        "main_process_port": 0,
    }
    if training.strategy == "zero3":
        config = {"deepspeed_config_file": str(folder / ZERO3), "zero3_init_flag": False}
        return plan | {"distributed_type": "DEEPSPEED", "deepspeed_config": config}
    return plan | {"mixed_precision": "no"} | STRATEGIES[training.strategy]


# As accelerate's config files name them.
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"distributed_type": "MULTI_GPU"},
    "fsdp2": {
        "distributed_type": "FSDP",
        "fsdp_config": {
            "fsdp_version": 2,
            "fsdp_reshard_after_forward": True,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_activation_checkpointing": False,
            "fsdp_offload_params": False,
        },
    },
}
ZERO3 = "deepspeed.json"
ZERO3_CONFIG = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": False,
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage3_param_persistence_threshold": "auto",
    },
}


def _environment(training: TrainingOptions) -> dict[str, str]:
    """Processors are shared out; a GPU's process keeps what it is given."""
    if has_cuda():
        return {}
    threads = max(1, cores() // training.processes)
    return {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}


def _listen(launcher: subprocess.Popen[str], on_step: OnStep) -> list[dict[str, Any]] | None:
    """Steps until the last; the rows of a training that came to its end."""
    assert launcher.stdout is not None
    rows = None
    for line in launcher.stdout:
        if not line.startswith("{"):  # a library's greeting, before the process is ours
            log.info("training process: %s", line.rstrip())
            continue
        said = json.loads(line)
        if "error" in said:
            kind: type[RetortError] = getattr(errors, said["error"])
            raise kind(said["message"], hint=said["hint"])
        if "rows" in said:
            rows = said["rows"]
        else:
            on_step(said["step"], said["loss"])
    return rows


def _end(launcher: subprocess.Popen[str]) -> None:
    """The launcher ends its processes; they end with it, should it not live to do so."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if launcher.poll() is None:
            os.killpg(launcher.pid, number)
            try:
                launcher.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                continue
    if launcher.stdout is not None:
        launcher.stdout.close()


def _last_words(words: Any) -> str:
    """The last error that a training process printed; all of it goes to the run's log."""
    words.seek(0)
    text = words.read().decode("utf-8", "replace")
    log.error("training processes said:\n%s", text[-LOGGED_CHARACTERS:])
    ranks = [line.partition("]: ") for line in text.splitlines() if line.startswith("[rank")]
    said = [words for _, _, words in ranks if "Error: " in words]
    return f": {said[-1].strip()[:LAST_WORDS_CHARACTERS]}" if said else ""
