"""Continuous batching over llama.cpp for people: every step decodes a token of each answer, or
several where they were guessed.

New prompts are read in the same batches, a part at a time, so that a long one does not hold up
those who are being answered. A slot keeps what it has read: the next turn of the same conversation,
or another conversation with the same beginning, is not read again. Unlike the engine that fills
trace stores, answers depend on their company, and on what was read or guessed before, by rounding:
no rows are padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from serve.engines.answer import Answer, check_length
from serve.engines.llama_draft import Draft, Wanted
from serve.engines.llama_native import DECODE_BATCH_TOKENS, LlamaModel, Row
from serve.engines.openings import OPENING_TOKENS, Openings
from serve.engines.prefixes import common_length
from serve.engines.sampling import pick_token
from serve.errors import CannotDo, EngineError
from serve.hardware import cores
from serve.messages import Chunk, Message, Request

# Prompt tokens a step while others are being answered: 64 double the time of a step of 8 rows.
READ_BESIDE_TOKENS = 64
# Newcomers go alone up to their first words, for so many tokens each and so many rows together:
# a row alone is done in a third of the time of a step of 8. An opening tag, which nobody sees, is
# four of them ("<think>", line feed).
FIRST_TOKENS, ALONE_ROWS = 5, 96
# A pass over the weights costs as much as two or three rows of one.
FILLED = 2
# Copying another slot's beginning costs about as much as reading so many tokens.
COPY_WORTH_TOKENS = 16


def load_live(
    path: Path,
    slots: int,
    context_tokens: int,
    threads: int | None,
    draft: str | None = None,
    draft_tokens: int = 4,
) -> LlamaLive:
    """Open a GGUF for `slots` people with `context_tokens` each.

    `draft`: another GGUF, which guesses `draft_tokens` ahead; `note` says why, where it cannot.
    """
    live = LlamaLive(path, slots, context_tokens, threads or cores())
    if draft is not None:
        try:
            live.guess_with(Path(draft), draft_tokens)
        except CannotDo as error:
            live.note = f"{error.args[0]}; it answers without a draft"
    return live


@dataclass(slots=True)
class _Talk:
    """An answer in a slot, its prompt's ids not read yet, and how much of it was told."""

    slot: int
    answer: Answer
    unread: list[int]
    told_characters: int = 0
    told_tokens: int = 0

    @property
    def fresh(self) -> bool:
        """Has hardly said a word yet, and does not go on from any."""
        request = self.answer.request
        goes_on = bool(request.messages and request.begun)
        return not goes_on and len(self.answer.ids) < FIRST_TOKENS


class _Part(NamedTuple):
    """Ids that a slot reads in one step, and how many of the last ones say how it goes on."""

    key: str
    ids: list[int]
    spoken: int


class LlamaLive:
    """One GGUF, `slots` conversations at a time. One thread drives it."""

    def __init__(self, path: Path, slots: int, context_tokens: int, threads: int) -> None:
        self.name, self.note = f"llama.cpp:{path.name}", ""
        self._model = LlamaModel(path, slots, context_tokens, threads)
        self._threads = threads
        self._draft: Draft | None = None
        self._draft_tokens = 0
        self._openings = Openings()
        self._alone_rows = 0
        self.context_tokens = self._model.context_tokens
        self._template = self._model.chat_template()
        self._talks: dict[str, _Talk] = {}
        # Ids whose keys and values lie in each slot, in order.
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._piece = cache(self._model.piece)
        self._ends = cache(self._model.ends)

    def guess_with(self, path: Path, tokens: int) -> None:
        """Raises CannotDo for a model of another vocabulary."""
        self._draft = Draft(path, len(self._held), self._model, self._threads)
        # Everyone's guesses go into one batch, with a row for each who makes none.
        self._draft_tokens = min(tokens, DECODE_BATCH_TOKENS // len(self._held) - 2)

    def close(self) -> None:
        self._model.close()
        if self._draft is not None:
            self._draft.close()

    def free(self) -> int:
        return len(self._held) - len(self._talks)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        return self._template.render(messages)

    def admit(self, key: str, request: Request) -> int:
        text = self._template.render(request.messages) if request.messages else ""
        ids = self._model.tokenize(text) + self._model.tokenize(request.begun, special=False)
        if not request.messages:  # a template writes its own
            ids = self._model.begin_ids() + ids
        if not ids:
            raise EngineError(f"an empty prompt cannot be answered ({self.name})")
        check_length(len(ids), self.context_tokens, self.name, request)
        slot, known = self._place(ids)
        known = self._keep(slot, known)
        self._talks[key] = _Talk(slot, Answer(request, len(ids), self._decode), ids[known:])
        return len(ids)

    def _place(self, ids: list[int]) -> tuple[int, int]:
        """A free slot, and how many of `ids` it holds: the last one is read for its logits."""
        taken = {talk.slot for talk in self._talks.values()}
        known = [min(common_length(held, ids), len(ids) - 1) for held in self._held]
        free = [slot for slot in range(len(known)) if slot not in taken]
        # Of two equally good slots the one that holds less is given away.
        slot = max(free, key=lambda s: (known[s], -len(self._held[s])))
        source = max(range(len(known)), key=known.__getitem__)
        if known[source] >= known[slot] + COPY_WORTH_TOKENS:
            self._model.clear_sequence(slot)
            self._model.copy_sequence(source, slot)
            self._held[slot] = list(self._held[source])
            return slot, known[source]
        return slot, known[slot]

    def _keep(self, slot: int, count: int) -> int:
        """Have a slot hold its first `count` ids, or none where it cannot forget a part."""
        if not self._model.clear_sequence(slot, count):
            self._model.clear_sequence(slot)
            count = 0
        del self._held[slot][count:]
        return count

    def cancel(self, key: str) -> None:
        self._talks.pop(key, None)

    def step(self) -> list[tuple[str, Chunk | EngineError]]:
        parts = self._parts()
        if not parts:
            return []
        rows, begins = self._rows(parts)
        self._model.decode(rows)
        for slot in {row.sequence for row in rows} - set(parts):
            self._keep(slot, len(self._held[slot]))
        told: list[tuple[str, Chunk | EngineError]] = []
        for slot, part in parts.items():
            self._held[slot] += part.ids
            if not part.spoken:
                continue
            talk, guess = self._talks[part.key], part.ids[len(part.ids) - part.spoken + 1 :]
            told += [(part.key, chunk) for chunk in self._take(talk, begins[slot], guess)]
            if talk.answer.finish:
                del self._talks[part.key]
        return told

    def _take(self, talk: _Talk, row: int, guess: Sequence[int]) -> Iterator[Chunk]:
        """A token at `row`, and one after each guessed token that was the right one."""
        answer = talk.answer
        for right in range(len(guess) + 1):
            logits_V = self._model.logits(row + right)
            token = pick_token(logits_V, answer.request.sampling, len(answer.ids))
            answer.accept(token, self._ends(token), self.context_tokens)
            if _begins(answer.request):
                self._openings.note(answer.ids, over=answer.finish is not None)
            yield from _news(talk)
            if answer.finish or right == len(guess) or token != guess[right]:
                break
        wrong = len(guess) - right
        if wrong:
            self._keep(talk.slot, len(self._held[talk.slot]) - wrong)

    def _guesses(self, talks: Sequence[_Talk]) -> list[list[int]]:
        if self._draft is None:
            return [[] for _ in talks]
        wanted = [
            Wanted(
                talk.slot,
                [*self._held[talk.slot], talk.answer.ids[-1]],
                talk.answer.request.sampling,
                len(talk.answer.ids),
                self._most(talk, self._draft_tokens),
            )
            for talk in talks
        ]
        return self._draft.guesses(wanted)

    def _most(self, talk: _Talk, tokens: int) -> int:
        """The last token of an answer is never a guess: nothing comes after it."""
        written = len(talk.answer.ids)
        left = talk.answer.request.sampling.max_tokens - written
        room = self.context_tokens - talk.answer.prompt_tokens - written
        return min(tokens, left - 1, room - 1)

    def _opening(self, talk: _Talk) -> list[int]:
        """How the answer may begin, read with the end of its prompt.

        Nothing is guessed of one that is drawn: more rows round otherwise, and what others were
        told before would decide whether a seed repeats its answer.
        """
        request = talk.answer.request
        drawn = request.sampling.temperature > 0
        if drawn or not (_begins(request) and self._model.forgets()):
            return []
        return self._openings.guess()[: max(self._most(talk, OPENING_TOKENS), 0)]

    def _parts(self) -> dict[int, _Part]:
        """For every slot what it reads next: a token said and those guessed, or a part of a prompt.

        Prompts have their turn in the order they came.
        """
        talks, alone = self._turn()
        speaking = [(key, talk) for key, talk in talks.items() if not talk.unread]
        guesses = self._guesses([talk for _, talk in speaking])
        parts = {
            talk.slot: _Part(key, [talk.answer.ids[-1], *guess], 1 + len(guess))
            for (key, talk), guess in zip(speaking, guesses, strict=True)
        }
        spoken = sum(len(part.ids) for part in parts.values())
        # Between those who read there may be a row for each who does not.
        room = DECODE_BATCH_TOKENS - spoken - (len(self._held) - len(parts))
        if parts or alone:
            room = min(room, READ_BESIDE_TOKENS)
        for key, talk in talks.items():
            ids, talk.unread = talk.unread[:room], talk.unread[room:]
            room -= len(ids)
            if ids:
                opening = [] if talk.unread else self._opening(talk)[:room]
                room -= len(opening)
                spoken = 0 if talk.unread else 1 + len(opening)
                parts[talk.slot] = _Part(key, [*ids, *opening], spoken)
        rows = sum(len(part.ids) for part in parts.values())
        self._alone_rows = self._alone_rows + rows if alone else 0
        return parts

    def _turn(self) -> tuple[dict[str, _Talk], bool]:
        """Whose step this is: newcomers' alone, as long as they may, or everyone's."""
        fresh = {key: talk for key, talk in self._talks.items() if talk.fresh}
        alone = 0 < len(fresh) < len(self._talks) and self._alone_rows < ALONE_ROWS
        return (fresh, True) if alone else (self._talks, False)

    def _rows(self, parts: Mapping[int, _Part]) -> tuple[list[Row], dict[int, int]]:
        """The next batch, and at which of its rows each slot's logits begin.

        llama.cpp takes neighbouring slots in one pass, in rising order, and begins another at every
        gap: a gap costs more than a row that nobody asked for.
        """
        rows: list[Row] = []
        begins: dict[int, int] = {}
        # A model that cannot forget a part would keep what such a row wrote.
        for slot in _without_gaps(parts) if self._model.forgets() else sorted(parts):
            first = len(self._held[slot])
            if slot not in parts:
                if first < self.context_tokens:
                    rows.append(Row(0, first, slot, False))
                continue
            ids, silent = parts[slot].ids, len(parts[slot].ids) - parts[slot].spoken
            begins[slot] = len(rows) + silent
            rows += [Row(t, first + i, slot, i >= silent) for i, t in enumerate(ids)]
        return rows, begins

    def _decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._piece, ids)).decode("utf-8", "replace")


def _begins(request: Request) -> bool:
    """Whether a chat's answer is written from its first token on."""
    return bool(request.messages) and not request.begun


def _without_gaps(slots: Iterable[int]) -> list[int]:
    """The slots in rising order, and those between two that are at most FILLED apart."""
    filled: list[int] = []
    for slot in sorted(slots):
        if filled and slot - filled[-1] - 1 <= FILLED:
            filled += range(filled[-1] + 1, slot)
        filled.append(slot)
    return filled


def _news(talk: _Talk) -> Iterator[Chunk]:
    """What can be told now and was not yet."""
    answer = talk.answer
    text, tokens = answer.settled()[talk.told_characters :], len(answer.ids) - talk.told_tokens
    if text or answer.finish:
        talk.told_characters += len(text)
        talk.told_tokens += tokens
        yield Chunk(text=text, tokens=tokens, finish=answer.finish)
