"""Questions of many people to one live model, answered with their reasoning apart."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field

from serve.errors import EngineError, RetortError
from serve.live import Live
from serve.messages import Chunk, Message, Record, Request, Sampling
from serve.reasoning import FORMS, Tags, TagsName
from serve.thinking import ReplyFinish, Thinking

# An answer without a limit of its own.
ANSWER_TOKENS = 1024


class Ask(Record):
    """One question. Without messages, `begun` is the whole prompt and nothing is taken apart.

    `max_tokens` counts everything that is written, forced words not. `reasoning_budget` is a number
    of tokens; `waits` how many times the end of reasoning is put off. `tags`: those the model was
    taught, for reasoning that is closed before it wrote any.
    """

    messages: tuple[Message, ...] = ()
    begun: str = ""
    sampling: Sampling = Sampling()
    max_tokens: int | None = Field(None, ge=1)
    reasoning_budget: int | None = Field(None, ge=0)
    waits: int = Field(0, ge=0)
    tags: TagsName = "think"


class Reply(Record):
    """A piece of an answer. The first one says how long the prompt was, the last one `finish`.

    `error` ends an answer that could not be had; `refused` says that the question is at fault.
    """

    prompt_tokens: int | None = None
    reasoning: str = ""
    content: str = ""
    tokens: int = 0
    reasoning_tokens: int = 0
    finish: ReplyFinish | None = None
    error: str | None = None
    refused: bool = False

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(slots=True)
class _Talk:
    ask: Ask
    thinking: Thinking | None
    limit_tokens: int
    tokens: int = 0
    restarts: int = 0


@dataclass
class Conversations:
    """Those being answered and those waiting for a slot. One thread drives it."""

    live: Live
    _talks: dict[str, _Talk] = field(default_factory=dict)
    _waiting: deque[tuple[str, Ask]] = field(default_factory=deque)

    def busy(self) -> bool:
        return bool(self._talks or self._waiting)

    def ask(self, key: str, ask: Ask) -> None:
        self._waiting.append((key, ask))

    def cancel(self, key: str) -> None:
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != key)
        if self._talks.pop(key, None) is not None:
            self.live.cancel(key)

    def step(self) -> list[tuple[str, Reply]]:
        """Admit who can be, and a token for everyone. Raises EngineError when the model fails."""
        told = []
        while self._waiting and self.live.free():
            key, ask = self._waiting.popleft()
            told.append((key, self._admit(key, ask)))
        begun_anew: set[str] = set()
        for key, chunk in self.live.step():
            talk = self._talks.get(key)
            if talk is None or key in begun_anew:
                continue  # the rest of what was said before the answer was ended or changed
            if isinstance(chunk, EngineError):
                del self._talks[key]
                told.append((key, Reply(error=str(chunk.args[0]))))
                continue
            restarts = talk.restarts
            reply = self._reply(key, talk, chunk)
            if talk.restarts > restarts:
                begun_anew.add(key)
            if reply.last:
                del self._talks[key]
                self.live.cancel(key)
            told.append((key, reply))
        return told

    def _admit(self, key: str, ask: Ask) -> Reply:
        """Begin an answer. What a question is refused for is its own affair: a prompt that is too
        long, a template that does not take such turns, half a surrogate pair."""
        room = self.live.context_tokens
        try:
            thinking = self._thinking(ask) if ask.messages else None
            talk = _Talk(ask, thinking, ask.max_tokens or ANSWER_TOKENS)
            begun = thinking.begin() if thinking else ask.begun
            prompt = self.live.admit(key, _request(key, talk, begun))
        except RetortError as error:
            return Reply(error=str(error.args[0]), refused=True)
        except UnicodeError as error:
            return Reply(error=f"the text is not Unicode: {error}", refused=True)
        if ask.max_tokens is not None and prompt + ask.max_tokens > room:
            self.live.cancel(key)
            told = f"prompt of {prompt} tokens and answer of {ask.max_tokens} exceed {room} tokens"
            return Reply(error=told, refused=True)
        self._talks[key] = talk
        return Reply(prompt_tokens=prompt)

    def _thinking(self, ask: Ask) -> Thinking:
        opened = self._opened(ask.messages)
        return Thinking(opened, ask.reasoning_budget, ask.waits, FORMS[ask.tags])

    def _opened(self, messages: Sequence[Message]) -> Tags | None:
        """The tag that the template itself opens for the model."""
        text = self.live.prompt_text(messages).rstrip()
        return next((tags for tags in FORMS.values() if text.endswith(tags.opens)), None)

    def _reply(self, key: str, talk: _Talk, chunk: Chunk) -> Reply:
        talk.tokens += chunk.tokens
        if talk.thinking is None:
            return Reply(content=chunk.text, tokens=chunk.tokens, finish=chunk.finish)
        turn = talk.thinking.feed(chunk)
        finish = turn.finish
        if turn.begun is not None and not self._restart(key, talk, turn.begun):
            finish = "length"
        return Reply(
            reasoning="".join(text for part, text in turn.parts if part == "reasoning"),
            content="".join(text for part, text in turn.parts if part == "answer"),
            tokens=chunk.tokens,
            reasoning_tokens=talk.thinking.reasoning_tokens,
            finish=finish,
        )

    def _restart(self, key: str, talk: _Talk, begun: str) -> bool:
        """Go on from `begun`; False where no token is left for it."""
        self.live.cancel(key)
        talk.restarts += 1
        if talk.tokens >= talk.limit_tokens:
            return False
        try:
            self.live.admit(key, _request(key, talk, begun))
        except RetortError:  # the forced words filled the context
            return False
        return True


def _request(key: str, talk: _Talk, begun: str) -> Request:
    sampling = talk.ask.sampling
    changed = {
        "max_tokens": talk.limit_tokens - talk.tokens,
        # Numbers are drawn by position, and a new beginning counts from none.
        "seed": (sampling.seed + talk.restarts) % 2**63,
    }
    return Request(
        key=key,
        messages=talk.ask.messages,
        sampling=sampling.model_copy(update=changed),
        begun=begun,
    )
