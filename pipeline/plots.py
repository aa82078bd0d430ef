"""The report's plots as inline SVG. Pure functions from the ladder and the loss rows."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#555555"]

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "retort",  # the same data gives the same bytes
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def svg_text(figure: Figure) -> str:
    """The figure as an `<svg>` element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def ladder_svg(ladder: dict[str, Any]) -> str:
    """Accuracy of every rung with its 95 % interval."""
    rows = [row for row in ladder["rows"] if row["accuracy"] is not None]
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1))
    axes = figure.subplots()
    for index, row in enumerate(rows):
        low, high = row["interval"]
        share = 100 * row["accuracy"]
        axes.barh(index, share, color=COLOURS[0], alpha=0.35, height=0.6)
        axes.errorbar(
            share,
            index,
            xerr=[[max(0.0, share - 100 * low)], [max(0.0, 100 * high - share)]],
            fmt="o",
            color=COLOURS[0],
            capsize=4,
        )
        axes.text(100 * high + 1.5, index, f"{share:.0f} %", va="center")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 112)  # room for what stands beside a bar of 100 %
    axes.set_xlabel(f"correct, % of {ladder['items']} fresh items (95 % Wilson interval)")
    return svg_text(figure)


def families_svg(ladder: dict[str, Any]) -> str:
    """Accuracy by family, one group of bars a family."""
    rows = ladder["rows"]
    families = sorted({name for row in rows for name in row["families"]})
    figure = Figure(figsize=(8, 3.4))
    axes = figure.subplots()
    width = 0.8 / max(1, len(rows))
    for index, row in enumerate(rows):
        places = [i + (index - (len(rows) - 1) / 2) * width for i in range(len(families))]
        shares = [100 * row["families"].get(f, {"accuracy": 0.0})["accuracy"] for f in families]
        axes.bar(places, shares, width, label=row["name"], color=COLOURS[index % len(COLOURS)])
    axes.set_xticks(range(len(families)), families)
    axes.set_ylabel("correct, %")
    axes.set_ylim(0, 100)
    axes.legend(ncols=3, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    return svg_text(figure)


def lengths_svg(ladder: dict[str, Any]) -> str:
    """Mean answer length of every rung, in its own tokens."""
    rows = ladder["rows"]
    figure = Figure(figsize=(8, 0.4 * len(rows) + 1))
    axes = figure.subplots()
    axes.barh(range(len(rows)), [row["mean_tokens"] for row in rows], color=COLOURS[2])
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("mean answer length, tokens of the answering model")
    return svg_text(figure)


def loss_svg(losses: list[dict[str, float]]) -> str:
    """Training loss a step, with its running mean."""
    figure = Figure(figsize=(8, 2.8))
    axes = figure.subplots()
    steps = [row["step"] for row in losses]
    values = [row["loss_nats"] for row in losses]
    span = max(1, len(values) // 20)
    means = [
        sum(values[max(0, i - span) : i + 1]) / len(values[max(0, i - span) : i + 1])
        for i in range(len(values))
    ]
    axes.plot(steps, values, color=COLOURS[0], alpha=0.3, linewidth=1)
    axes.plot(steps, means, color=COLOURS[0], linewidth=2)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_ylim(bottom=0)
    return svg_text(figure)


def blocks_svg(rows: list[dict[str, Any]]) -> str:
    """Share of right attempts a block, and the loss of every update."""
    figure = Figure(figsize=(8, 2.8))
    left, right = figure.subplots(1, 2)
    shares = [100 * row["right"] / row["attempts"] for row in rows]
    left.plot([row["block"] + 1 for row in rows], shares, marker="o", color=COLOURS[0])
    left.set_xlabel("block")
    left.set_ylabel("attempts that are right, %")
    left.set_ylim(0, 100)
    losses = [loss for row in rows for loss in row["losses_nats"] if loss is not None]
    right.plot(range(1, len(losses) + 1), losses, color=COLOURS[0], linewidth=1)
    right.set_xlabel("update")
    right.set_ylabel("loss, nats a place")
    right.set_ylim(bottom=0)
    figure.tight_layout()
    return svg_text(figure)


def looks_svg(looks: list[dict[str, float]]) -> str:
    """Entropy, pass@1 and pass@k on held-out problems, look by look."""
    figure = Figure(figsize=(8, 2.8))
    left, right = figure.subplots(1, 2)
    places = [look["blocks"] for look in looks]
    left.plot(places, [x["entropy_nats"] for x in looks], marker="o", color=COLOURS[3])
    left.set_xlabel("blocks done")
    left.set_ylabel("entropy, nats a token")
    left.set_ylim(bottom=0)
    k = f"pass@{looks[0]['k']:.0f}"
    for name, title, colour in (("pass_at_1", "pass@1", 0), ("pass_at_k", k, 1)):
        right.plot(
            places, [100 * x[name] for x in looks], marker="o", color=COLOURS[colour], label=title
        )
    right.set_xlabel("blocks done")
    right.set_ylabel("held-out problems, %")
    right.set_ylim(0, 100)
    right.legend(frameon=False)
    figure.tight_layout()
    return svg_text(figure)
