"""The published methods side by side: one table, and what it allows to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.ladder import against
from pipeline.transfer_summary import FRESH
from quant.stats import holm
from serve.messages import Record

# Beside the suites, which stand between the second and the third.
HEAD = [
    "recipe",
    "fresh",
    "against plain",
    "styles mean (worst)",
    "needs its reasoning",
    "answer tokens",
    "supervised tokens",
    "teacher tokens",
    "training minutes",
]
PLAIN = "plain"
# The base student's row.
UNTAUGHT = "base student"
ALPHA = 0.05


class Method(Record):
    """One student: what it was taught by, what that cost, and what its answers say.

    `right` is by item of the fresh suite; `suites` are accuracies. Tokens: those learned from over
    all epochs (SFT), and those the teacher wrote or graded. `minutes`: of training.
    """

    name: str
    fingerprint: str
    right: dict[str, bool]
    suites: dict[str, Any]
    rung: dict[str, Any]
    answer_tokens: float
    supervised_tokens: int
    teacher_tokens: int
    minutes: float


def rows(methods: Sequence[Method]) -> list[list[str]]:
    """The head, and a row a method; the difference stands beside the recipe named `plain`, where it
    ran."""
    plain = next((m.right for m in methods if m.name == PLAIN), {})
    suites = list(dict.fromkeys(s for m in methods for s in m.suites if s != FRESH))
    head = [*HEAD[:3], *suites, *HEAD[3:]]
    return [head, *(_cells(method, plain, suites) for method in methods)]


def table(methods: Sequence[Method]) -> str:
    """Markdown."""
    head, *below = rows(methods)
    lines = [head, ["---"] * len(head), *below]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def sentences(methods: Sequence[Method]) -> str:
    """What the items allow to say of each recipe beside `plain`: McNemar at 5 % over all (Holm).

    The base student is no recipe.
    """
    plain = next((m for m in methods if m.name == PLAIN), None)
    if plain is None:
        return ""
    others = {
        m.name: against(plain.right, m.right) for m in methods if m.name not in (PLAIN, UNTAUGHT)
    }
    found = {name: difference for name, difference in others.items() if difference is not None}
    p_values = holm({name: difference["p_value"] for name, difference in found.items()})
    said: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for name, difference in found.items():
        shown = "better" if difference["difference"] > 0 else "worse"
        said[shown if p_values[name] < ALPHA else "not told apart"].append(name)
    parts = [
        f"{outcome} than plain on fresh items: {', '.join(names)}"
        if outcome != "not told apart"
        else f"not told apart from plain by {len(plain.right)} items: {', '.join(names)}"
        for outcome, names in said.items()
        if names
    ]
    return "; ".join(parts) + ("." if parts else "")


def _cells(method: Method, plain: dict[str, bool], suites: Sequence[str]) -> list[str]:
    difference = against(plain, method.right) if method.name != PLAIN else None
    styles, forced = method.rung["over_styles"], method.rung["forced"]
    return [
        method.name,
        _share(method, FRESH),
        _points(difference) if difference else "",
        *(_share(method, suite) for suite in suites),
        f"{100 * styles['mean']:.1f} ({100 * styles['worst']:.1f})" if styles else "",
        _points(forced["depends"]) if forced else "",
        f"{method.answer_tokens:.0f}",
        f"{method.supervised_tokens:,}",
        f"{method.teacher_tokens:,}",
        f"{method.minutes:.1f}",
    ]


def _share(method: Method, suite: str) -> str:
    cell = method.suites.get(suite)
    if cell is None:
        return ""
    low, high = cell["interval"]
    return f"{100 * cell['accuracy']:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _points(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{100 * found['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
