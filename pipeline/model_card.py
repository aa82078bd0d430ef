"""The student's model card: what it is, what it was trained on, what was measured."""

from __future__ import annotations

from typing import Any

from pipeline.examine import ON_POLICY_STAGE, SFT_STAGE
from pipeline.gate_table import gate_cells
from pipeline.ladder_table import ladder_cells
from pipeline.recipe import Recipe
from serve.reasoning import FORMS


def model_card(
    recipe: Recipe, ladder: dict[str, Any], gate: dict[str, Any], counts: dict[str, Any]
) -> str:
    """Markdown with the front matter that model hubs read."""
    families = ", ".join(sorted(counts["01-problems"]["train"]))
    kept = sum(counts["03-curated"]["kept"].values())
    beside = counts["04-examples"].get("general", 0)
    general = f" and {beside} general answers" if beside else ""
    tags = FORMS[recipe.student.tags]
    practised = counts.get(ON_POLICY_STAGE)
    practice = (
        f"\n- **Practice**: {practised['attempts']:,} attempts of its own, graded by the teacher"
        f" ({practised['method']})."
        if practised
        else ""
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [distillation, reasoning, gguf]
---

# {recipe.run.name}

A student distilled by Retort. It thinks inside `{tags.opens}…{tags.closes}`, then writes
`Answer: …`.

- **Teacher**: `{recipe.teacher.model}`
- **Base student**: `{recipe.student.model}`
- **Families**: {families}
- **Training**: {recipe.sft.method} fine-tuning on {counts[SFT_STAGE]["examples"]} examples,
  made of {counts["04-examples"]["traces"]} traces{general} ({kept} kept of
  {counts["02-traces"]["traces"]}), {recipe.sft.epochs} epochs, learning rate
  {recipe.sft.learning_rate:g}, seed {recipe.run.seed}.{practice}
- **System prompt**: `{recipe.asked_student.system}`

## Measured

{ladder["items"]} evaluation items that no training problem equals; the same for every row. Accuracy
is greedy, with a 95 % Wilson interval; *vs base* is the paired difference in points with exact
McNemar p; pass@k is unbiased.

{markdown_table(*ladder_cells(ladder))}

## Artifacts

Each file in its own runtime beside the unquantized student; a drop of up to
{gate["margin_points"]:g} points may be shipped. Chosen: {gate["chosen"]["file"] or "none"},
{gate["chosen"]["why"]}.

{markdown_table(*gate_cells(gate))}

## Limits

Measured on the families above only, in one prompt style. Nothing here says how it does elsewhere.
The licences of teacher and base student apply to this student.
"""


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
