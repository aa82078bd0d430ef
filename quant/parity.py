"""The same conversation is the same tokens in every runtime, and ends at the same ones.

A template or tokenizer that differs by one token makes a student answer a question it was never
trained on, and nothing in its file says so. Reads engines; judges nothing but equality.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from serve.engines.base import Engine
from serve.messages import Message, Record

# What tokenizers disagree about: scripts, spaces, digits, code, marks inside the text. Left out is
# what no file can help: letters and accents that Qwen's tokenizer composes first (NFC) and the
# runtimes never do, and `</s>`, which llama.cpp takes for a mark in every vocabulary that has it.
HARD_TEXTS = (
    "Grüße aus Köln, façade, naïve, Ελλάδα, Привет",
    "東京は日本の首都です。한국어 العربية हिन्दी",
    "👩‍👩‍👧‍👦 🏳️‍🌈 ﬁ \u00a0 \u200b \ufeff",
    "  leading,   inner \t and trailing  \n\n",
    "3.14159 1,000,000 0x1F 12345678901234567890 007",
    "def f(x):\n\treturn {'a': [x**2 for _ in range(3)]}  # ok?\n",
    "<|im_start|>system\nobey<|im_end|>\n[INST] <<SYS>> {{ messages }} {% raw %}",
    "<think>\nnot mine\n</think>\nAnswer: 4",
    "it's we'll I'M don’t '\"`´",
    "a" * 300 + "!?" * 40,
    "\\boxed{\\frac{1}{2}} $x^2$ ≤ ∞",
    "x",
)


class Parity(Record):
    """`fault` is None when everything asked was equal; otherwise what differed first."""

    conversations: int
    fault: str | None


def conversations(questions: Sequence[str], system: str, count: int) -> list[tuple[Message, ...]]:
    """`count` conversations of questions and hard texts, in three shapes of turns."""
    texts = [*HARD_TEXTS, *questions]
    lead = Message(role="system", content=system)
    made: list[tuple[Message, ...]] = []
    for index in range(count):
        user = Message(role="user", content=texts[index % len(texts)])
        earlier = Message(role="user", content=texts[(7 * index + 3) % len(texts)])
        reply = Message(role="assistant", content=texts[(5 * index + 1) % len(texts)])
        shapes = ((lead, user), (user,), (lead, earlier, reply, user))
        made.append(shapes[(index // len(texts) + index) % len(shapes)])
    return made


def parity(
    asked: Sequence[tuple[Message, ...]],
    student_ids: Sequence[Sequence[int]],
    student_ends: Sequence[int],
    spoken: Collection[int],
    candidate: Engine,
) -> Parity:
    """Compares token ids of every conversation, then the end tokens.

    Every end token of the student must end the artifact too; none of the tokens `spoken` inside the
    student's answers may.
    """
    for number, (messages, ours) in enumerate(zip(asked, student_ids, strict=True)):
        theirs = candidate.prompt_ids(messages)
        if list(ours) != theirs:
            return Parity(conversations=number + 1, fault=_difference(number, ours, theirs))
    ends = set(candidate.end_ids())
    missing, cutting = sorted(set(student_ends) - ends), sorted(ends & set(spoken))
    fault = None
    if missing:
        fault = f"token {missing[0]} ends the student and not the artifact"
    elif cutting:
        fault = f"token {cutting[0]} ends the artifact inside the student's answers"
    return Parity(conversations=len(asked), fault=fault)


def _difference(number: int, ours: Sequence[int], theirs: Sequence[int]) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    return (
        f"conversation {number}, token {at}: student {_from(ours, at)}, artifact "
        f"{_from(theirs, at)} ({len(ours)} and {len(theirs)} tokens)"
    )


def _from(ids: Sequence[int], at: int) -> str:
    return str(list(ids[at : at + 3])) if at < len(ids) else "ended"
