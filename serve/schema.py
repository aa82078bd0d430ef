"""What the server takes: OpenAI's words, and two of its own. Every field has its bounds.

A field that is not here is refused by name, so that nobody believes it was heeded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.limits import BODY_LIMIT_BYTES
from serve.messages import Message, Sampling

LONGEST_ANSWER_TOKENS = 131_072
MOST_MESSAGES = 256
# A bound makes pydantic see to it that the text is Unicode: JSON can spell half a character.
Text = Annotated[str, Field(max_length=BODY_LIMIT_BYTES)]
Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Limit = Annotated[int, Field(ge=1, le=LONGEST_ANSWER_TOKENS)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Asked):
    type: Literal["text"]
    text: Text


class Turn(_Asked):
    """One message. `name` is taken and not used."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=MOST_MESSAGES)]
    name: str | None = Field(None, max_length=64)

    def message(self) -> Message:
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return Message(role="system" if self.role == "developer" else self.role, content=text)


class StreamOptions(_Asked):
    include_usage: bool = False


class _Question(_Asked):
    """What both routes share. Without a temperature answers are greedy, as they were measured."""

    model: str | None = Field(None, max_length=200)
    temperature: Temperature | None = 0.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = 0
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    n: Literal[1] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: Limit | None = None
    user: str | None = Field(None, max_length=200)

    def sampling(self) -> Sampling:
        stop = self.stop or []
        return Sampling(
            temperature=self.temperature or 0.0,
            top_p=self.top_p or 1.0,
            seed=self.seed or 0,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatQuestion(_Question):
    """`/v1/chat/completions`.

    `reasoning_budget`: after so many tokens of reasoning the answer is asked for; 0 for none.
    `budget_forcing`: how many times the end of reasoning is put off with "Wait" (s1).
    """

    messages: list[Turn] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: Limit | None = None
    reasoning_budget: Annotated[int, Field(ge=0, le=LONGEST_ANSWER_TOKENS)] | None = None
    budget_forcing: Annotated[int, Field(ge=0, le=8)] = 0


class TextQuestion(_Question):
    """`/v1/completions`: the prompt as it stands, no chat template, nothing taken apart."""

    prompt: Annotated[Text, Field(min_length=1)]
