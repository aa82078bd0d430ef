"""What the page shows of an answer: HTML in which all that a model or a person wrote is text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from apps.conversation import Said, first_difference
from serve.model_process import ModelProcess
from serve.models import artifact_bytes

STYLE = """
.said { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace;
        min-height: 1.5em; }
.said mark { background: #ffd54d; color: #000; }
.numbers { font-size: 0.85em; opacity: 0.8; min-height: 1.3em; }
.report { width: 100%; height: 80vh; border: 0; background: #fff; }
"""
MARKS = {True: "✓", False: "✗", None: "?"}


def differences(said: Sequence[Said]) -> list[int | None]:
    """For each column where it first differs from the first one; the first from the second.

    A column that could not answer is compared with none.
    """
    answered = [one for one in said if one.problem is None]
    if len(answered) < 2:
        return [None] * len(said)
    first, second = answered[:2]
    return [
        None
        if one.problem is not None
        else first_difference(one, second if one is first else first)
        for one in said
    ]


def reasoning_and_answer(said: Said, differs_at: int | None) -> tuple[str, str]:
    """Both parts, with the word marked that another column does not share."""
    whole, cut = said.text, len(said.reasoning) + 1 if said.reasoning else 0
    if said.problem is not None:
        return _part(said.reasoning, None), _part(said.problem, None)
    inside = None if differs_at is None or differs_at >= cut else differs_at
    after = None if differs_at is None or differs_at < cut else differs_at - cut
    return _part(whole[: max(cut - 1, 0)], inside), _part(whole[cut:], after)


def _part(text: str, mark_at: int | None) -> str:
    if mark_at is None or mark_at >= len(text):
        return f'<div class="said">{escape(text)}</div>'
    end = next((i for i in range(mark_at, len(text)) if text[i].isspace()), len(text))
    marked = f"<mark>{escape(text[mark_at:end])}</mark>"
    return f'<div class="said">{escape(text[:mark_at])}{marked}{escape(text[end:])}</div>'


def numbers(said: Said, verdict: str = "") -> str:
    """Tokens, rate and time to first token, and what the verifier says, as one line."""
    if not said.tokens and said.finish is None:
        return "" if said.over else '<div class="numbers">…</div>'
    parts = [
        f"{said.tokens} tokens",
        f"{said.tokens_per_s:.1f} tokens/s",
        f"first token after {said.first_token_s:.2f} s",
    ]
    if said.finish == "length":
        parts.append("cut at the longest answer")
    if said.finish == "reasoning_unclosed":
        parts.append("stopped without an answer")
    return f'<div class="numbers">{escape(" · ".join(parts))} {escape(verdict)}</div>'


def about(model: ModelProcess) -> str:
    """What the file weighs, and what its process holds."""
    parts: list[str] = [model.state]
    if model.path is not None:
        parts.append(f"{artifact_bytes(model.path) / 1e6:.0f} MB")
    memory = _memory_bytes(model.pid())
    if memory is not None and model.state == "ready":
        parts.append(f"{memory / 1e6:.0f} MB of memory")
    if model.state == "failed":
        parts.append(model.problem)
    return f'<div class="numbers">{escape(" · ".join(parts))}</div>'


def _memory_bytes(pid: int | None) -> int | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next((x for x in text.splitlines() if x.startswith("VmRSS:")), "")
    return int(line.split()[1]) * 1024 if line else None


def run_page(run: Path) -> str:
    """The run's report in a frame that runs no script; the bundle's README where there is none."""
    report = run / "report.html"
    if report.exists():
        source = escape(report.read_text(encoding="utf-8"))
        return f'<iframe class="report" sandbox="" srcdoc="{source}"></iframe>'
    readme = run / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else "This folder has no report."
    return f'<div class="said">{escape(text)}</div>'
