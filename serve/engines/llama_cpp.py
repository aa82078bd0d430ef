"""GGUF engine: continuous batching over llama.cpp with a shared prompt prefix.

Slots are refilled as sequences end. The prefix that requests share (system prompt and worked
examples) is decoded once in a stream of its own and copied; so is a prompt asked several times in a
row.

A completion depends on its request alone, bit for bit, so that a resumed run writes the same bytes:
each prompt is decoded by itself, and every step decodes a fixed number of rows (idle ones padded),
because llama.cpp's matrix kernels round differently for the last `rows % 4` rows of a batch. One
that follows on a call of `grade` with its key goes on from what was read there, and so depends on
the answers graded beside it too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from serve.engines.answer import Answer, check_length, chunks
from serve.engines.base import LogitsTV
from serve.engines.kept_states import KeptStates
from serve.engines.llama_native import DECODE_BATCH_TOKENS, LlamaModel, Row
from serve.engines.prefixes import Prompt, Prompts, by_lead, common_length
from serve.engines.sampling import pick_token
from serve.engines.scoring import Grader, scores_of
from serve.errors import EngineError
from serve.hardware import cores
from serve.messages import Chunk, Completion, Grade, Message, Request, TokenScores

# Row counts a step may have: kernels treat rows in groups of four and sixteen.
SMALLEST_STEP_ROWS = 4
IDLE_TOKEN = 0
# Of each prompt and answer that are graded, so many tokens are read before grading may stop. With
# fewer of one sequence in a pass llama.cpp takes another, slower way through attention.
GRADED_AT_ONCE = 64


def load(
    path: Path,
    slots: int = 32,
    context_tokens: int = 1024,
    threads: int | None = None,
    prefixes: int = 1,
) -> LlamaCppEngine:
    """Open a GGUF with `slots` sequences answered at a time, and that many prefixes kept."""
    return LlamaCppEngine(path, slots, context_tokens, threads or cores(), prefixes)


@dataclass(slots=True)
class _Sequence:
    """An answer in a slot, and the prompt it was put there with."""

    prompt: Prompt
    answer: Answer

    @property
    def next_position(self) -> int:
        return self.prompt.length + len(self.answer.ids) - 1


@dataclass(slots=True)
class _Reading:
    """An answer being graded in its slot: `ids` of prompt and answer, `read` of them so far."""

    prompt: Prompt
    ids: tuple[int, ...]
    read: int
    grader: Grader
    slot: int = -1

    @property
    def left(self) -> int:
        return len(self.ids) - self.read

    def rows(self, count: int) -> list[Row]:
        """The next ones; those beyond the end stand for nothing."""
        ids = (*self.ids[self.read : self.read + count], *[IDLE_TOKEN] * (count - self.left))
        wanted = range(self.prompt.length - 1, len(self.ids))
        return [Row(t, i, self.slot, i in wanted) for i, t in enumerate(ids, self.read)]

    def is_done(self) -> bool:
        return not self.left or self.grader.has_enough()


class LlamaCppEngine:
    """One GGUF, `slots` conversations at a time.

    One caller at a time: a lock guards the context.
    """

    batch_invariant = True
    block = 1

    def __init__(
        self, path: Path, slots: int, context_tokens: int, threads: int, prefixes: int = 1
    ) -> None:
        self.name = f"llama.cpp:{path.name}"
        self._slots = max(SMALLEST_STEP_ROWS, 1 << (slots - 1).bit_length())
        self._prefix_streams = range(self._slots, self._slots + prefixes)
        self._prompt_stream = self._slots + prefixes
        self.model = LlamaModel(path, self._slots + prefixes + 1, context_tokens, threads)
        self._kept_states = KeptStates(self.model, threads)
        self._template = self.model.chat_template()
        # Stream of each prefix that is kept, the one longest unused first.
        self._stream_by_prefix: dict[tuple[int, ...], int] = {}
        self._prompt_read: tuple[Prompt, LogitsTV] | None = None
        # By key, what was graded last: its slot still holds it.
        self._graded: dict[str, _Reading] = {}
        self._prompts = Prompts(self.prompt_ids)
        self._lock = threading.Lock()
        self._piece = cache(self.model.piece)

    def close(self) -> None:
        self.model.close()

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self.model.tokenize(self._template.render(messages))

    def end_ids(self) -> tuple[int, ...]:
        return self._end_ids

    @cached_property
    def _end_ids(self) -> tuple[int, ...]:
        """A call a token of the vocabulary: not for those who only chat."""
        return tuple(t for t in range(self.model.vocabulary_size) if self.model.ends(t))

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        with self._lock:
            yield from self._generate(requests)

    def _generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        active = self._go_on(requests)
        begun = [id(sequence.answer.request) for sequence in active.values()]
        # Requests with the same leading messages are neighbours, so each prefix is decoded once.
        others = (r for r in requests if id(r) not in begun)
        pending = deque(sorted(others, key=lambda r: by_lead(r.messages)))
        rows = self._slots
        while pending or active:
            for slot in range(self._slots):
                if pending and slot not in active:
                    active[slot] = self._admit(slot, pending.popleft())
            yield from self._retire(active)
            if not pending:
                rows = self._compact(active, rows)
            if active:
                self._step(active, rows)
                yield from self._retire(active)

    def _go_on(self, requests: Sequence[Request]) -> dict[int, _Sequence]:
        """Answers to requests of those keys that were graded last, each in the slot that has read
        its beginning; by slot. What was graded is forgotten."""
        graded, self._graded = self._graded, {}
        active = {}
        for request in requests:
            one = graded.pop(request.key, None)
            if one is None:
                continue
            sequence = self._sequence_of(request)
            ids = (*sequence.prompt.shared, *sequence.prompt.own)
            kept = min(common_length(one.ids[: one.read], ids), len(ids) - 1)
            if self.model.clear_sequence(one.slot, kept):
                row = self._prefill(one.slot, ids[kept:], kept)
                self._accept(sequence, self.model.logits(row))
                active[one.slot] = sequence
        return active

    def _sequence_of(self, request: Request) -> _Sequence:
        prompt = self._prompts.cut(request.messages, request.opening)
        if request.begun:
            begun = self.model.tokenize(request.begun, special=False)
            prompt = prompt._replace(own=(*prompt.own, *begun))
        check_length(prompt.length, self.model.context_tokens, self.name, request)
        return _Sequence(prompt, Answer(request, prompt.length, self._decode))

    def _admit(self, slot: int, request: Request) -> _Sequence:
        """Put one prompt into `slot` and draw its first token."""
        sequence = self._sequence_of(request)
        logits_V = self._read_prompt(sequence.prompt)
        self.model.clear_sequence(slot)
        self.model.copy_sequence(self._prompt_stream, slot)
        self._accept(sequence, logits_V)
        return sequence

    def _read_prompt(self, prompt: Prompt) -> LogitsTV:
        """Decode `prompt` into its stream unless it is there; the logits (V,) that follow it."""
        if self._prompt_read is None or self._prompt_read[0] != prompt:
            self._prompt_read = None
            self._read_shared(prompt, self._prompt_stream)
            row = self._prefill(self._prompt_stream, prompt.own, len(prompt.shared))
            self._prompt_read = (prompt, self.model.logits(row).copy())
        return self._prompt_read[1]

    def _read_shared(self, prompt: Prompt, slot: int) -> None:
        """`slot` then holds the shared part of `prompt` alone, decoded once for all that share."""
        stream = self._stream_of(prompt.shared) if prompt.shared else None
        self.model.clear_sequence(slot)
        if stream is not None:
            self.model.copy_sequence(stream, slot)

    def _stream_of(self, shared: tuple[int, ...]) -> int:
        """The stream that holds `shared`, decoded there unless it is."""
        stream = self._stream_by_prefix.pop(shared, None)
        if stream is None:
            free = set(self._prefix_streams) - set(self._stream_by_prefix.values())
            stream = min(free) if free else self._evicted()
            self.model.clear_sequence(stream)
            if not self._kept_states.restore(shared, stream):
                started_s = time.monotonic()
                self._prefill(stream, shared, 0)
                self._kept_states.keep(shared, stream, time.monotonic() - started_s)
        self._stream_by_prefix[shared] = stream
        return stream

    def _evicted(self) -> int:
        """The stream of the prefix longest unused, empty.

        llama.cpp copies sequences at the next decoding. What was copied from this one must not be
        what is restored into it before that.
        """
        stream = self._stream_by_prefix.pop(next(iter(self._stream_by_prefix)))
        self.model.clear_sequence(stream)
        self.model.decode([Row(IDLE_TOKEN, 0, stream, False)])
        return stream

    def _prefill(self, slot: int, ids: Sequence[int], first_position: int) -> int:
        """Decode `ids` into `slot`; returns the row whose logits follow the last id."""
        row = -1
        for start in range(0, len(ids), DECODE_BATCH_TOKENS):
            part = ids[start : start + DECODE_BATCH_TOKENS]
            last = start + len(part) == len(ids)
            self.model.decode(
                [
                    Row(token, first_position + start + i, slot, last and i == len(part) - 1)
                    for i, token in enumerate(part)
                ]
            )
            row = len(part) - 1
        return row

    def _step(self, active: dict[int, _Sequence], rows: int) -> None:
        """One token for every active slot; idle slots below `rows` decode a token nobody reads."""
        batch = []
        for slot in range(rows):
            sequence = active.get(slot)
            if sequence is None:
                self.model.clear_sequence(slot)
                batch.append(Row(IDLE_TOKEN, 0, slot, True))
            else:
                batch.append(Row(sequence.answer.ids[-1], sequence.next_position, slot, True))
        self.model.decode(batch)
        for slot, sequence in active.items():
            self._accept(sequence, self.model.logits(slot))

    def _accept(self, sequence: _Sequence, logits_V: LogitsTV) -> None:
        """Draw the next token."""
        answer = sequence.answer
        token = pick_token(logits_V, answer.request.sampling, len(answer.ids))
        answer.accept(token, self.model.ends(token), self.model.context_tokens)

    def _decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._piece, ids)).decode("utf-8", "replace")

    def _retire(self, active: dict[int, _Sequence]) -> Iterator[tuple[str, Completion]]:
        for slot in [s for s, sequence in active.items() if sequence.answer.finish]:
            answer = active.pop(slot).answer
            yield answer.request.key, answer.completion()

    def _compact(self, active: dict[int, _Sequence], rows: int) -> int:
        """Halve the step while the remaining sequences fit, moving those above into free slots."""
        while rows // 2 >= max(SMALLEST_STEP_ROWS, len(active)):
            rows //= 2
        free = iter([slot for slot in range(rows) if slot not in active])
        for slot in [s for s in active if s >= rows]:
            target = next(free)
            self.model.clear_sequence(target)
            self.model.copy_sequence(slot, target)
            active[target] = active.pop(slot)
        return rows

    def stream(self, request: Request) -> Iterator[Chunk]:
        """One conversation alone, one row a step: the fastest first token, no padding."""
        with self._lock:
            self._graded = {}
            yield from chunks(self._steps_alone(self._admit(0, request)))

    def _steps_alone(self, sequence: _Sequence) -> Iterator[Answer]:
        while True:
            yield sequence.answer
            row = Row(sequence.answer.ids[-1], sequence.next_position, 0, True)
            self.model.decode([row])
            self._accept(sequence, self.model.logits(0))

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        prompt = self.prompt_ids(messages)
        ids = self.model.tokenize(completion, special=False)
        logits_TV = self.logits([*prompt, *ids])[len(prompt) - 1 : -1]
        ends = accumulate(len(self.model.piece(token)) for token in ids)
        return scores_of(ids, list(ends), logits_TV)

    def grade(self, requests: Sequence[Request], top: int) -> list[Grade]:
        """As many answers at a time as there are slots, which then hold what was read."""
        grades: list[Grade] = []
        with self._lock:
            for start in range(0, len(requests), self._slots):
                grades += self._grade_together(requests[start : start + self._slots], top)
        return grades

    def _grade_together(self, requests: Sequence[Request], top: int) -> list[Grade]:
        self._graded, self._prompt_read = {}, None
        asked = [self._reading(request, top) for request in requests]
        unread = sorted(asked, key=lambda one: -one.left)
        together = DECODE_BATCH_TOKENS // GRADED_AT_ONCE
        for slot, one in enumerate(unread):
            one.slot = slot
            self._read_shared(one.prompt, slot)
        while unread:
            self._close_ranks(asked, unread)
            for start in range(0, len(unread), together):
                self._read_some(unread[start : start + together])
            unread = [one for one in unread if not one.is_done()]
        self._graded = {r.key: one for r, one in zip(requests, asked, strict=True)}
        return [one.grader.grade(one.read - len(one.prompt.shared)) for one in asked]

    def _close_ranks(self, asked: Sequence[_Reading], unread: Sequence[_Reading]) -> None:
        """Give `unread` the first slots, in that order: llama.cpp reads neighbours in one pass."""
        in_slot, spare = {one.slot: one for one in asked}, self._prompt_stream
        for slot, one in enumerate(unread):
            if one.slot == slot:
                continue
            other, left = in_slot[slot], one.slot
            for source, target in ((left, spare), (slot, left), (spare, slot)):
                self.model.clear_sequence(target)
                self.model.copy_sequence(source, target)
            one.slot, other.slot = slot, left
            in_slot[slot], in_slot[left] = one, other

    def _read_some(self, together: Sequence[_Reading]) -> None:
        """Equal numbers of tokens of each: llama.cpp cuts a pass where one of several ends."""
        count = min(GRADED_AT_ONCE, max(one.left for one in together))
        room = self.model.context_tokens if self.model.forgets() else 0
        own = [min(count, max(one.left, room - one.read)) for one in together]
        rows = [(o, row) for o, c in zip(together, own, strict=True) for row in o.rows(c)]
        self.model.decode([row for _, row in rows])
        for index, (one, row) in enumerate(rows):
            if row.wants_logits:
                one.grader.add(self.model.logits(index))
        for one in together:
            one.read += min(count, one.left)
            self.model.clear_sequence(one.slot, one.read)

    def _reading(self, request: Request, top: int) -> _Reading:
        prompt = self._prompts.cut(request.messages, request.opening)
        ids = self.model.tokenize(request.begun, special=False)
        check_length(prompt.length + len(ids), self.model.context_tokens, self.name, request)
        ends = list(accumulate(len(self._piece(token)) for token in ids))
        grader = Grader(ids, ends, self._end_ids, top, request.stop_below)
        whole = (*prompt.shared, *prompt.own, *ids)
        return _Reading(prompt, whole, len(prompt.shared), grader)

    def vocabulary(self) -> list[bytes | None]:
        return [self._piece(token) or None for token in range(self.model.vocabulary_size)]

    def logits(self, ids: Sequence[int]) -> LogitsTV:
        if len(ids) > self.model.context_tokens:
            raise EngineError(
                f"{len(ids)} tokens do not fit {self.model.context_tokens} tokens ({self.name})"
            )
        with self._lock:
            self._graded = {}
            self.model.clear_sequence(0)
            parts = []
            for start in range(0, len(ids), DECODE_BATCH_TOKENS):
                part = ids[start : start + DECODE_BATCH_TOKENS]
                self.model.decode([Row(t, start + i, 0, True) for i, t in enumerate(part)])
                parts += [self.model.logits(i).copy() for i in range(len(part))]
            return np.stack(parts)
