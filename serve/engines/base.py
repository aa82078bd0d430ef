"""The Engine protocol: everything that answers has these verbs, whatever runs underneath."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serve.messages import Chunk, Completion, Grade, Message, Request, TokenScores

LogitsTV = npt.NDArray[np.float32]


class Engine(Protocol):
    """One loaded model.

    `batch_invariant` says that a completion depends on its own request alone, bit for bit, whatever
    else is answered at the same time (one that goes on from what was graded under its key depends
    on what was graded beside it); `block` is how many requests are answered together otherwise. A
    server, and vLLM, choose the company of a request by themselves: their answers come one by one
    as if they were invariant, and one that is drawn again may differ.
    """

    name: str
    batch_invariant: bool
    block: int

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The exact ids a conversation is answered after."""
        ...

    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer, in order."""
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        """Answer all requests, yielding (key, completion) as each finishes, in any order."""
        ...

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Answer one request piece by piece. Closing the iterator ends the work."""
        ...

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        """Log probabilities of `completion` after `messages`."""
        ...

    def grade(self, requests: Sequence[Request], top: int) -> list[Grade]:
        """What the model thinks of each begun answer; `top` tokens a place at most.

        The numbers depend by rounding on which answers are graded in one call.
        """
        ...

    def vocabulary(self) -> list[bytes | None]:
        """The bytes of every token id; None for tokens that are no text (marks of turns)."""
        ...

    def logits(self, ids: Sequence[int]) -> LogitsTV:
        """Next-token logits (T, V) at every position of `ids`."""
        ...

    def close(self) -> None:
        """Free the model. Safe to call twice."""
        ...
