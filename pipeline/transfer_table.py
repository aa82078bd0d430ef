"""Transfer as people read it: the same tables in terminal, Markdown and page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.diversity import collapse_sentence
from pipeline.forced import SHARES, SWAPPED, WHOLE, name_of


class Section(NamedTuple):
    title: str
    note: str
    head: list[str]
    rows: list[list[str]]


def sections(found: dict[str, Any]) -> list[Section]:
    """Tables of `transfer.json`; those that nobody asked for are left out."""
    parts = [
        _suites(found),
        _families(found),
        _styles(found["rungs"]),
        _forced(found["rungs"]),
        _likeness(found["rungs"]),
        _lengths(found["rungs"]),
        _samples(found),
        _contamination(found["contamination"]),
    ]
    return [part for part in parts if part.rows]


def text_of(found: dict[str, Any]) -> str:
    """Markdown."""
    blocks = []
    for part in sections(found):
        lines = [_line(part.head), _line(["---"] * len(part.head)), *map(_line, part.rows)]
        blocks.append(f"## {part.title}\n\n" + "\n".join(lines) + f"\n\n{part.note}\n")
    return "\n".join(blocks)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _suites(found: dict[str, Any]) -> Section:
    suites = found["suites"]
    rows = [[rung, *(_suite_cell(suites[s][rung]) for s in suites)] for rung in found["rungs"]]
    return Section(
        "Suites",
        "Right, %, with 95 % Wilson intervals, and the share of the teacher's accuracy.",
        ["rung", *suites],
        rows,
    )


def _families(found: dict[str, Any]) -> Section:
    rows = []
    for suite, by_rung in found["suites"].items():
        for family in sorted({f for cell in by_rung.values() for f in cell["families"]}):
            cells = [_family_cell(by_rung[rung], family) for rung in found["rungs"]]
            rows.append([suite, family, *cells])
    note = (
        "Right, %, and the share of the teacher's accuracy: which skills come over through traces, "
        "and which do not."
    )
    return Section("By family", note, ["suite", "family", *found["rungs"]], rows)


def _family_cell(cell: dict[str, Any], family: str) -> str:
    share, of_teacher = cell["families"].get(family), cell["families_of_teacher"].get(family)
    if share is None:
        return ""
    return _percent(share["accuracy"]) + ("" if of_teacher is None else f" ({of_teacher:.2f})")


def _suite_cell(cell: dict[str, Any]) -> str:
    whole, of_teacher = cell["whole"], cell["of_teacher"]
    if whole is None:
        return ""
    return _share(whole) + ("" if of_teacher is None else f", {of_teacher:.2f} of the teacher's")


def _styles(rungs: dict[str, Any]) -> Section:
    names = list(dict.fromkeys(n for cell in rungs.values() for n in cell["styles"]))
    rows = []
    for rung, cell in rungs.items():
        if cell["over_styles"] is None:
            continue
        styles, over = cell["styles"], cell["over_styles"]
        summed = [str(over["items"])]
        summed += [_percent(over[name]) for name in ("as_trained", "mean", "worst", "spread")]
        shares = [styles[n]["share"] if n in styles else None for n in names]
        rows.append([rung, *summed, *(_percent(s["accuracy"]) if s else "" for s in shares)])
    head = ["rung", "items", "as trained", "mean", "worst", "spread", *names]
    about = "The same problems, right, %, each asked so; mean to spread: of those in all styles."
    return Section("Prompt styles", about, head, rows)


def _forced(rungs: dict[str, Any]) -> Section:
    cuts = [*(name_of(share) for share in SHARES), WHOLE, SWAPPED]
    rows = []
    for rung, cell in rungs.items():
        forced = cell["forced"]
        if forced:
            shares = [_percent(forced[cut]["accuracy"]) for cut in cuts]
            moved = _points(forced["depends"]["difference"], forced["depends"]["interval"])
            rows.append([rung, str(forced[WHOLE]["items"]), *shares, moved])
    return Section(
        "Does the answer need the reasoning?",
        "Right, %, when the answer is forced after so much of the rung's own reasoning, after all "
        "of it, and after that of another problem of the family. Reasoning that can be swapped "
        "without loss is decoration.",
        ["rung", "items", *cuts, "whole minus another's"],
        rows,
    )


def _likeness(rungs: dict[str, Any]) -> Section:
    rows = []
    for rung, cell in rungs.items():
        alike = cell["likeness"]
        if alike:
            shares = [alike[name] for name in ("accuracy", "all", "right", "wrong")]
            rows.append([rung, *("" if s is None else _percent(s) for s in shares)])
    return Section(
        "Sounding like the teacher",
        "Likeness of the reasoning to the teacher's on the same items (shared 5-character pieces, "
        "%). One that is as like when wrong as when right imitates.",
        ["rung", "right", "likeness", "when right", "when wrong"],
        rows,
    )


def _lengths(rungs: dict[str, Any]) -> Section:
    most = max((len(cell["lengths"]) for cell in rungs.values()), default=0)
    rows = []
    for rung, cell in rungs.items():
        cells = [
            f"{b['from_tokens']}-{b['to_tokens']} tokens: {_share(b)} of {b['items']}"
            for b in cell["lengths"]
        ]
        if cells:
            rows.append([rung, *cells, *[""] * (most - len(cells))])
    head = ["rung", *(f"part {n + 1}" for n in range(most))]
    return Section("Accuracy by length", "Fresh items in quarters by answer length.", head, rows)


def _samples(found: dict[str, Any]) -> Section:
    drawn = {r: c["samples"] for r, c in found["rungs"].items() if c["samples"]}
    sizes = list(dict.fromkeys(n for cell in drawn.values() for n in cell["pass_at"]))
    rows = [
        [
            rung,
            str(cell["items"]),
            *(_percent(cell["pass_at"][n]) if n in cell["pass_at"] else "" for n in sizes),
            _percent(cell["majority"]),
            f"{cell['distinct']:.1f}",
        ]
        for rung, cell in drawn.items()
    ]
    lines = [collapse_sentence(name, moved) for name, moved in found["collapse"].items()]
    head = ["rung", "items", *(f"pass@{n}" for n in sizes), "majority", "distinct answers"]
    note = "Unbiased pass@k, %, over the samples of each item. "
    return Section("Many samples", note + " ".join(f"{line}." for line in lines), head, rows)


def _contamination(suites: dict[str, Any]) -> Section:
    rows = []
    for suite, cell in suites.items():
        kinds = ", ".join(f"{kind} {count}" for kind, count in cell["items"].items())
        if not cell["items"]:
            asked = max((p["all"]["items"] for p in cell["rungs"].values() if p["all"]), default=0)
            rows.append([suite, f"none of {asked}", *[""] * 4])
        for rung, parts in cell["rungs"].items():
            if cell["items"] and parts["all"]:
                shares = [parts[name] for name in ("all", "clean", "flagged")]
                rows.append([suite, kinds, rung, *(_share(s) if s else "" for s in shares)])
                kinds = ""
    return Section(
        "Items that look like training data",
        "Right, %, over all items, without the flagged ones, and of the flagged ones; ids and "
        "matched text are in contamination.jsonl. N-grams that more than ten training problems "
        "share are templates and are not counted.",
        ["suite", "items flagged", "rung", "all", "not flagged", "flagged"],
        rows,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _share(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{_percent(cell['accuracy'])} [{100 * low:.0f}, {100 * high:.0f}]"


def _points(difference: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
