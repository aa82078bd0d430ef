"""What quantized weights are fitted on: the student in torch, reading what it writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.records import Example
from pipeline.store import read_records
from pipeline.supervise import rendered_ids
from serve.hardware import cpu_has_fast_bfloat16

OWN_ANSWERS = "own_answers.jsonl"


def load_student(checkpoint: Path, fast: bool = True) -> Any:
    """On the CPU, in bfloat16 where that is fast, else in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if fast and cpu_has_fast_bfloat16() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
    return model.eval()


def calibration_sequences(checkpoint: Path, tokens: int) -> list[list[int]]:
    """Token ids of at least `tokens` in all, where there are so many.

    The student's own attempts where it practised (`own_answers.jsonl`), then the traces it was
    trained on; each in the order of their keys, which is as good as chance.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    sequences: list[list[int]] = []
    for path in (checkpoint / OWN_ANSWERS, checkpoint / "examples.jsonl"):
        examples = read_records(path, Example) if path.exists() else []
        for example in sorted(examples, key=lambda e: e.key):
            if sum(map(len, sequences)) >= tokens:
                return sequences
            sequences.append(rendered_ids(example, tokenizer))
    return sequences
