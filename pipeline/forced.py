"""Does the answer depend on the reasoning? The reasoning is cut or swapped, and the answer forced.

A student whose answer is as good after half of its reasoning, or after somebody else's, shows its
reasoning and does not use it ("The False Promise of Imitating Proprietary LLMs", arXiv 2305.15717,
is about students that sound right).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.ladder import Judged
from pipeline.records import content_key
from pipeline.supervise import reasoning_of
from serve.messages import Completion
from serve.reasoning import only_reasoning, tags_of

SHARES = (0.0, 0.25, 0.5, 0.75)
SWAPPED = "another's"
WHOLE = "whole"
ANNOUNCED = "Answer:"


def forced_beginnings(
    answers: Sequence[Judged], references: Mapping[str, str]
) -> dict[tuple[str, str], str]:
    """(item, name) -> how an answer is begun: after a share of the rung's own reasoning, or after
    that of another item of the family, which neither was answered alike nor has the item's
    reference answer: else being right would say nothing. Items without finished reasoning are left
    out; without such another, nothing is swapped."""
    reasoned = {
        a.item: a
        for a in sorted(answers, key=lambda a: a.item)
        if a.completion.finish == "stop" and reasoning_of(a.completion.text)
    }
    begun: dict[tuple[str, str], str] = {}
    for item, answer in reasoned.items():
        text = answer.completion.text
        lines = reasoning_of(text).splitlines()
        for share in SHARES:
            begun[item, name_of(share)] = _begun(text, _cut(lines, share))
        said = (answer.verdict.extracted, references[item])
        others = [
            o
            for o in reasoned.values()
            if o.family == answer.family
            and o.verdict.extracted not in said
            and references[o.item] not in said
        ]
        if others:
            other = min(others, key=lambda o: content_key("swapped", item, o.item))
            begun[item, SWAPPED] = _begun(text, reasoning_of(other.completion.text))
    return begun


def first_line(said: Completion) -> Completion:
    """What follows `Answer:`; one that was cut off after its line has answered all the same."""
    line, feed, _ = said.text.lstrip().partition("\n")
    if said.finish != "length" or not feed:
        return said
    return said.model_copy(update={"text": f" {line}", "finish": "stop"})


def name_of(share: float) -> str:
    return f"{100 * share:.0f} %"


def _cut(lines: Sequence[str], share: float) -> str:
    """The first `share` of the reasoning's characters, in whole lines and words."""
    text = "\n".join(lines)
    end = round(share * len(text))
    part = text[:end]
    # Half a number would be another number.
    return (
        part
        if not text[end : end + 1].strip()
        else part[: max(part.rfind(" "), part.rfind("\n"), 0)]
    )


def _begun(text: str, reasoning: str) -> str:
    """In the form of the answer it is taken from: with tags, or lines and an announcement."""
    tags = tags_of(text)
    if tags is not None:
        opens = f"{tags.answer_opens}\n" if tags.answer_opens else ""
        return f"{only_reasoning(reasoning, tags)}\n{opens}{ANNOUNCED}"
    return f"{reasoning}\n{ANNOUNCED}" if reasoning else ANNOUNCED
