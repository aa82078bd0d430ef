"""The ladder as people read it: heads and cells, the same in terminal, page and card."""

from __future__ import annotations

from typing import Any


def ladder_cells(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads, and one list of cells a rung, from the contents of `ladder.json`."""
    k = data["k"]
    head = ["rung", "MB", "accuracy", "vs base", "p", "pass@1", f"pass@{k}", "no answer", "tokens"]
    cells = []
    for row in data["rows"]:
        against, at = row["against_base"], row["pass_at"]
        low, high = row["interval"]
        cells.append(
            [
                row["name"],
                f"{row['size_bytes'] / 1e6:.0f}" if row["size_bytes"] else "",
                _percent(row["accuracy"]) + f" [{100 * low:.0f}, {100 * high:.0f}]",
                f"{100 * against['difference']:+.1f}" if against else "",
                _p_value(against["p_value"]) if against else "",
                _percent(at["1"]) if at else "",
                _percent(at[str(k)]) if at else "",
                str(row["format_failures"] + row["truncated"]),
                f"{row['mean_tokens']:.0f}",
            ]
        )
    return head, cells


def _percent(share: float | None) -> str:
    return "not scored" if share is None else f"{100 * share:.1f}"


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
