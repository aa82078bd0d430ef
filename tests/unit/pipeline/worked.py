"""A few sums as examples, and stage 04 over them."""

import json
from pathlib import Path

from pipeline import sft
from pipeline.recipe import SftOptions, StudentOptions
from pipeline.records import Example
from pipeline.run import Context
from pipeline.store import write_records


def practised_examples(count: int = 12) -> list[Example]:
    """Of several lengths: two shares of a batch hold other numbers of tokens."""
    return [
        Example(
            key=str(i),
            family="f",
            prompt=({"role": "user", "content": f"{i} + 1 =" + " " * (i % 5)},),
            completion=f"<think>{i} + 1 = {i + 1}</think>" + "so " * (i % 4) + f"{i + 1}",
        )
        for i in range(count)
    ]


def train_stage(student: Path, out: Path, options: SftOptions, context: Context) -> None:
    """Leaves in `out` what stage 04 leaves."""
    out.mkdir(parents=True, exist_ok=True)
    write_records(out / "given" / "examples.jsonl", practised_examples())
    asked = StudentOptions(model=f"path:{student}", system="s")
    config = (asked, options, *context.training.numbers)
    sft.run(config, {"04-examples": out / "given"}, out, context)


def read_losses(out: Path) -> list[float]:
    lines = (out / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss_nats"] for line in lines]
