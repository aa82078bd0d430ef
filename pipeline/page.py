"""The report as one self-contained HTML page. Shows what the stages recorded, computes nothing."""

from __future__ import annotations

import html
import json
from typing import Any, NamedTuple

from pipeline import plots
from pipeline.gate_table import gate_cells, reasons
from pipeline.ladder_table import ladder_cells
from pipeline.page_practice import COSTS_NOTE, ledger_cells, practice_section, table
from pipeline.recipe import Recipe
from pipeline.records import Trace
from pipeline.transfer_table import sections
from pipeline.views import view_sentence
from serve.reasoning import split_reasoning

SHOWN_TRACES = 3
BOUNDS = (
    "difference: paired, in points, with the wider of bootstrap and score bounds (Tango), each at "
    "its look's share of 5 %, a file by itself;"
)

STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #8884;vertical-align:top}
th:first-child,td:first-child{text-align:left}
figure{margin:1.5rem 0;background:#fff;border-radius:6px;padding:.5rem;overflow-x:auto}
figure svg{max-width:100%;height:auto;display:block}
pre{white-space:pre-wrap;background:#8881;padding:.6rem;border-radius:6px;overflow-x:auto}
.note{color:#777;font-size:.9rem}.scroll{overflow-x:auto}code{overflow-wrap:anywhere}
"""


class Practice(NamedTuple):
    """What the page says of practice and of costs; `reference` is what artifacts stand beside."""

    reference: str
    ledger: list[dict[str, Any]]
    blocks: list[dict[str, Any]]
    looks: list[dict[str, float]]
    compared: dict[str, Any] | None


def page(
    recipe: Recipe,
    ladder: dict[str, Any],
    gate: dict[str, Any],
    counts: dict[str, Any],
    losses: list[dict[str, float]],
    traces: list[Trace],
    practice: Practice,
    transfer: dict[str, Any] | None,
) -> str:
    """Ladder, artifacts, costs, families, form, transfer, training, practice, traces, recipe."""
    head, cells = ladder_cells(ladder)
    k = ladder["k"]
    parts = [
        f"<h1>Run {html.escape(recipe.run.name)}</h1>",
        f"<p>Teacher <code>{html.escape(recipe.teacher.model)}</code>, student "
        f"<code>{html.escape(recipe.student.model)}</code>. {ladder['items']} evaluation items "
        "that no training problem equals; every rung answered the same ones.</p>",
        "<h2>Ladder</h2>",
        f"<figure>{plots.ladder_svg(ladder)}</figure>",
        table(head, cells),
        "<p class=note>accuracy: greedy, with its 95 % Wilson interval. vs base: paired difference "
        f"in points; p: exact McNemar. pass@1 and pass@{k}: unbiased, {k} samples at temperature "
        f"{recipe.evaluate.temperature} on the first {recipe.evaluate.k_items} items. "
        "no answer: no answer found, or cut at the token limit.</p>",
        "<h2>Artifacts</h2>",
        f"<p>Each file in its own runtime, beside the {practice.reference} on the same items; a "
        f"drop of up to {gate['margin_points']:g} points may be shipped. Chosen: "
        f"<b>{html.escape(gate['chosen']['file'] or 'none')}</b>, "
        f"{html.escape(gate['chosen']['why'])}.</p>",
        table(*gate_cells(gate)),
        "<ul class=note>" + "".join(f"<li>{html.escape(r)}</li>" for r in reasons(gate)) + "</ul>",
        f"<p class=note>bits: of a weight, as the file holds them. KL(student || file) along "
        f"{_divergence_tokens(gate)} tokens of held-out answers; top-1: both prefer one. "
        f"{BOUNDS} flips: wrong to right, right to wrong. tok/s and first: one conversation alone; "
        "RAM: the whole process.</p>",
        "<h2>What it cost</h2>",
        table(*ledger_cells(practice.ledger)),
        f"<p class=note>{COSTS_NOTE} Device: "
        f"{html.escape(practice.ledger[-1]['device'] or 'not recorded')}.</p>",
        "<h2>By family</h2>",
        f"<figure>{plots.families_svg(ladder)}</figure>",
        table(*_family_cells(ladder)),
        "<h2>Form and length</h2>",
        table(*_form_cells(ladder)),
        f"<figure>{plots.lengths_svg(ladder)}</figure>",
        *_transfer(transfer),
        *_training(recipe, counts, losses, practice),
        *_traces(counts, traces),
        "<h2>Recipe</h2>",
        f"<pre>{html.escape(json.dumps(recipe.model_dump(mode='json'), indent=2))}</pre>",
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>Retort: {html.escape(recipe.run.name)}</title><style>{STYLE}</style>"
        + "\n".join(parts)
        + "</html>\n"
    )


def _transfer(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return [
            "<h2>Transfer</h2>",
            "<p>Other suites, other prompt styles and cut reasoning were not asked: "
            "<code>python -m pipeline.transfer --run FOLDER</code>.</p>",
        ]
    parts = ["<h2>Transfer</h2>"]
    for part in sections(found):
        parts.append(f"<h3>{html.escape(part.title)}</h3>")
        parts.append(table(part.head, part.rows))
        parts.append(f"<p class=note>{html.escape(part.note)}</p>")
    return parts


def _training(
    recipe: Recipe,
    counts: dict[str, Any],
    losses: list[dict[str, float]],
    practice: Practice,
) -> list[str]:
    parts = [
        "<h2>Training</h2>",
        f"<p>{html.escape(view_sentence(counts['04-examples']))}</p>",
        f"<p>{counts['04-sft']['examples']} examples, "
        f"{counts['04-sft']['supervised_tokens']} supervised tokens over "
        f"{recipe.sft.epochs} epochs, {counts['04-sft']['dropped_too_long']} dropped as too "
        "long.</p>",
        f"<figure>{plots.loss_svg(losses)}</figure>",
    ]
    if recipe.on_policy.method == "none":
        return parts
    method = counts["05-on-policy"]["method"]
    return [
        *parts,
        f"<h2>Practice: {html.escape(method)}</h2>",
        *practice_section(practice.blocks, practice.looks, practice.compared),
    ]


def _traces(counts: dict[str, Any], traces: list[Trace]) -> list[str]:
    return [
        "<h2>Traces</h2>",
        f"<p>{counts['02-traces']['traces']} traces, "
        f"{counts['02-traces']['completion_tokens']} tokens of the teacher.</p>",
        table(*_curated_cells(counts["03-curated"])),
        *_shown(traces),
    ]


def _divergence_tokens(gate: dict[str, Any]) -> int:
    """How many there were: no more than the held-out answers have."""
    found = (row["proof"]["divergence"] for row in gate["rows"])
    return max((each["all"]["tokens"] for each in found if each), default=0)


def _family_cells(ladder: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    families = sorted({name for row in ladder["rows"] for name in row["families"]})
    rows = []
    for row in ladder["rows"]:
        cells = [row["name"]]
        for family in families:
            part = row["families"].get(family)
            cells.append(
                f"{100 * part['accuracy']:.0f} "
                f"[{100 * part['interval'][0]:.0f}, {100 * part['interval'][1]:.0f}]"
                if part
                else "not scored"
            )
        rows.append(cells)
    return ["rung", *families], rows


def _form_cells(ladder: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = ("format_failures", "truncated", "unclosed_reasoning", "loops", "unscored")
    head = ["rung", "items", *(n.replace("_", " ") for n in names), "mean tokens"]
    rows = [
        [row["name"], str(row["items"]), *(str(row[n]) for n in names), f"{row['mean_tokens']:.1f}"]
        for row in ladder["rows"]
    ]
    return head, rows


def _curated_cells(counts: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    kept, dropped = counts["kept"], counts["dropped"]
    reasons = sorted({reason for by_reason in dropped.values() for reason in by_reason})
    rows = [
        [
            family,
            str(kept.get(family, 0)),
            *(str(dropped.get(family, {}).get(r, 0)) for r in reasons),
        ]
        for family in sorted(kept.keys() | dropped.keys())
    ]
    return ["family", "kept", *(r.replace("_", " ") for r in reasons)], rows


def _shown(traces: list[Trace]) -> list[str]:
    """A few traces, right and wrong, as the teacher wrote them."""
    parts = []
    for passed, title in ((True, "Right"), (False, "Wrong")):
        chosen = [t for t in traces if t.verdict.passed is passed][:SHOWN_TRACES]
        for trace in chosen:
            split = split_reasoning(trace.completion.text)
            parts.append(
                f"<details><summary>{title}: {html.escape(trace.problem.question)}</summary>"
                f"<pre>{html.escape(split.reasoning or split.answer)}</pre>"
                f"<p class=note>reference {html.escape(trace.problem.answer)}, read as "
                f"{html.escape(str(trace.verdict.extracted))}</p></details>"
            )
    return parts
