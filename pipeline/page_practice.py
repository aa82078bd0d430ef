"""The page's section on practice: what it gained and cost, block by block, and the watch."""

from __future__ import annotations

import html
from typing import Any

from pipeline import plots
from pipeline.ledger import MILLION_BILLIONS

# Heads that a terminal has no room for.
LONG = ("10^15 operations", "kJ", "points a 10^15")
COSTS_NOTE = (
    "points: paired, against the rung before. Where chance alone could explain what practice "
    "gained, both students were asked more items; its interval is wider for the looks that may be "
    "taken, p (exact McNemar) is not. Operations are counted from the models' shapes; teacher "
    "tokens are those written or graded, without prompts that answers share."
)
Cells = tuple[list[str], list[list[str]]]


def ledger_cells(rows: list[dict[str, Any]], brief: bool = False) -> Cells:
    """Heads and cells of the cost ledger; `brief`: what fits a terminal."""
    head = ["step", "student tokens", "teacher tokens", "10^15 operations", "minutes", "kJ"]
    head += ["points gained [95 %]", "items", "p", "points a 10^15", "points a minute"]
    cells = []
    for row in rows:
        gained = row["gained"]
        low, high = gained["interval"] if gained else (0.0, 0.0)
        cells.append(
            [
                row["step"],
                f"{row['student_tokens']:,}",
                f"{row['teacher_tokens']:,}",
                "not known" if row["operations"] is None else f"{row['operations'] / 1e15:.2f}",
                f"{row['took_s'] / 60:.1f}",
                "not reported" if row["energy_j"] is None else f"{row['energy_j'] / 1e3:.1f}",
                f"{100 * gained['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
                if gained
                else "",
                str(gained["items"]) if gained else "",
                f"{gained['p_value']:.3g}" if gained else "",
                _number(row["points_per_1e15"]),
                _number(row["points_per_minute"]),
            ]
        )
    kept = [i for i, name in enumerate(head) if not (brief and name in LONG)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in cells]


def compared_text(found: dict[str, Any] | None) -> str:
    """What the same time would have bought in traces; how to ask where nobody did."""
    if found is None:
        return (
            "The same compute spent on more SFT traces was not tried: "
            "<code>python -m pipeline.compare on-policy sft --equal-compute --run FOLDER</code>."
        )
    low, high = found["interval"]
    verdict = (
        "Practice beats it"
        if low > 0
        else "More traces beat practice"
        if high < 0
        else "Which of the two is better is not decided by these items"
    )
    return (
        f"The same {_amount(found, 'budget')} spent on {found['more_problems']} more "
        f"problems for traces and SFT ({_amount(found, 'spent')} were needed): "
        f"{100 * found['more_sft']:.1f} % right, practice {100 * found['on_policy']:.1f} % of the "
        f"same {found['items']} items, difference {100 * found['difference']:+.1f} points "
        f"[{100 * low:+.1f}, {100 * high:+.1f}], p {found['p_value']:.3g}. {verdict}."
    )


def _amount(found: dict[str, Any], name: str) -> str:
    if found["measure"] == "took_s":
        return f"{found[name] / 60:.1f} minutes"
    return f"{found[name] / MILLION_BILLIONS:.3f} x 10^15 operations"


def practice_section(
    rows: list[dict[str, Any]], looks: list[dict[str, float]], found: dict[str, Any] | None
) -> list[str]:
    """HTML parts; empty looks and rows leave their parts out."""
    parts = [f"<p>{compared_text(found)}</p>"]
    if rows and "attempts" in rows[0]:
        parts.append(f"<figure>{plots.blocks_svg(rows)}</figure>")
        skipped = rows[-1]["skipped_updates"]
        parts.append(
            f"<p class=note>Attempts at problems never met before, and the loss of every update in "
            f"nats a place. Updates skipped as broken: {skipped}.</p>"
        )
    elif rows:  # of exact, a row an update
        taken = [row for row in rows if row["loss_nats"] is not None]
        parts.append(f"<figure>{plots.loss_svg(taken)}</figure>")
        parts.append(
            f"<p class=note>The loss of every update, nats a token. Updates skipped as broken: "
            f"{rows[-1]['skipped_updates']}.</p>"
        )
    if looks:
        parts.append(f"<figure>{plots.looks_svg(looks)}</figure>")
        parts.append(table(*_look_cells(looks)))
    return parts


def _look_cells(looks: list[dict[str, float]]) -> Cells:
    names = [
        ("entropy_nats", "entropy, nats"),
        ("distinct_answers", "distinct"),
        ("pass_at_1", "pass@1"),
        ("pass_at_k", f"pass@{looks[0]['k']:.0f}"),
        ("gap", "gap"),
        ("mean_tokens", "tokens"),
        ("clipped_share", "clipped"),
        ("loop_share", "loops"),
        ("end_share", "ended"),
    ]
    cells = [[f"{look['blocks']:.0f}", *(f"{look[n]:.3g}" for n, _ in names)] for look in looks]
    return ["after block", *(title for _, title in names)], cells


def table(head: list[str], rows: list[list[str]]) -> str:
    """An HTML table that scrolls on narrow screens."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class=scroll><table><tr>{top}</tr>{body}</table></div>"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
