"""The words every part speaks: messages in, completions, chunks and token scores out."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Finish = Literal["stop", "length"]


class Record(BaseModel):
    """A frozen record that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class Sampling(Record):
    """How one completion is drawn. Temperature 0 is greedy; the seed then changes nothing."""

    temperature: float = Field(0.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(256, ge=1, le=131_072)
    seed: int = Field(0, ge=0, lt=2**63)
    stop: tuple[str, ...] = ()


class Request(Record):
    """One question to an engine. `key` names the answer; engines do not interpret it, but may go on
    from what they just graded under the same one.

    `opening` is how the last message begins here and in other requests with the same leading
    messages: an engine may read that once. It asks nothing by itself.
    `begun` is how the answer begins already: `generate` goes on from there and returns what
    follows, `grade` says what the model thinks of it. Without messages it is the whole prompt,
    as it stands: no chat template is rendered.
    `stop_below`: grading may end a few tokens after one of a probability below it.
    """

    key: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    opening: str = ""
    begun: str = ""
    stop_below: float | None = None


class Timing(Record):
    first_token_s: float
    total_s: float


class Completion(Record):
    """One answer of one model. `length` means the token limit cut it: never treated as `stop`.

    `ids` are the generated token ids without the end token (empty when the engine hides them);
    `timing` is absent from stored records, because a resumed run must write the same bytes.
    """

    text: str
    ids: tuple[int, ...] = ()
    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    timing: Timing | None = None


class Chunk(Record):
    """A piece of a streamed answer; the last one carries `finish`."""

    text: str = ""
    tokens: int = 0
    finish: Finish | None = None


class TokenScores(Record):
    """Natural-log probabilities of a given completion, token by token.

    `byte_offsets[i]` is where token i starts in the UTF-8 bytes of the completion.
    """

    ids: tuple[int, ...]
    byte_offsets: tuple[int, ...]
    logprobs_nats: tuple[float, ...]


class Grade(Record):
    """What a model thinks of a begun answer: of each of its T tokens, and of ending after them.

    Row t of `top_ids` and `top_logprobs_nats` holds the likeliest tokens in the place of token t,
    best first; row T those after the last one. `end_nats` is the log probability of ending there;
    `read_tokens` is what had to be read for it, without what other answers share, `text_bytes` what
    the tokens spell: not the whole text where it could not be graded. `stopped_at`: the byte where
    grading ended, as `Request.stop_below` allows; there is no row T then, and no end.
    """

    scores: TokenScores
    top_ids: tuple[tuple[int, ...], ...]
    top_logprobs_nats: tuple[tuple[float, ...], ...]
    end_nats: float
    read_tokens: int
    text_bytes: int
    stopped_at: int | None = None

    @classmethod
    def of_nothing(cls, read_tokens: int) -> Grade:
        """What was read could not be told apart from what stands around it."""
        scores = TokenScores(ids=(), byte_offsets=(), logprobs_nats=())
        return cls(
            scores=scores,
            top_ids=((),),
            top_logprobs_nats=((),),
            end_nats=0.0,
            read_tokens=read_tokens,
            text_bytes=0,
        )
