"""The questions of a run's evaluation, in the harness's own environment: no import of ours."""

import json
from pathlib import Path

import datasets


def load(problems: str, **_: object) -> dict[str, datasets.Dataset]:
    """`problems`: a run's `01-problems/eval.jsonl`."""
    rows = [json.loads(line) for line in Path(problems).read_text(encoding="utf-8").splitlines()]
    kept = [{name: row[name] for name in ("question", "answer", "family")} for row in rows]
    return {"test": datasets.Dataset.from_list(kept)}
