"""What method `exact` learns from at each step: the student's attempts, and traces between them.

Everything drawn follows from the run's seed and the attempt's number, so that a resumed training
draws what the killed one would have.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from pipeline.attempts import in_practice_order, seed_of
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions
from pipeline.records import Example, Problem
from pipeline.supervise import rendered_answer
from serve.engines.transformers import TransformersEngine
from serve.messages import Message, Request, Sampling

# Of an attempt: prompt, key and seed; of a trace: prompt, and the ids that are said.
Row = dict[str, Any]


def with_traces(options: OnPolicyOptions, traces: Sized) -> OnPolicyOptions:
    """With no more to replay than there are."""
    return options.model_copy(update={"replay": min(options.replay, len(traces))})


def trace_rows(examples: Sequence[Example], tokenizer: Any) -> list[Row]:
    """SFT's examples as rows of practice: the texts whose tokens the teacher's distribution is
    compared on in the place of an attempt's (lambda below 1 in arXiv 2306.13649, section 3)."""
    rows = []
    for example in sorted(examples, key=lambda e: e.key):
        ids, first = rendered_answer(example, tokenizer)
        said = ids[first:]
        ends = [i for i, token in enumerate(said) if token == tokenizer.eos_token_id]
        rows.append(
            {"prompt": list(example.prompt), "said": said[: ends[-1] + 1 if ends else None]}
        )
    return rows


class Practice:
    """Row after row: at which problem an attempt is made, from which seed, and which trace is
    replayed between them. A data set for the trainer."""

    def __init__(
        self,
        problems: Sequence[Problem],
        student: StudentOptions,
        options: OnPolicyOptions,
        seed: int,
        traces: Sequence[Row] = (),
    ) -> None:
        self._problems, self._traces = in_practice_order(problems, seed), traces
        self._student, self._seed = student, seed
        self._options = with_traces(options, traces)

    def __len__(self) -> int:
        return planned_steps(self._options) * self._options.batch_lessons

    def __getitem__(self, row: int) -> Row:
        """`row` counts over all steps; the list of problems begins again when it is through."""
        rows = steps_of_block(self._options) * self._options.batch_lessons
        block, place = divmod(row, rows)
        traces = self._replayed(block, rows)
        if place in traces:
            return self._traces[traces[place]]
        before = sum(other < place for other in traces)
        return self._attempt(block * (rows - self._options.replay) + place - before)

    def _replayed(self, block: int, rows: int) -> dict[int, int]:
        """Of a block: place -> trace, all over it."""
        draw = random.Random(seed_of(self._seed, "mix", block))  # noqa: S311 an order, no secret
        count = self._options.replay
        places, traces = draw.sample(range(rows), count), range(len(self._traces))
        return dict(zip(places, draw.sample(traces, count), strict=True))

    def _attempt(self, attempt: int) -> Row:
        problem = self._problems[attempt // self._options.samples % len(self._problems)]
        messages = student_messages(self._student, problem.question)
        return {
            "prompt": [message.model_dump() for message in messages],
            "key": str(attempt),
            "seed": seed_of(self._seed, "exact", attempt, problem.key),
        }


def planned_steps(options: OnPolicyOptions) -> int:
    """Of options that `with_traces` has seen."""
    return options.blocks * steps_of_block(options)


def steps_of_block(options: OnPolicyOptions) -> int:
    return math.ceil((options.block_attempts + options.replay) / options.batch_lessons)


class ExactSampler:
    """Draws attempts from a copy of the student, in the dtype that is fast where it runs."""

    def __init__(self, engine: TransformersEngine, options: OnPolicyOptions) -> None:
        self.engine, self._options = engine, options
        self.drawn_tokens = 0

    def draw(self, student: Any, asked: Sequence[Row]) -> dict[str, torch.Tensor]:
        """One answer a row, the student's or a trace's, as TRL holds them: prompts (B, P) end
        together, answers (B, A) begin together; an answer that ended has its end token. Masks are 1
        at what is theirs. `drawn_tokens` are those of the student's."""
        self.take_weights(student)
        wanted = [self._request(row) for row in asked if "said" not in row]
        answers = dict(self.engine.generate(wanted))
        ends = [self.engine.tokenizer.eos_token_id]
        prompts, attempts, self.drawn_tokens = [], [], 0
        for row in asked:
            prompts.append(self.engine.prompt_ids([Message(**turn) for turn in row["prompt"]]))
            if "said" in row:
                attempts.append(row["said"])
                continue
            answer = answers[row["key"]]
            attempts.append([*answer.ids, *(ends if answer.finish == "stop" else [])])
            self.drawn_tokens += len(attempts[-1])
        device = self.engine.model.device
        prompt_BP, prompt_mask_BP = _padded(prompts, ends[0], "left", device)
        answer_BA, answer_mask_BA = _padded(attempts, ends[0], "right", device)
        return {
            "prompt_ids": prompt_BP,
            "prompt_mask": prompt_mask_BP,
            "completion_ids": answer_BA,
            "completion_mask": answer_mask_BA,
        }

    @torch.no_grad()
    def take_weights(self, student: Any) -> None:
        """Answer with the weights as they are now; of shares every process gives its own."""
        with gathered(student):
            pairs = zip(self.engine.model.parameters(), student.parameters(), strict=True)
            for copied, trained in pairs:
                copied.copy_(whole(trained))

    def _request(self, row: Row) -> Request:
        return Request(
            key=row["key"],
            messages=tuple(Message(**turn) for turn in row["prompt"]),
            sampling=Sampling(
                temperature=self._options.temperature,
                max_tokens=self._options.max_tokens,
                seed=row["seed"],
            ),
        )


def gathered(student: Any) -> AbstractContextManager[Any]:
    """In it every parameter of ZeRO-3 is whole; every process enters."""
    if not any(hasattr(parameter, "ds_id") for parameter in student.parameters()):
        return nullcontext()
    import deepspeed

    parameters = list(student.parameters())
    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return context


def whole(parameter: Any) -> Any:
    """A share's whole tensor (FSDP2); every process asks for it."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def in_parts(drawn: dict[str, torch.Tensor], parts: int) -> list[dict[str, torch.Tensor]]:
    """The rows of a batch in so many batches, one after the other."""
    chunks = {name: tensor.chunk(parts) for name, tensor in drawn.items()}
    return [dict(zip(chunks, rows, strict=True)) for rows in zip(*chunks.values(), strict=True)]


def _padded(
    rows: Sequence[Sequence[int]], pad: int, side: str, device: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    masks = [torch.ones_like(tensor) for tensor in tensors]
    return (
        pad_sequence(tensors, batch_first=True, padding_value=pad, padding_side=side).to(device),
        pad_sequence(masks, batch_first=True, padding_side=side).to(device),
    )


class Attempts(NamedTuple):
    """B attempts padded on the right to T places; `answer_BT` marks what the student wrote."""

    ids_BT: torch.Tensor
    real_BT: torch.Tensor
    answer_BT: torch.Tensor


def right_padded(inputs: dict[str, torch.Tensor]) -> Attempts:
    """TRL's batch, whose prompts are padded on the left, with each row moved to its beginning."""
    prompt_mask_BP = inputs["prompt_mask"].bool()
    answer_mask_BA = inputs["completion_mask"].bool()
    ids_BT = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    real_BT = torch.cat([prompt_mask_BP, answer_mask_BA], 1)
    answer_BT = torch.cat([torch.zeros_like(prompt_mask_BP), answer_mask_BA], 1)
    width = ids_BT.shape[1]
    padding_B1 = (~prompt_mask_BP).sum(1, keepdim=True)
    from_BT = (torch.arange(width, device=ids_BT.device) + padding_B1) % width
    return Attempts(*(t.gather(1, from_BT) for t in (ids_BT, real_BT, answer_BT)))
