"""What the answers to suites, styles and cut reasoning say: tables from judged answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.forced import SHARES, SWAPPED, WHOLE, name_of
from pipeline.ladder import against
from pipeline.records import Verdict
from quant.stats import wilson
from serve.messages import Completion, Record

FRESH, STYLES, FORCED = "fresh", "styles", "forced"
AS_TRAINED = "as trained"
TEACHER = "teacher"


class Asked(Record):
    """One judged answer of one rung to one question of a suite, in a style or after a cut."""

    rung: str
    suite: str
    style: str
    item: str
    family: str
    completion: Completion
    verdict: Verdict


def summary(rows: Sequence[Asked]) -> dict[str, Any]:
    """Everything the tables show, for other programs: `transfer.json`.

    Suites: accuracy by rung, in whole and by family, and the share of the teacher's that the rung
    has. Styles and cuts: on the items that were asked in them, beside the same items as they were
    trained.
    """
    rungs = list(dict.fromkeys(r.rung for r in rows))
    suites = list(dict.fromkeys(r.suite for r in rows if r.suite not in (STYLES, FORCED)))
    found: dict[str, Any] = {"suites": {}, "styles": {}, "forced": {}}
    for suite in suites:
        found["suites"][suite] = _by_rung([r for r in rows if r.suite == suite], rungs)
    for rung in rungs:
        own = [r for r in rows if r.rung == rung]
        fresh = _right(r for r in own if r.suite == FRESH)
        found["styles"][rung] = _styles(own, fresh)
        found["forced"][rung] = _forced(own, fresh)
    return found


def _right(rows: Iterable[Asked]) -> dict[str, bool]:
    return {r.item: r.verdict.passed for r in rows if r.verdict.passed is not None}


def _share(right: dict[str, bool]) -> dict[str, Any] | None:
    if not right:
        return None
    return {
        "items": len(right),
        "accuracy": sum(right.values()) / len(right),
        "interval": list(wilson(sum(right.values()), len(right))),
    }


def _by_rung(rows: Sequence[Asked], rungs: Sequence[str]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for rung in rungs:
        own = [r for r in rows if r.rung == rung]
        families = sorted({r.family for r in own})
        table[rung] = {
            "whole": _share(_right(own)),
            "families": {f: _share(_right(r for r in own if r.family == f)) for f in families},
        }
    ceiling = table[TEACHER]["whole"] if TEACHER in table else None
    for cell in table.values():
        whole = cell["whole"]
        cell["of_teacher"] = None
        if ceiling and whole and ceiling["accuracy"] > 0:
            cell["of_teacher"] = whole["accuracy"] / ceiling["accuracy"]
    return table


def _styles(own: Sequence[Asked], fresh: dict[str, bool]) -> dict[str, Any]:
    """Each style against the same items as trained; mean, worst and spread over the styles."""
    names = list(dict.fromkeys(r.style for r in own if r.suite == STYLES))
    table: dict[str, Any] = {}
    for name in names:
        right = _right(r for r in own if r.suite == STYLES and r.style == name)
        usual = {item: fresh[item] for item in right if item in fresh}
        table[name] = {"share": _share(right), "as_trained": _share(usual)}
        table[name]["difference"] = against(usual, right)
    shares = [cell["share"]["accuracy"] for cell in table.values() if cell["share"]]
    over = (
        {
            "mean": sum(shares) / len(shares),
            "worst": min(shares),
            "spread": max(shares) - min(shares),
        }
        if shares
        else None
    )
    return {"styles": table, "over": over}


def _forced(own: Sequence[Asked], fresh: dict[str, bool]) -> dict[str, Any]:
    """Accuracy after each cut, and with the whole reasoning, on the items that had one."""
    names = [name_of(share) for share in SHARES] + [SWAPPED]
    cuts = {name: _right(r for r in own if r.suite == FORCED and r.style == name) for name in names}
    items = set.intersection(*(set(right) for right in cuts.values())) & set(fresh)
    if not items:
        return {}
    cuts[WHOLE] = fresh
    same = {name: {i: right[i] for i in sorted(items)} for name, right in cuts.items()}
    return {name: _share(right) for name, right in same.items()} | {
        "depends": against(same[SWAPPED], same[WHOLE])
    }


def text_of(found: dict[str, Any]) -> str:
    """Markdown tables."""
    suites = list(found["suites"])
    rungs = list(found["styles"])
    lines = [_row(["rung", *suites]), _row(["---"] * (1 + len(suites)))]
    for rung in rungs:
        lines.append(_row([rung, *(_suite_cell(found["suites"][s][rung]) for s in suites)]))
    names = list(dict.fromkeys(n for r in rungs for n in found["styles"][r]["styles"]))
    if names:
        head = ["styles", "mean", "worst", "spread", *names]
        lines += ["", _row(head), _row(["---"] * len(head))]
        lines += [_row([rung, *_style_cells(found["styles"][rung], names)]) for rung in rungs]
    cuts = [*(name_of(share) for share in SHARES), WHOLE, SWAPPED]
    head = ["answer after reasoning", "items", *cuts, "whole - another's"]
    lines += ["", _row(head), _row(["---"] * len(head))]
    lines += [_row([rung, *_forced_cells(found["forced"][rung], cuts)]) for rung in rungs]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(share: dict[str, Any] | None) -> str:
    return "" if share is None else f"{100 * share['accuracy']:.1f}"


def _suite_cell(cell: dict[str, Any]) -> str:
    whole = cell["whole"]
    if whole is None:
        return ""
    low, high = whole["interval"]
    text = f"{100 * whole['accuracy']:.1f} [{100 * low:.0f}, {100 * high:.0f}]"
    of_teacher = cell["of_teacher"]
    return text if of_teacher is None else f"{text}, {of_teacher:.2f} of the teacher's"


def _style_cells(cell: dict[str, Any], names: Sequence[str]) -> list[str]:
    over = cell["over"]
    if over is None:
        return [""] * (3 + len(names))
    summed = [f"{100 * over[name]:.1f}" for name in ("mean", "worst", "spread")]
    styles = cell["styles"]
    return summed + [_percent(styles[n]["share"]) if n in styles else "" for n in names]


def _forced_cells(cell: dict[str, Any], cuts: Sequence[str]) -> list[str]:
    if not cell:
        return [""] * (2 + len(cuts))
    low, high = cell["depends"]["interval"]
    difference = f"{100 * cell['depends']['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return [str(cell[WHOLE]["items"]), *(_percent(cell[name]) for name in cuts), difference]
