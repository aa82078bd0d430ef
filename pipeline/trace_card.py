"""The dataset card of exported traces: what `datasets` reads at its head, then what people read."""

from __future__ import annotations

from pydantic import Field

from pipeline.model_card import markdown_table
from pipeline.trace_rows import COLUMNS
from serve.messages import Record

FORMAT_VERSION = 1

# Hubs know these licences by name; others are said in words.
HUB_LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "openrail", "gemma"}


class Shard(Record):
    """`size_bytes` is of the file as it stands."""

    name: str = Field(pattern=r"^traces-\d{5}-of-\d{5}\.(parquet|jsonl)$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)
    traces: int = Field(ge=0)


class Shards(Record):
    """`shards.json`: what an export consists of, and where it comes from."""

    format: int = Field(FORMAT_VERSION, ge=1, le=FORMAT_VERSION, description="of this layout")
    retort: str = Field(description="version that exported")
    license: str = Field(description="of the teacher")
    traces: int = Field(ge=0)
    models: dict[str, int] = Field(description="traces by what answered")
    verdicts: dict[str, int] = Field(description="traces by the verdict's reason")
    families: dict[str, int] = Field(description="traces by family")
    shards: tuple[Shard, ...] = Field(min_length=1)


def trace_card(about: Shards, name: str, pattern: str) -> str:
    """`pattern` matches the names of all shards; of several models one licence says too little."""
    known = about.license.lower() in HUB_LICENSES and len(about.models) == 1
    licence = about.license.lower() if known else "other"
    return f"""---
license: {licence}
task_categories: [text-generation]
tags: [reasoning, distillation, synthetic]
configs:
- config_name: default
  data_files:
  - split: train
    path: "{pattern}"
dataset_info:
  features:
{_features()}
---

# Reasoning traces of {name}

{about.traces:,} worked answers of a teacher model, each with the problem and a verdict, right and
wrong ones alike (`passed`; null: it could not be judged). Collected by Retort {about.retort}.

```python
from datasets import load_dataset

traces = load_dataset("FOLDER", split="train").filter(lambda row: row["passed"])
```

{_table("Teacher", about.models)}

{_table("Verdict", about.verdicts)}

{_table("Family", about.families)}

- **Licence of the teacher**: {about.license}. It, those of other models in the table and those of
  the problems apply to what a model learns from these traces.
- **Provenance**: `model` says which weights answered in which runtime, `prompt_sha256` which prompt
  was before the question, `verifier` who judged and in which version; `key` is the sha256 of all
  that determines an answer. `entry` is what the verifier needs, as JSON.
- **Integrity**: `shards.json` lists every shard with its sha256. `python -m pipeline.traces import
  FOLDER RUN` refuses shards that differ.
"""


def _features() -> str:
    lines = []
    for name, kind in COLUMNS.items():
        dtype = "list: int64" if kind == "list" else f"dtype: {kind.rstrip('?')}"
        lines += [f"  - name: {name}", f"    {dtype}"]
    return "\n".join(lines)


def _table(head: str, counts: dict[str, int]) -> str:
    return markdown_table([head, "traces"], [[f"`{k}`", f"{n:,}"] for k, n in counts.items()])
