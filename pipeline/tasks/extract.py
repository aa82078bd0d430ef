"""Finds the final answer in a model's text, however it was announced.

Tolerant in form, strict in place: the last announcement wins, and without one the last line counts.
"""

from __future__ import annotations

import re

from serve.reasoning import split_reasoning

ANNOUNCED = re.compile(
    r"(?:final\s+answer|answer|result)\s*(?:is|was|=|:)+\s*:?\s*(.+)", re.IGNORECASE
)
BOX = "\\boxed{"


def extract_answer(text: str, unannounced_whole: bool = False) -> str | None:
    """The announced answer, or None when there is no text after the reasoning.

    Order: the last `\\boxed{…}`, the last "Final answer:" or "Answer:" or "the answer is", the last
    line (`unannounced_whole`: all that was said after the reasoning).
    """
    split = split_reasoning(text)
    if not split.closed or not split.answer:
        return None
    boxed = _last_box(split.answer)
    if boxed is not None:
        return _clean(boxed) or None
    lines = [line for line in split.answer.splitlines() if line.strip()]
    for line in reversed(lines):
        announced = _last_announced(_strip_marks(line))
        if announced is not None:
            return _clean(announced) or None
    return _clean(split.answer if unannounced_whole else lines[-1]) or None


def answer_forms(extracted: str) -> list[str]:
    """The same final statement as written, and with "x =" in front of the value taken off."""
    forms = [extracted]
    _, sign, value = extracted.rpartition("=")
    if sign and value.strip():
        forms.append(value.strip())
    return forms


def answer_key(extracted: str) -> str:
    """Equal for answers that differ in form alone: `x = 16` and `16`, capitals, spaces."""
    return " ".join(answer_forms(extracted)[-1].split()).casefold()


def _last_announced(line: str) -> str | None:
    """What follows the last announcement of a line, which may stand in what follows another."""
    found, match = None, ANNOUNCED.search(line)
    while match:
        found, match = match[1], ANNOUNCED.search(match[1])
    return found


def _last_box(text: str) -> str | None:
    start = text.rfind(BOX)
    if start < 0:
        return None
    depth, begin = 1, start + len(BOX)
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[begin:index]
    return None


def _strip_marks(line: str) -> str:
    return line.replace("*", "").replace("`", "") if "**" in line or "`" in line else line


def _clean(text: str) -> str:
    text = re.sub(r"[.,;]+$", "", _strip_marks(text).strip())
    text = text.removeprefix("\\(").removesuffix("\\)").strip("$ \t\"'")
    text = re.sub(r"[.,;]+$", "", text)
    return text.strip("$ \t\"'")
