"""Any OpenAI-compatible server as an engine: bounded retries, concurrency, and a token budget.

Retries what may pass (connection errors, 408, 429, 5xx) at most five times with jittered backoff or
the server's Retry-After; anything else ends the run. Ten minutes without one success, and as long
as a whole answer may take, end it too.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NoReturn

import httpx

from serve.engines.base import LogitsTV
from serve.engines.prompt_logprobs import grade_of_prompt
from serve.errors import CannotDo, EngineError
from serve.messages import Chunk, Completion, Grade, Message, Request, Sampling, Timing, TokenScores

ATTEMPTS = 6
REQUEST_TIMEOUT_S = 120.0
LONGEST_WAIT_S = 60.0
# What vLLM allows unless it is started with a larger `--max-logprobs`.
PROMPT_LOGPROBS_LIMIT = 20
NO_SUCCESS_LIMIT_S = 600.0
# Of one answer among many on a busy server, at least.
SLOW_TOKENS_PER_S = 10.0
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


def load(
    base_url: str | None,
    model: str,
    api_key_env: str = "RETORT_API_KEY",
    concurrency: int = 16,
    token_budget: int | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> HttpEngine:
    """A client of the server at `base_url` (its `/v1` address), key from the environment."""
    if not base_url:
        raise EngineError("engine http needs base_url, the server's /v1 address")
    return HttpEngine(
        base_url, model, os.environ.get(api_key_env), concurrency, token_budget, timeout_s
    )


class NotUnderstood(EngineError):
    """The server refused a request as it stands."""


class HttpEngine:
    """One model of one server, `concurrency` requests in flight."""

    batch_invariant = True  # answers arrive one by one; what the server batches is its own affair
    block = 1

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None,
        concurrency: int,
        token_budget: int | None,
        timeout_s: float,
    ) -> None:
        self.name = f"http:{model}"
        self._model = model
        self._concurrency, self._timeout_s = concurrency, timeout_s
        self._budget = token_budget
        self._spent = 0
        self._last_success_s = time.monotonic()
        self._client = httpx.Client(
            base_url=base_url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=concurrency),
        )

    def close(self) -> None:
        self._client.close()

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        self._last_success_s = time.monotonic()  # it may not have been asked for an hour
        waiting = iter(requests)
        with ThreadPoolExecutor(self._concurrency) as pool:
            running: dict[Future[Completion], Request] = {}
            try:
                while True:
                    while len(running) < self._concurrency:
                        request = next(waiting, None)
                        if request is None:
                            break
                        running[pool.submit(self._answer, request)] = request
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        request = running.pop(future)
                        completion = future.result()
                        self._spent += completion.completion_tokens
                        yield request.key, completion
                    self._check_budget()
            finally:
                for future in running:
                    future.cancel()

    def _check_budget(self) -> None:
        if self._budget is not None and self._spent >= self._budget:
            raise EngineError(
                f"token budget spent: {self._spent} of {self._budget} completion tokens",
                hint="raise teacher.token_budget and run again; nothing is asked twice",
            )

    def _answer(self, request: Request) -> Completion:
        started_s = time.monotonic()
        body = self._body(_with_begun(request), request.sampling) | _going_on(request)
        reply = self._post(body)
        try:
            choice = reply["choices"][0]
            usage = reply["usage"]
            text = choice["message"]["content"] or ""
            # vLLM called it `reasoning_content` until 0.11, and other servers still do.
            said = choice["message"]
            thought = said.get("reasoning_content") or said.get("reasoning")
            return Completion(
                text=f"<think>\n{thought}\n</think>\n{text}" if thought else text,
                finish="length" if choice["finish_reason"] == "length" else "stop",
                prompt_tokens=usage["prompt_tokens"],
                completion_tokens=usage["completion_tokens"],
                timing=Timing(first_token_s=0.0, total_s=time.monotonic() - started_s),
            )
        except (KeyError, IndexError, TypeError) as error:
            raise EngineError(f"{self.name}: reply lacks {error} ({str(reply)[:200]})") from error

    def _body(self, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [m.model_dump() for m in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed % 2**31,
        }
        return body | ({"stop": list(sampling.stop)} if sampling.stop else {})

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        """One answered request, after at most ATTEMPTS tries. Raises EngineError."""
        problem = "no success before that"
        # An answer comes in one piece, when it is whole.
        whole_s = body["max_tokens"] / SLOW_TOKENS_PER_S
        for attempt in range(ATTEMPTS):
            if time.monotonic() - self._last_success_s > NO_SUCCESS_LIMIT_S + whole_s:
                break
            wait_s = min(LONGEST_WAIT_S, 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
            try:
                response = self._client.post(
                    "chat/completions", json=body, timeout=self._timeout_s + whole_s
                )
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code == httpx.codes.OK:
                    self._last_success_s = time.monotonic()
                    return self._json(response)
                problem = f"status {response.status_code}"
                if response.status_code not in RETRIED:
                    kind = NotUnderstood if response.status_code in (400, 422) else EngineError
                    raise kind(f"{self.name} refused: {problem}: {response.text[:200]}")
                wait_s = _retry_after_s(response) or wait_s
            if attempt < ATTEMPTS - 1:
                time.sleep(min(wait_s, LONGEST_WAIT_S))
        raise EngineError(f"{self.name} did not answer in {ATTEMPTS} attempts: {problem}")

    def _json(self, response: httpx.Response) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = response.json()
        except json.JSONDecodeError as error:
            raise EngineError(f"{self.name} sent no JSON: {response.text[:200]}") from error
        return reply

    def stream(self, request: Request) -> Iterator[Chunk]:
        asked = self._body(_with_begun(request), request.sampling) | _going_on(request)
        body = asked | {"stream": True}
        with self._client.stream("POST", "chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise EngineError(f"{self.name}: status {response.status_code}")
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if not line.startswith("data: ") or data == "[DONE]":
                    continue
                choice = json.loads(data)["choices"][0]
                if text := choice["delta"].get("content"):
                    yield Chunk(text=text, tokens=1)
                if reason := choice.get("finish_reason"):
                    yield Chunk(finish="length" if reason == "length" else "stop")

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        self._cannot("score a given text")

    def grade(self, requests: Sequence[Request], top: int) -> list[Grade]:
        """By vLLM's `prompt_logprobs`. Raises EngineError where the server does not know them."""
        self._last_success_s = time.monotonic()
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(lambda request: self._grade(request, top), requests))

    def _grade(self, request: Request, top: int) -> Grade:
        """The answer as a finished turn of the prompt, so that its end mark is scored too."""
        body = self._body(_with_begun(request), Sampling(max_tokens=1)) | {
            "add_generation_prompt": False,
            "prompt_logprobs": min(top, PROMPT_LOGPROBS_LIMIT),
            "return_token_ids": True,
        }
        try:
            reply = self._post(body)
        except NotUnderstood as error:  # servers that refuse fields they do not know
            raise CannotDo(str(error.args[0])) from error
        return grade_of_prompt(reply, request.begun, self.name)

    def vocabulary(self) -> list[bytes | None]:
        self._cannot("list its tokens")

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        self._cannot("tokenize")

    def end_ids(self) -> tuple[int, ...]:
        self._cannot("name end tokens")

    def logits(self, ids: Sequence[int]) -> LogitsTV:
        self._cannot("give logits")

    def _cannot(self, verb: str) -> NoReturn:
        raise CannotDo(f"{self.name} cannot {verb}: chat completions do not offer it")


def _with_begun(request: Request) -> tuple[Message, ...]:
    begun = (Message(role="assistant", content=request.begun),) if request.begun else ()
    return (*request.messages, *begun)


def _going_on(request: Request) -> dict[str, bool]:
    """vLLM's and SGLang's words for "the last turn is not over"."""
    if not request.begun:
        return {}
    return {"continue_final_message": True, "add_generation_prompt": False}


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds the server asks to wait; dates and nonsense are ignored."""
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
