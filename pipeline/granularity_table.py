"""What the students of a granularity study say: a table, a plot, and claims the items allow.

Pure functions from who was taught what and which items they got right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure

from pipeline.cells import Trained
from pipeline.ladder import against
from pipeline.methods_table import ALPHA
from pipeline.plots import COLOURS, svg_text
from quant.stats import holm, wilson

Arm = Literal["traces", "tokens"]
HEAD = [
    "view",
    "examples x epochs",
    "supervised tokens",
    "updates",
    "accuracy",
    "against the best",
    "points a 1,000 tokens",
    "suites",
    "answer tokens",
    "minutes",
]
EQUAL = {"traces": "equal traces", "tokens": "equal supervised tokens"}


class Taught(NamedTuple):
    """One cell of the study; without a student where the view cannot be made, and why."""

    view: str
    arm: Arm
    size: int
    student: Trained | None
    reason: str


class Untaught(NamedTuple):
    """What the base student gets right: by item, and by suite and item."""

    right: dict[str, bool]
    suites: dict[str, dict[str, bool]]


class Judgement(NamedTuple):
    """What one part of the study (an arm at a size) allows to say.

    `difference` and `interval` (95 %) are against the best student, in shares; `within`: views that
    lose less than the margin to it; `smallest` of those that are themselves better than the base
    student takes the fewest tokens of a trace. `learned`: the best is better than it.
    """

    best: str
    differences: dict[str, tuple[float, tuple[float, float]]]
    within: list[str]
    smallest: str
    learned: bool


def judge(part: Sequence[Taught], base: dict[str, bool], margin_points: float) -> Judgement | None:
    """Non-inferiority to the best, paired; None where nobody could be taught."""
    students = {t.view: t.student for t in part if t.student is not None}
    if not students:
        return None
    best = max(students, key=lambda v: (students[v].accuracy, -students[v].tokens_per_trace))
    differences = {}
    for view, student in students.items():
        found = against(students[best].right, student.right)
        assert found is not None
        low, high = found["interval"]
        differences[view] = (found["difference"], (low, high))
    within = [
        view
        for view, (_, (low, _)) in differences.items()
        if view == best or low > -margin_points / 100
    ]
    better = _better(base, {view: student.right for view, student in students.items()})
    learned = {view for view in within if view in better}
    return Judgement(
        best,
        differences,
        within,
        min(learned or [best], key=lambda v: students[v].tokens_per_trace),
        best in learned,
    )


def _better(base: dict[str, bool], students: dict[str, dict[str, bool]]) -> set[str]:
    """Views whose students are better than the base student, all views of the part asked at once:
    the best of eight is looked for, and found by chance more easily than one."""
    found = {view: against(base, right) for view, right in students.items()}
    differences = {view: d for view, d in found.items() if d is not None}
    p_values = holm({view: d["p_value"] for view, d in differences.items()})
    return {v for v, d in differences.items() if d["difference"] > 0 and p_values[v] < ALPHA}


def parts_of(found: Sequence[Taught]) -> list[tuple[Arm, int, list[Taught]]]:
    """The study cut into what may be compared: one arm at one size."""
    keys = list(dict.fromkeys((t.size, t.arm) for t in found))
    return [(arm, n, [t for t in found if (t.size, t.arm) == (n, arm)]) for n, arm in keys]


def table(found: Sequence[Taught], base: Untaught, margin_points: float) -> str:
    """Markdown, a table a part."""
    items = len(base.right)
    share = sum(base.right.values()) / items
    suites = _suites(base.suites)
    lines = [
        f"{items} fresh items; base student {100 * share:.1f} %"
        + (f" ({suites})" if suites else "")
        + ". Intervals: 95 % each; suites: %."
    ]
    for arm, size, part in parts_of(found):
        said = judge(part, base.right, margin_points)
        lines += ["", f"**{size} traces of view full, {EQUAL[arm]}**", "", _row(HEAD)]
        lines.append(_row(["---"] * len(HEAD)))
        lines += [_row(_cells(taught, said, share)) for taught in part]
    return "\n".join(lines) + "\n"


def _cells(taught: Taught, said: Judgement | None, base_share: float) -> list[str]:
    student = taught.student
    if student is None or said is None:
        return [taught.view, taught.reason, *[""] * (len(HEAD) - 2)]
    low, high = wilson(sum(student.right.values()), len(student.right))
    difference, (worst, most) = said.differences[taught.view]
    gained = _points_a_thousand(student, base_share)
    return [
        taught.view,
        f"{student.examples} x {student.epochs}",
        f"{student.supervised_tokens:,}",
        f"{student.updates}",
        f"{100 * student.accuracy:.1f} [{100 * low:.0f}, {100 * high:.0f}]",
        "best"
        if taught.view == said.best
        else f"{100 * difference:+.1f} [{100 * worst:+.1f}, {100 * most:+.1f}]",
        f"{gained:+.2f}",
        _suites(student.suites),
        f"{student.mean_answer_tokens:.0f}",
        f"{student.took_s / 60:.1f}",
    ]


def _suites(suites: dict[str, dict[str, bool]]) -> str:
    return ", ".join(
        f"{name} {100 * sum(right.values()) / len(right):.0f}"
        for name, right in suites.items()
        if right
    )


def _points_a_thousand(student: Trained, base_share: float) -> float:
    return 100 * (student.accuracy - base_share) / (student.supervised_tokens / 1000)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def sentences(found: Sequence[Taught], base: Untaught, margin_points: float) -> str:
    """One claim a part, no stronger than its intervals, each of which holds by itself."""
    lines = []
    for arm, size, part in parts_of(found):
        said = judge(part, base.right, margin_points)
        claim = _claim(part, said, base.right, margin_points)
        lines.append(f"- {size} traces, {EQUAL[arm]}: {claim}")
    return "\n".join(lines) + "\n"


def _claim(
    part: Sequence[Taught], said: Judgement | None, base: dict[str, bool], margin_points: float
) -> str:
    if said is None:
        return "no view could be made."
    if not said.learned:
        return (
            f"no claim. The best, {said.best}, is not shown to be better than the base student on "
            f"{len(base)} items."
        )
    students = {t.view: t.student for t in part if t.student is not None}
    smallest = students[said.smallest]
    gained = _points_a_thousand(smallest, sum(base.values()) / len(base))
    worth = f"{gained:+.2f} points a 1,000 supervised tokens"
    named = f"the smallest supervision that still transfers is {said.smallest}"
    if said.smallest != said.best:
        return f"{named}: within {margin_points:g} points of the best, {said.best}; {worth}."
    if all(s.tokens_per_trace >= smallest.tokens_per_trace for s in students.values()):
        return f"{named}, which is also the best; {worth}."
    others = [found for view, found in said.differences.items() if view != said.best]
    narrowest = 100 * min(difference - low for difference, (low, _) in others)
    return (
        f"{said.best} is best, {worth}; no smaller view is shown both to stay within "
        f"{margin_points:g} points of it and to be better than the base student (intervals on "
        f"{len(base)} items reach {narrowest:.1f} points below a difference, or more)."
    )


def as_json(found: Sequence[Taught], base: Untaught, margin_points: float) -> dict[str, Any]:
    """All of it, for other programs: `granularity.json`."""
    parts = []
    for arm, size, part in parts_of(found):
        said = judge(part, base.right, margin_points)
        students = [
            {
                "view": t.view,
                "reason": t.reason,
                **(t.student.model_dump(mode="json") if t.student else {}),
            }
            for t in part
        ]
        parts.append(
            {
                "arm": arm,
                "traces": size,
                "judgement": said._asdict() if said else None,
                "students": students,
            }
        )
    return {
        "margin_points": margin_points,
        "base": base.right,
        "base_suites": base.suites,
        "parts": parts,
    }


def plot(found: Sequence[Taught], base: Untaught) -> str:
    """Accuracy over supervised tokens, a colour a view. Filled: equal traces; hollow: tokens."""
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    views = list(dict.fromkeys(t.view for t in found))
    for taught in found:
        student = taught.student
        if student is None:
            continue
        share, colour = 100 * student.accuracy, COLOURS[views.index(taught.view) % len(COLOURS)]
        low, high = wilson(sum(student.right.values()), len(student.right))
        first = next(t for t in found if t.view == taught.view and t.student is not None)
        axes.errorbar(
            student.supervised_tokens,
            share,
            yerr=[[max(0.0, share - 100 * low)], [max(0.0, 100 * high - share)]],
            fmt="o",
            color=colour,
            markerfacecolor=colour if taught.arm == "traces" else "white",
            capsize=3,
            label=taught.view if taught is first else None,
        )
    right = base.right
    axes.axhline(100 * sum(right.values()) / len(right), color="#555555", linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("supervised tokens of all epochs (filled: equal traces, hollow: equal tokens)")
    axes.set_ylabel(f"correct, % of {len(right)} items")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return svg_text(figure)
