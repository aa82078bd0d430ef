"""On-policy steps: ours against TRL's, same models, same prompts, one run.

    python -m benchmarks.on_policy exact RUN [--steps 4] [--rounds 2]
    python -m benchmarks.on_policy span RUN [--steps 4] [--rounds 2] [--attempts 24]

`exact`: method exact against `trl.experimental.gkd` (lambda 1) for one vocabulary: the student is
the recipe's base student, the teacher RUN/04-sft; both write exactly 64 tokens an attempt.
`span`: methods span and aligned against `trl.experimental.gold` with its extended, hybrid loss for
two vocabularies: the student is RUN/04-sft, the teacher the recipe's (GOLD gets it dequantized, in
float32 where bfloat16 is slow, and sees the student's prompt: worked examples are not among its
inputs). Attempts end by themselves. All students then answer the same fresh items. Each measurement
is a process of its own, rounds alternate, a process's first step is not counted. TRL runs without
gradient checkpointing, which would forbid its cache as well. Losses show that all learn; they are
no comparison: GKD divides by the tokens of the data set's answers, which it never reads, and GOLD's
is another divergence.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.step_clock import Clock
from pipeline.memory import keep_freed_memory, start_again_on_huge_pages
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.quiet import quieten
from pipeline.recipe import Recipe, StudentOptions
from pipeline.records import Problem
from pipeline.store import read_records

# What is compared: TRL's first.
PEERS = {"exact": ("gkd", "exact"), "span": ("gold", "span", "aligned")}
OURS = ("exact", "span", "aligned")
# Whose settings TRL's are taken from.
COUNTERPARTS = {"gkd": "exact", "gold": "aligned"}
TARGETS = {"exact": 0.6, "span": 0.5}
ANSWER_TOKENS = {"exact": 64, "span": 96}
# A step, unless asked otherwise. A recipe's block has many more attempts, but GOLD holds all of a
# step's logits in memory, of both models.
ATTEMPTS = {"exact": 8, "span": 24}
EXAM_ITEMS, SEED = 160, 1


def options_for(kind: str, measure: str, steps: int, attempts: int) -> OnPolicyOptions:
    """One update a block, on everything the student wrote; one step more than is counted."""
    return OnPolicyOptions(
        method=COUNTERPARTS.get(measure, measure),
        blocks=steps + 1,
        block_attempts=attempts,
        batch_lessons=attempts,
        max_tokens=ANSWER_TOKENS[kind],
        temperature=0.9,
        learn_from="all",
        passes=1,
        replay=0,
        beta=0.5,
        watch_blocks=0,
        checkpoint_blocks=1_000_000,
    )


def recipe_of(run: Path) -> Recipe:
    """What the run was made from; its models are checked against their hashes again."""
    return Recipe.model_validate_json((run / "recipe.json").read_text(encoding="utf-8"))


def problems_of(run: Path) -> list[Problem]:
    return list(read_records(run / "01-problems" / "train.jsonl", Problem))


def result(
    steps_s: list[float],
    losses: list[float],
    tokens: float,
    right: int = 0,
    phases_s: dict[str, float] | None = None,
) -> str:
    """A line for `compare`; `phases_s` are means over all steps, the first included."""
    figures = {"step_s": statistics.median(steps_s[1:]), "steps_s": steps_s[1:]}
    figures |= {"losses": losses, "tokens": tokens, "right": right}
    return json.dumps(figures | {"phases_s": phases_s or {}})


def trl_settings(options: OnPolicyOptions, scratch: Path) -> dict[str, Any]:
    """What both of TRL's trainers are told; the rest is their default."""
    from serve.hardware import has_cuda, has_fast_bfloat16

    return {
        "output_dir": str(scratch),
        "max_steps": options.blocks,
        "per_device_train_batch_size": options.batch_lessons,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        "lmbda": 1.0,
        "beta": options.divergence_beta,
        "temperature": options.temperature,
        "bf16": has_fast_bfloat16(),
        "use_cpu": not has_cuda(),
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": SEED,
    }


def conversations(run: Path, student: StudentOptions, options: OnPolicyOptions) -> Any:
    """The prompts our side is asked, in its order. TRL wants an answer too and never reads it."""
    from datasets import Dataset

    from pipeline.exact_attempts import Practice

    practice = Practice(problems_of(run), student, options, SEED)
    rows = [practice[i]["prompt"] for i in range(options.blocks * options.block_attempts)]
    said = [{"role": "assistant", "content": "Answer: 0"}]
    return Dataset.from_list([{"messages": [*prompt, *said]} for prompt in rows])


def losses_of(trainer: Any) -> list[float]:
    return [round(row["loss"], 4) for row in trainer.state.log_history if "loss" in row]


def measure_gkd(run: Path, options: OnPolicyOptions, scratch: Path) -> str:
    from transformers import AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from pipeline.student import student_checkpoint

    student = recipe_of(run).student
    base = student_checkpoint(student)
    clock = Clock()
    trainer = GKDTrainer(
        model=str(base),
        teacher_model=str(run / "04-sft"),
        args=GKDConfig(
            **trl_settings(options, scratch),
            max_new_tokens=options.max_tokens,
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=conversations(run, student, options),
        processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=[clock],
    )
    trainer.generation_config.min_new_tokens = options.max_tokens
    trainer.train()
    return result(clock.steps_s, losses_of(trainer), options.block_attempts * options.max_tokens)


def measure_exact(run: Path, options: OnPolicyOptions, scratch: Path) -> str:
    from pipeline.exact import Exact, Materials, exact_job
    from pipeline.student import student_checkpoint

    student = recipe_of(run).student
    base, materials = student_checkpoint(student), Materials(problems_of(run))
    job = exact_job(base, run / "04-sft", materials, student, options, scratch, SEED)
    exact = Exact(job, lambda step, loss: None)
    clock = Clock()
    exact.trainer.add_callback(clock)
    if exact.trainer.sampler is not None:
        exact.trainer.sampler.engine._ends = frozenset()  # every attempt is as long as it may be
    rows = exact.run(None)
    tokens = statistics.mean(row["attempt_tokens"] for row in rows)
    return result(clock.steps_s, [round(row["loss_nats"], 4) for row in rows], tokens)


def measure_gold(run: Path, options: OnPolicyOptions, scratch: Path) -> str:
    from transformers import AutoTokenizer
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    from pipeline.student import student_checkpoint
    from serve.hardware import has_fast_bfloat16

    recipe = recipe_of(run)
    # A GGUF is dequantized once, into the cache folder.
    plain = StudentOptions(model=recipe.teacher.model, sha256=recipe.teacher.sha256, system="")
    teacher = student_checkpoint(plain)
    tokenizer = AutoTokenizer.from_pretrained(run / "04-sft")
    clock = Clock()
    trainer = GOLDTrainer(
        model=str(run / "04-sft"),
        teacher_model=str(teacher),
        args=GOLDConfig(
            **trl_settings(options, scratch),
            max_completion_length=options.max_tokens,
            use_uld_loss=True,
            uld_use_hybrid_loss=True,
            teacher_tokenizer_name_or_path=str(teacher),
            model_init_kwargs={"dtype": "float32"},
            teacher_model_init_kwargs={"dtype": "bfloat16" if has_fast_bfloat16() else "float32"},
        ),
        train_dataset=conversations(run, recipe.student, options),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    written: list[int] = []
    kept = trainer.compute_loss

    def counting(model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
        written.append(int((inputs["labels"] != -100).sum()))
        return kept(model, inputs, *rest, **named)

    trainer.compute_loss = counting
    trainer.train()
    trained = scratch / "student"
    trainer.model.bfloat16().save_pretrained(trained)
    tokenizer.save_pretrained(trained)
    losses = losses_of(trainer)
    del trainer
    right = right_answers(run, trained, scratch)
    return result(clock.steps_s, losses, statistics.mean(written), right)


def measure_ours(run: Path, options: OnPolicyOptions, scratch: Path) -> str:
    from pipeline.attempts import in_practice_order, problems_of_block
    from pipeline.grading import Grading
    from pipeline.progress import Progress
    from pipeline.refiner import Refiner
    from pipeline.run import Context
    from pipeline.sampler import Sampler
    from pipeline.tasks.judge import Judge

    recipe = recipe_of(run)
    ordered = in_practice_order(problems_of(run), SEED)
    sampler = Sampler(run / "04-sft", recipe.student, options.max_tokens)
    steps_s, rows = [], []
    with (
        Judge() as judge,
        Grading(recipe.teacher, options, ordered, scratch) as grading,
    ):
        context = Context(SEED, Progress(), logging.getLogger("benchmark"))
        refiner = Refiner(
            sampler,
            grading,
            judge,
            recipe.teacher,
            recipe.student,
            options,
            [],
            [],
            scratch,
            context,
        )
        for block in range(options.blocks):
            started_s = time.monotonic()
            # One update a block here, so a block is a step.
            rows.append(refiner.step(problems_of_block(ordered, options, block), block))
            steps_s.append(time.monotonic() - started_s)
    trained = scratch / "student"
    sampler.save(trained)
    losses = [round(loss, 4) for row in rows for loss in row["losses_nats"]]
    tokens = statistics.mean(row["attempt_tokens"] for row in rows)
    taken = {phase: round(took_s / options.blocks, 1) for phase, took_s in refiner.took_s.items()}
    return result(steps_s, losses, tokens, right_answers(run, trained, scratch), taken)


def right_answers(run: Path, checkpoint: Path, scratch: Path) -> int:
    """Of the first `EXAM_ITEMS` evaluation items, family by family in turn, greedily."""
    from pipeline.examine import checkpoint_rung, examine
    from pipeline.progress import Progress
    from pipeline.run import Context
    from pipeline.tasks.judge import Judge

    recipe = recipe_of(run)
    options = recipe.evaluate.greedy
    rung = checkpoint_rung(checkpoint, recipe.student, options)
    context = Context(SEED, Progress(), logging.getLogger("benchmark"))
    with Judge() as judge:
        judged = examine(rung, exam_items(run), options, scratch / "exam", judge, context)
    return sum(bool(j.verdict.passed) for j in judged)


def exam_items(run: Path) -> list[Problem]:
    problems = list(read_records(run / "01-problems" / "eval.jsonl", Problem))
    seen: dict[str, int] = {}
    ranked = []
    for problem in problems:
        seen[problem.family] = seen.get(problem.family, 0) + 1
        ranked.append((seen[problem.family], problem))
    return [problem for _, problem in sorted(ranked, key=lambda pair: pair[0])][:EXAM_ITEMS]


MEASURES = {
    "gkd": measure_gkd,
    "exact": measure_exact,
    "gold": measure_gold,
    "span": measure_ours,
    "aligned": measure_ours,
}


def compare(options: argparse.Namespace) -> None:
    """Every round in processes of their own; medians over all counted steps."""
    peers = PEERS[options.kind]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    for _ in range(options.rounds):
        for name in peers:
            command = [sys.executable, "-m", "benchmarks.on_policy", options.kind]
            command += [str(options.run), "--measure", name, "--steps", str(options.steps)]
            command += ["--attempts", str(options.attempts)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    medians = {n: statistics.median(f["step_s"] for f in runs) for n, runs in found.items()}
    for name, runs in found.items():
        rounds = [round(f["step_s"], 2) for f in runs]
        line = f"{name:7} {medians[name]:6.2f} s a step, {runs[-1]['tokens']:.0f} attempt tokens, "
        print(f"{line}rounds {rounds}, losses {runs[-1]['losses']} {runs[-1]['phases_s'] or ''}")
    target = TARGETS[options.kind]
    for name in peers[1:]:
        ratio = medians[name] / medians[peers[0]]
        print(f"{name} takes {ratio:.2f}x of {peers[0]} (target {target}x)")
    if options.kind == "span":
        items = len(exam_items(options.run))
        for name, runs in found.items():
            right = [run["right"] for run in runs]
            print(f"{name:7} {right} of {items} right after {options.steps + 1} steps")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.on_policy")
    parser.add_argument("kind", choices=PEERS)
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--attempts", type=int, help="a step; default: 8, or 24 for span")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quieten()
    options.attempts = options.attempts or ATTEMPTS[options.kind]
    if options.measure is None:
        print(describe("torch", "transformers", "trl"))
        print(f"{options.attempts} attempts a step")
        compare(options)
        print(describe("torch"))
        return
    if options.measure in OURS:
        start_again_on_huge_pages()
        keep_freed_memory()
    chosen = options_for(options.kind, options.measure, options.steps, options.attempts)
    with tempfile.TemporaryDirectory() as scratch:
        print(MEASURES[options.measure](options.run, chosen, Path(scratch)))


if __name__ == "__main__":
    main()
