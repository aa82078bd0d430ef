"""Last stage: one self-contained page, one model card, the chat's catalogue, the terminal's table.

Reads every stage's records; writes `report.html`, `MODEL_CARD.md`, `chat.json` and `ledger.json` in
the run's root. Computes no result of its own: it shows what `ladder.json` and the manifests hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.catalogue import run_catalogue
from pipeline.examine import ON_POLICY_STAGE, reference_name
from pipeline.gate_table import gate_cells, reasons
from pipeline.ladder_table import ladder_cells
from pipeline.ledger import compared, ledger, manifest_of
from pipeline.model_card import model_card
from pipeline.page import SHOWN_TRACES, Practice, page
from pipeline.page_practice import ledger_cells
from pipeline.recipe import Recipe
from pipeline.records import Trace
from pipeline.run import Context
from pipeline.store import read_records, write_file, write_json

STAGE_VERSION = 6
LIBRARIES = ("matplotlib",)
FILES = ("report.html", "MODEL_CARD.md", "chat.json", "ledger.json")
TRANSFER, TRANSFER_SUMMARY = "transfer", "transfer.json"
GATE_FAILED, GATE_INCONCLUSIVE = 7, 9


def run(config: Recipe, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Write the page and the card."""
    ladder = json.loads((inputs["08-evaluate"] / "ladder.json").read_text(encoding="utf-8"))
    counts = {name: _counts(folder) for name, folder in inputs.items()}
    losses = [
        json.loads(line)
        for line in (inputs["04-sft"] / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    traces = _shown(inputs["02-traces"] / "traces.jsonl")
    gate = json.loads((inputs["09-gate"] / "gate.json").read_text(encoding="utf-8"))
    practice = _practice(config, inputs, out)
    write_json(out / "ledger.json", practice.ledger)
    asked = _transfer(inputs, out)
    text = page(config, ladder, gate, counts, losses, traces, practice, asked)
    write_file(out / "report.html", text)
    write_file(out / "MODEL_CARD.md", model_card(config, ladder, gate, counts))
    speakers = run_catalogue(config, inputs, gate["chosen"]["name"])
    write_json(out / "chat.json", {"speakers": speakers})
    return {"rungs": len(ladder["rows"])}


def _shown(path: Path) -> list[Trace]:
    """The first few right and wrong traces; no more of the file is read than that takes."""
    left = {True: SHOWN_TRACES, False: SHOWN_TRACES}
    shown = []
    for trace in read_records(path, Trace):
        passed = trace.verdict.passed
        if passed is not None and left[passed]:
            left[passed] -= 1
            shown.append(trace)
        if not any(left.values()):
            break
    return shown


def _practice(config: Recipe, inputs: Mapping[str, Path], root: Path) -> Practice:
    blocks: list[dict[str, Any]] = []
    looks: list[dict[str, float]] = []
    if ON_POLICY_STAGE in inputs:
        folder = inputs[ON_POLICY_STAGE]
        lines = (folder / "blocks.jsonl").read_text(encoding="utf-8").splitlines()
        blocks = [json.loads(line) for line in lines]
        looks = json.loads((folder / "watch.json").read_text(encoding="utf-8"))
    rows = ledger(config, inputs)
    return Practice(reference_name(inputs), rows, blocks, looks, compared(root))


def _transfer(inputs: Mapping[str, Path], root: Path) -> dict[str, Any] | None:
    """What `python -m pipeline.transfer` found for the run as it is now, if it was asked."""
    try:
        text = (root / TRANSFER / TRANSFER_SUMMARY).read_text(encoding="utf-8")
    except OSError:
        return None
    found: dict[str, Any] = json.loads(text)
    now = manifest_of(inputs["08-evaluate"])["fingerprint"]
    return found if found.get("fingerprint") == now else None


def _counts(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    counts: dict[str, Any] = manifest["counts"]
    return counts


def print_results(root: Path) -> int:
    """Ladder and gate as terminal tables on stdout. Returns 0, 7 (failed) or 9 (inconclusive)."""
    ladder = json.loads((root / "08-evaluate" / "ladder.json").read_text(encoding="utf-8"))
    gate = json.loads((root / "09-gate" / "gate.json").read_text(encoding="utf-8"))
    console = Console(width=None if Console().is_terminal else 130)
    title = f"{root.name}: {ladder['items']} fresh items, greedy, 95 % intervals"
    console.print(_terminal_table(title, *ladder_cells(ladder)))
    reference = gate["reference"]
    title = f"artifacts beside the {reference}, margin {gate['margin_points']:g} points"
    console.print(_terminal_table(title, *gate_cells(gate, brief=True)))
    costs = json.loads((root / "ledger.json").read_text(encoding="utf-8"))
    console.print(_terminal_table("what it cost and gained", *ledger_cells(costs, brief=True)))
    for line in reasons(gate):
        console.print(line, markup=False, highlight=False)
    chosen = gate["chosen"]
    console.print(f"chosen: {chosen['file'] or 'none'}: {chosen['why']}", markup=False)
    if chosen["name"]:
        return 0
    undecided = any(row["verdict"] and row["verdict"]["outcome"] != "fail" for row in gate["rows"])
    return GATE_INCONCLUSIVE if undecided else GATE_FAILED


def _terminal_table(title: str, head: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title)
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table
