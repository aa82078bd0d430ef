"""A grade out of what vLLM's server says of a prompt (`prompt_logprobs`, `return_token_ids`)."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from serve.errors import CannotDo, EngineError
from serve.messages import Grade, TokenScores


def grade_of_prompt(reply: dict[str, Any], answer: str, engine: str) -> Grade:
    """The grade of `answer`, the last finished turn of the prompt that was replied to; of nothing
    where the template changed it or a token joins it to what stands around it.

    Raises CannotDo when the server said nothing of it, EngineError when it said half.
    """
    rows, ids = reply.get("prompt_logprobs"), reply.get("prompt_token_ids")
    if not rows or not ids:
        raise CannotDo(
            f"{engine} cannot score a given text: its reply has no prompt_logprobs",
            hint="vLLM's server has them; or take a method that needs none, as recover",
        )
    try:
        listed = [_listed(row) for row in rows]
        texts = [
            str(row[str(i)]["decoded_token"]) if row else ""
            for row, i in zip(rows, ids, strict=True)
        ]
        places = _places(texts, answer)
        if places is None:
            return Grade.of_nothing(read_tokens=len(ids))
        first, after = places
        own = [float(rows[t][str(ids[t])]["logprob"]) for t in range(first, after + 1)]
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{engine}: prompt_logprobs lack {error}") from error
    ends = list(accumulate(len(text.encode()) for text in texts[first:after]))
    return Grade(
        scores=TokenScores(
            ids=tuple(ids[first:after]),
            byte_offsets=(0, *ends[:-1]),
            logprobs_nats=tuple(own[:-1]),
        ),
        top_ids=tuple(tuple(i for i, _ in listed[t]) for t in range(first, after + 1)),
        top_logprobs_nats=tuple(tuple(x for _, x in listed[t]) for t in range(first, after + 1)),
        end_nats=own[-1],
        read_tokens=len(ids),
        text_bytes=ends[-1],
    )


def _listed(row: dict[str, Any] | None) -> list[tuple[int, float]]:
    """(id, log probability), best first."""
    pairs = [(int(i), float(token["logprob"])) for i, token in (row or {}).items()]
    return sorted(pairs, key=lambda pair: -pair[1])


def _places(texts: list[str], answer: str) -> tuple[int, int] | None:
    """Index of the answer's first token and of the one after its last, if it is whole tokens."""
    starts = list(accumulate((len(text) for text in texts), initial=0))
    at = "".join(texts).rfind(answer)
    if at < 0 or at not in starts or at + len(answer) not in starts[:-1]:
        return None
    # Empty tokens share a start: the answer begins at the last of them and ends before the first.
    first = len(starts) - 1 - starts[::-1].index(at)
    return first, starts.index(at + len(answer))
