"""SFT speed: ours against plain TRL `SFTTrainer`, same student, same examples, one run.

    python -m benchmarks.sft RUN [--examples 192] [--rounds 3]

Plain: `SFTTrainer` with its default collator, loss and settings, only the batch size, learning
rate and truncation set alike. Both use the precision the hardware has. Each round is a process of
its own, and rounds alternate. Tokens are those of the examples, prompt included, padding not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from pipeline.recipe import Recipe
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.records import Example
from pipeline.store import read_records

VARIANTS = ("plain", "plain, no gradient checkpointing", "ours")


def measure(variant: str, run: Path, count: int) -> dict[str, float]:
    """Train one epoch over `count` examples; seconds, tokens and the final mean loss."""
    recipe = load_recipe(find_recipe("default"))
    if variant == "ours":
        from pipeline.memory import keep_freed_memory, start_again_on_huge_pages

        start_again_on_huge_pages()
        keep_freed_memory()
    from transformers import AutoTokenizer

    from pipeline.student import student_checkpoint
    from pipeline.supervise import rendered_ids

    base = student_checkpoint(recipe.student)
    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = list(read_records(run / "04-sft" / "examples.jsonl", Example))[:count]
    tokens = sum(len(rendered_ids(e, tokenizer)) for e in examples)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = build(variant, base, tokenizer, examples, recipe, Path(scratch))
        started_s = time.monotonic()
        result = trainer.train()
        took_s = time.monotonic() - started_s
    return {"tokens": tokens, "took_s": took_s, "loss_nats": result.training_loss}


def build(
    variant: str, base: Path, tokenizer: Any, examples: list[Example], recipe: Recipe, scratch: Path
) -> Any:
    options = recipe.sft.model_copy(update={"epochs": 1, "checkpoint_steps": 1_000_000})
    if variant == "ours":
        from pipeline.sft_trainer import build_trainer

        return build_trainer(base, tokenizer, examples, options, scratch, 1).trainer
    import torch
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    from pipeline.sft_trainer import as_dataset
    from serve.hardware import has_cuda, has_fast_bfloat16

    arguments: dict[str, Any] = {
        "output_dir": str(scratch),
        "num_train_epochs": 1,
        "per_device_train_batch_size": options.batch_examples,
        "learning_rate": options.learning_rate,
        "max_length": None,
        "bf16": has_fast_bfloat16(),
        "use_cpu": not has_cuda(),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    if "no gradient" in variant:
        arguments["gradient_checkpointing"] = False
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=SFTConfig(**arguments),
        train_dataset=as_dataset(examples),
        processing_class=tokenizer,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sft")
    parser.add_argument("run", type=Path)
    parser.add_argument("--examples", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.run, options.examples)))
        return
    print(describe("torch", "transformers", "trl"))
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    losses: dict[str, float] = {}
    for _ in range(options.rounds):
        for name in VARIANTS:
            command = [sys.executable, "-m", "benchmarks.sft", str(options.run), "--measure", name]
            command += ["--examples", str(options.examples)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures = json.loads(done.stdout.strip().splitlines()[-1])
            rates[name].append(figures["tokens"] / figures["took_s"])
            losses[name] = figures["loss_nats"]
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        print(
            f"{name:34} {medians[name]:7.0f} tok/s, mean loss {losses[name]:.3f}  "
            f"rounds {[round(v) for v in values]}"
        )
    print(f"ratio to plain {medians['ours'] / medians['plain']:.2f}x (target 1.5x)")
    print(describe("torch"))


if __name__ == "__main__":
    main()
