"""What quantized weights are fitted on: the student in torch, reading its own kept traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.records import Example
from pipeline.store import read_records
from pipeline.supervise import rendered_ids
from serve.hardware import cpu_has_fast_bfloat16


def load_student(checkpoint: Path, fast: bool = True) -> Any:
    """On the CPU, in bfloat16 where that is fast, else in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if fast and cpu_has_fast_bfloat16() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
    return model.eval()


def kept_sequences(checkpoint: Path, tokens: int) -> list[list[int]]:
    """Kept traces as trained on, in the order of their keys, which is as good as chance."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True)
    sequences: list[list[int]] = []
    examples = read_records(checkpoint / "examples.jsonl", Example)
    for example in sorted(examples, key=lambda e: e.key):
        sequences.append(rendered_ids(example, tokenizer))
        if sum(map(len, sequences)) >= tokens:
            break
    return sequences
