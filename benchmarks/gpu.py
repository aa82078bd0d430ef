"""SFT and exact practice on one GPU: ours against plain TRL, same student, same data, one run.

    python -m benchmarks.gpu --student FOLDER --examples FILE --problems FILE [--steps 12]

`traces`: the examples as they are, `--batch` of them a step. `long`: rows of about 2,000 tokens
made by chaining examples, 32 a step, in readings of 8. `exact`: one student teaches another of the
same vocabulary, 64 attempts a step of at most 96 tokens. TRL gets the batch, the learning rate and
the length limits; all else is its default. Each arm is a process of its own and its first two steps
are not counted. MFU: operations of the weights and of causal attention, three passes (Kaplan et al.
2020, section 2.1), over `--tflops` of dense bfloat16; for exact, training and grading alone, over
the whole step, sampling included.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.step_clock import Clock
from pipeline.model_shapes import model_at
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import SftOptions, StudentOptions
from pipeline.records import Example, Problem
from pipeline.store import read_records
from pipeline.training_options import TrainingOptions

LONG_TOKENS, LONG_ROWS, LONG_AT_A_TIME = 2000, 32, 8
ATTEMPTS, ATTEMPT_TOKENS = 64, 96
SYSTEM = "Think in short steps, then give the answer."
# What ours is told in each arm; arms named "plain" get TRL's defaults.
OURS = {
    "traces ours": TrainingOptions(gradient_checkpointing=False),
    "traces ours, layers again": TrainingOptions(gradient_checkpointing=True),
    "long ours": TrainingOptions(gradient_checkpointing=False, device_examples=LONG_AT_A_TIME),
    "long ours, layers again": TrainingOptions(
        gradient_checkpointing=True, device_examples=LONG_AT_A_TIME
    ),
    "long ours, packed": TrainingOptions(
        gradient_checkpointing=False, device_examples=LONG_AT_A_TIME, packing=True
    ),
    "exact ours": TrainingOptions(gradient_checkpointing=False),
}
ARMS = (
    "traces plain",
    "traces ours",
    "traces ours, layers again",
    "long plain",
    "long ours",
    "long ours, layers again",
    "long ours, packed",
    "exact plain",
    "exact ours",
)


def chained(examples: Sequence[Example], tokenizer: Any) -> list[Example]:
    """Rows of at most LONG_TOKENS: one question, then the texts of many examples as its answer."""
    rows: list[Example] = []
    text, tokens = "", 0
    while len(rows) < LONG_ROWS:
        for example in examples:
            part = f"{example.prompt[-1]['content']}\n{example.completion}\n"
            count = len(tokenizer(part)["input_ids"])
            if tokens + count > LONG_TOKENS - 60:
                rows.append(example.model_copy(update={"key": str(len(rows)), "completion": text}))
                text, tokens = "", 0
            text, tokens = text + part, tokens + count
    return rows[:LONG_ROWS]


def sft_arm(arm: str, options: argparse.Namespace, scratch: Path) -> tuple[Any, float, float]:
    """The trainer, tokens a step, and the mean length of a row."""
    from transformers import AutoTokenizer

    from pipeline.sft_trainer import as_dataset, build_trainer
    from pipeline.supervise import rendered_ids

    tokenizer = AutoTokenizer.from_pretrained(options.student)
    examples = list(read_records(options.examples, Example))
    long = arm.startswith("long")
    rows = chained(examples, tokenizer) if long else examples[: options.batch * options.steps]
    batch = LONG_ROWS if long else options.batch
    tokens = sum(len(rendered_ids(row, tokenizer)) for row in rows) / len(rows)
    epochs = options.steps if long else 1
    plan = SftOptions(
        epochs=epochs,
        batch_examples=batch,
        max_tokens=2048 if long else 512,
        checkpoint_steps=1_000_000,
    )
    if arm in OURS:
        folder = Path(options.student)
        trainer = build_trainer(folder, tokenizer, rows, plan, scratch, 1, OURS[arm]).trainer
        return trainer, batch * tokens, tokens
    import torch
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    at_a_time = LONG_AT_A_TIME if long else batch
    config = SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=epochs,
        per_device_train_batch_size=at_a_time,
        gradient_accumulation_steps=batch // at_a_time,
        learning_rate=plan.learning_rate,
        max_length=plan.max_tokens,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.student, dtype=torch.float32),
        args=config,
        train_dataset=as_dataset(rows),
        processing_class=tokenizer,
    )
    return trainer, batch * tokens, tokens


def exact_arm(arm: str, options: argparse.Namespace, scratch: Path) -> Any:
    from pipeline.exact import Exact, Materials, exact_job

    materials = Materials(list(read_records(options.problems, Problem)))
    plan = OnPolicyOptions(
        method="exact",
        blocks=options.steps,
        block_attempts=ATTEMPTS,
        batch_lessons=ATTEMPTS,
        max_tokens=ATTEMPT_TOKENS,
        temperature=0.9,
        checkpoint_blocks=1_000_000,
    )
    student = StudentOptions(model="path:unused", system=SYSTEM)
    folder = Path(options.student)
    job = exact_job(folder, folder, materials, student, plan, scratch, 1)
    training = {"training": OURS["exact ours"]}
    exact = Exact(job.model_copy(update=training), lambda *_: None)
    if arm in OURS:
        return exact.trainer
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer

    prompts = [exact.trainer.train_dataset[i]["prompt"] for i in range(ATTEMPTS * options.steps)]
    del exact
    gc.collect()  # its trainer and its watch know each other
    return DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16),
        args=DistillationConfig(
            output_dir=str(scratch),
            max_steps=options.steps,
            per_device_train_batch_size=ATTEMPTS,
            learning_rate=plan.learning_rate,
            max_completion_length=ATTEMPT_TOKENS,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )


def prompt_tokens(options: argparse.Namespace) -> float:
    """Mean tokens of a question with its system prompt."""
    from transformers import AutoTokenizer

    from pipeline.prompts import student_messages

    tokenizer = AutoTokenizer.from_pretrained(options.student)
    student = StudentOptions(model="path:unused", system=SYSTEM)
    turns = [
        [m.model_dump() for m in student_messages(student, problem.question)]
        for problem in read_records(options.problems, Problem)
    ]
    texts = [tokenizer.apply_chat_template(t, tokenize=False) for t in turns]
    return statistics.mean(len(tokenizer(text)["input_ids"]) for text in texts)


def written(history: Sequence[dict[str, Any]]) -> float:
    """Mean tokens of an attempt, as ours or TRL counts them."""
    ours = [row["attempt_tokens"] / ATTEMPTS for row in history if "attempt_tokens" in row]
    theirs = [row["completions/mean_length"] for row in history if "completions/mean_length" in row]
    return statistics.mean(ours or theirs)


def measure(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    """One arm to its end."""
    import torch

    shape = model_at(f"path:{options.student}").shape
    assert shape is not None
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        if arm.startswith("exact"):
            trainer, passes, a_step, length = exact_arm(arm, options, Path(folder)), 8 / 6, 0.0, 0.0
        else:
            trainer, a_step, length = sft_arm(arm, options, Path(folder))
            passes = 1.0
        trainer.add_callback(clock)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    history = trainer.state.log_history
    losses = [row["loss"] for row in history if "loss" in row]
    if arm.startswith("exact"):
        length = prompt_tokens(options) + written(history)
        a_step = ATTEMPTS * length
    step_s = statistics.median(clock.steps_s[2:])
    attention = shape.layers * shape.heads * shape.head_size * length
    operations = 6 * passes * a_step * (shape.multiplied + attention)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "arm": arm,
        "step_s": round(step_s, 4),
        "steps_s": [round(x, 4) for x in clock.steps_s],
        "tokens_a_step": round(a_step),
        "tokens_per_s": round(a_step / step_s),
        "mfu": round(operations / step_s / (options.tflops * 1e12), 4),
        "peak_gib": round(peak / 2**30, 2),
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--student", required=True, help="a checkpoint folder")
    parser.add_argument("--examples", type=Path, required=True, help="examples.jsonl of a run")
    parser.add_argument("--problems", type=Path, required=True, help="train.jsonl of a run")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tflops", type=float, default=989.0)
    parser.add_argument("--arms", nargs="*", default=ARMS)
    parser.add_argument("--measure", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    import torch
    import transformers
    import trl

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = [f"{m.__name__} {m.__version__}" for m in (torch, transformers, trl)]
    print(f"{device}; {', '.join(versions)}", flush=True)
    for arm in options.arms:
        command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--measure", arm]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{arm}: failed\n{done.stderr[-1500:]}", flush=True)
            continue
        print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
