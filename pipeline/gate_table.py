"""The gate as people read it: heads and cells, the same in terminal, page and card."""

from __future__ import annotations

from typing import Any

# Left out where lines are short.
WIDE = ("p99", "KL numbers", "first ms", "RAM MB")


def gate_cells(gate: dict[str, Any], brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """Heads, and one list of cells an artifact, from the contents of `gate.json`."""
    head = [
        "artifact",
        "MB",
        "bits",
        "KL nats",
        "p99",
        "top-1",
        "KL numbers",
        "accuracy",
        "difference",
        "flips",
        "tok/s",
        "first ms",
        "RAM MB",
        "verdict",
    ]
    cells = [_cells(row, row["name"] == gate["chosen"]["name"]) for row in gate["rows"]]
    kept = [i for i, name in enumerate(head) if not (brief and name in WIDE)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in cells]


def _cells(row: dict[str, Any], chosen: bool) -> list[str]:
    proof, verdict = row["proof"], row["verdict"]
    inspection, divergence = proof["inspection"], proof["divergence"]
    outcome = "refused" if verdict is None else verdict["outcome"]
    return [
        row["name"],
        f"{row['size_bytes'] / 1e6:.0f}",
        f"{inspection['bits_per_weight']:.2f}" if inspection else "",
        *(_divergence(divergence) if divergence else [""] * 4),
        *(_difference(verdict) if verdict else [""] * 3),
        *(_speed(proof["speed"]) if proof["speed"] else [""] * 3),
        f"{outcome}, chosen" if chosen else outcome,
    ]


def _divergence(divergence: dict[str, Any]) -> list[str]:
    every, numbers = divergence["all"], divergence.get("number")
    return [
        f"{every['mean_nats']:.4f}",
        f"{every['p99_nats']:.3f}",
        f"{100 * every['top1_share']:.1f}",
        f"{numbers['mean_nats']:.4f}" if numbers else "",
    ]


def _difference(verdict: dict[str, Any]) -> list[str]:
    if verdict["difference"] is None:
        return ["not scored", "", ""]
    return [
        f"{100 * verdict['accuracy']:.1f}",
        f"{100 * verdict['difference']:+.1f} "
        f"[{100 * verdict['low']:.1f}, {100 * verdict['high']:.1f}]",
        f"+{verdict['gained']} -{verdict['lost']}",
    ]


def _speed(speed: dict[str, Any]) -> list[str]:
    memory = speed["peak_memory_bytes"]
    return [
        f"{speed['tokens_per_s']:.0f}",
        f"{1000 * speed['first_token_s']:.0f}",
        f"{memory / 1e6:.0f}" if memory else "",
    ]


def reasons(gate: dict[str, Any]) -> list[str]:
    """One line an artifact: why it is refused, or why its verdict; warnings of its contents."""
    lines = []
    for row in gate["rows"]:
        why = row["proof"]["fault"] or row["verdict"]["why"]
        lines.append(f"{row['name']}: {why}")
        inspection = row["proof"]["inspection"]
        lines += [f"{row['name']}: {w}" for w in (inspection["warnings"] if inspection else [])]
    return lines
