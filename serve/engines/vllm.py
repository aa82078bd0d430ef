"""vLLM without a server: checkpoints on CUDA, and on processors with its CPU build.

Requests join and leave vLLM's own batch; what their prompts begin with is read once (prefix
caching). Its sums depend on the company of a request, so a text drawn again may differ. Is loaded
in a process of its own (`serve/engines/vllm_process.py`), which sets the environment vLLM reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from serve.engines.answer import Answer, check_length, chunks
from serve.engines.base import LogitsTV
from serve.engines.checkpoint_tokenizer import CheckpointTokenizer
from serve.engines.stopping import token_ids
from serve.errors import CannotDo, EngineError
from serve.hardware import cpu_has_fast_bfloat16, has_cuda
from serve.messages import Chunk, Completion, Grade, Message, Request, Sampling, TokenScores

# The most a grade may list, as `on_policy.top_tokens` allows.
MOST_LISTED = 1024
# Logits of a graded text exist for so many places at a time: 2,048 of 151,936 are 1.2 GB.
READ_TOGETHER_TOKENS = 2048


def load(
    path: Path,
    slots: int = 128,
    context_tokens: int = 4096,
    prefixes: int = 1,
    tensor_parallel: int = 1,
    memory_share: float = 0.9,
    dtype: str = "auto",
) -> VllmEngine:
    """Open a checkpoint folder over `tensor_parallel` GPUs, `memory_share` of each one's memory.

    `prefixes` asks for nothing here: vLLM keeps beginnings while it has room. `dtype` auto is what
    the checkpoint says on a GPU, on processors bfloat16 where they are fast at it.
    Raises EngineError with vLLM's reason.
    """
    if not path.is_dir():
        raise EngineError(f"vLLM reads checkpoint folders, not {path.name}")
    # A prompt that is read in parts makes vLLM wind a seeded request's generator back, which a
    # processor's cannot (0.31).
    in_parts = has_cuda()
    try:
        model = LLM(
            model=str(path),
            load_format="safetensors",
            dtype=_dtype(dtype),
            tensor_parallel_size=tensor_parallel,
            gpu_memory_utilization=memory_share,
            max_model_len=context_tokens,
            max_num_seqs=slots,
            enable_chunked_prefill=in_parts,
            max_num_batched_tokens=max(
                READ_TOGETHER_TOKENS, slots, 0 if in_parts else context_tokens
            ),
            max_logprobs=MOST_LISTED,
            enable_prefix_caching=True,
            generation_config="vllm",  # no model's own sampling settings
            enforce_eager=not has_cuda(),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EngineError(f"checkpoint {path} does not load in vLLM: {error}") from error
    return VllmEngine(model, path, context_tokens)


def _dtype(asked: str) -> str:
    """What the checkpoint says on a GPU (FP8 and four bits bring their own)."""
    if asked != "auto" or has_cuda():
        return asked
    return "bfloat16" if cpu_has_fast_bfloat16() else "float32"


class Text(NamedTuple):
    """Ids of a prompt, and of an answer that begins after it."""

    prompt: list[int]
    answer: list[int]


class VllmEngine:
    """One model in vLLM's engine, which is stepped from here."""

    # Answers are kept one by one; whom vLLM batches them with cannot be said beforehand.
    batch_invariant = True
    block = 1

    def __init__(self, model: Any, path: Path, context_tokens: int) -> None:
        self.name = f"vllm:{path.name}"
        self._llm, self._context_tokens, self._asked = model, context_tokens, 0
        self._text = CheckpointTokenizer(model.get_tokenizer())
        self._ends = frozenset({self._text.raw.eos_token_id, *_own_ends(path)})

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._text.prompt_ids(messages)

    def end_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self._ends))

    def vocabulary(self) -> list[bytes | None]:
        return self._text.vocabulary

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        for answer in self._answers(requests, every_token=False):
            if answer.finish:
                yield answer.request.key, answer.completion()

    def stream(self, request: Request) -> Iterator[Chunk]:
        yield from chunks(self._answers([request], every_token=True))

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        (grade,) = self.grade([Request(key="", messages=tuple(messages), begun=completion)], 1)
        return grade.scores

    def grade(self, requests: Sequence[Request], top: int) -> list[Grade]:
        texts: dict[str, Text] = {}
        for request in requests:
            prompt, ids = self.prompt_ids(request.messages), self._text.encode(request.begun)
            check_length(len(prompt) + len(ids) + 1, self._context_tokens, self.name, request)
            texts[self._new_id()] = Text(prompt, ids)
        said = self._read(texts, top, from_cache=True)
        # vLLM says nothing of what stood in its cache; the beginning of an answer may have, too.
        unsaid = {
            index: texts[index]
            for index, reply in said.items()
            if reply.num_cached_tokens >= len(texts[index].prompt)
        }
        said |= self._read(unsaid, top, from_cache=False)
        return [self._grade_of(text, said[index], top) for index, text in texts.items()]

    def logits(self, ids: Sequence[int]) -> LogitsTV:
        self._cannot("give logits")

    def reload(self, path: Path) -> None:
        """Answer with the weights of another checkpoint of the same shape. Raises EngineError."""
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise EngineError(f"checkpoint {path} does not load in vLLM: {error}") from error
        self._llm.reset_prefix_cache()

    def close(self) -> None:
        self._llm = None

    def _cannot(self, verb: str) -> NoReturn:
        raise CannotDo(f"{self.name} cannot {verb}")

    def _new_id(self) -> str:
        self._asked += 1
        return str(self._asked)

    def _answers(self, requests: Sequence[Request], every_token: bool) -> Iterator[Answer]:
        """Each answer as it stands whenever vLLM says something of it."""
        engine, running = self._llm.llm_engine, dict[str, Answer]()
        try:
            for request in requests:
                prompt, index = self._prompt(request), self._new_id()
                running[index] = Answer(request, len(prompt), self._text.decode)
                piecewise = every_token or bool(request.sampling.stop)
                params = self._params(request.sampling, piecewise)
                engine.add_request(index, TokensPrompt(prompt_token_ids=prompt), params)
            while running:
                for reply in engine.step():
                    answer = running[reply.request_id]
                    self._take(answer, reply)
                    if answer.finish:
                        del running[reply.request_id]
                        engine.abort_request([] if reply.finished else [reply.request_id])
                    yield answer
        finally:
            engine.abort_request(list(running))

    def _take(self, answer: Answer, reply: Any) -> None:
        """Our own end rules, token by token: the text ends where it does in every engine."""
        for token in reply.outputs[0].token_ids:
            if not answer.finish:
                answer.accept(token, token in self._ends, self._context_tokens)
        if reply.finished and not answer.finish:
            answer.finish = "length"

    def _prompt(self, request: Request) -> list[int]:
        prompt = self.prompt_ids(request.messages) if request.messages else []
        prompt += self._text.encode(request.begun) if request.begun else []
        check_length(len(prompt), self._context_tokens, self.name, request)
        return prompt

    def _params(self, sampling: Sampling, piecewise: bool) -> Any:
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop_token_ids=list(self._ends),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if piecewise else RequestOutputKind.FINAL_ONLY,
        )

    def _read(self, texts: dict[str, Text], top: int, from_cache: bool) -> dict[str, Any]:
        """vLLM's replies to prompts with an answer and an end after it, by id."""
        engine, found = self._llm.llm_engine, dict[str, Any]()
        for index, (prompt, ids) in texts.items():
            params = SamplingParams(
                max_tokens=1,
                prompt_logprobs=top,
                detokenize=False,
                skip_reading_prefix_cache=not from_cache,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            inputs = TokensPrompt(prompt_token_ids=[*prompt, *ids, min(self._ends)])
            engine.add_request(index, inputs, params)
        while len(found) < len(texts):
            found |= {reply.request_id: reply for reply in engine.step()}
        return found

    def _grade_of(self, text: Text, reply: Any, top: int) -> Grade:
        prompt, ids = text
        # From the end: what stood in the cache has rows of garbage, or none.
        rows = [
            {token: entry.logprob for token, entry in row.items()}
            for row in reply.prompt_logprobs[-len(ids) - 1 :]
        ]
        # The text's own token is among them even where it is not among the likeliest.
        listed = [sorted(row.items(), key=lambda pair: -pair[1])[:top] for row in rows]
        ends = self._text.byte_ends(ids)
        return Grade(
            scores=TokenScores(
                ids=tuple(ids),
                byte_offsets=(0, *ends[:-1]) if ids else (),
                logprobs_nats=tuple(row[i] for row, i in zip(rows[:-1], ids, strict=True)),
            ),
            top_ids=tuple(tuple(i for i, _ in row) for row in listed),
            top_logprobs_nats=tuple(tuple(x for _, x in row) for row in listed),
            end_nats=float(np.logaddexp.reduce([rows[-1][i] for i in self._ends & set(rows[-1])])),
            read_tokens=len(prompt) + len(ids) - reply.num_cached_tokens,
            text_bytes=ends[-1] if ends else 0,
        )


def _own_ends(checkpoint: Path) -> tuple[int, ...]:
    """End tokens beside the tokenizer's, as the checkpoint's generation config names them."""
    try:
        config = json.loads((checkpoint / "generation_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    ends = config.get("eos_token_id")
    return () if ends is None else token_ids(ends)
