"""The OpenAI-compatible API over the models of a bundle or a run.

`/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/health`, `/metrics`. A question without
a system message gets the turns its model was trained with put before it. Loads no model itself and
imports no model library: each model is a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serve.catalogue import Entry
from serve.completion_forms import ChatForm, Form, TextForm, event
from serve.conversations import Ask, Reply
from serve.errors import RetortError
from serve.limits import Limits, problem
from serve.metrics import Metrics
from serve.model_process import Busy, ModelProcess
from serve.pool import Pool, UnknownModel
from serve.schema import ChatQuestion, TextQuestion
from serve.talk import Talk

RETRY_S = 5
log = logging.getLogger("retort.serve")


class _Left(Exception):
    """The client is gone; nobody reads an answer."""


def create_app(pool: Pool, api_key: str | None = None, hosts: Collection[str] = ()) -> FastAPI:
    """The application over `pool`, which it opens its first model of and closes at its end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pool.model(None)
        yield
        await asyncio.to_thread(pool.close)

    app = FastAPI(title="Retort", lifespan=lifespan, docs_url=None, redoc_url=None)
    metrics = Metrics(pool.asked, pool.restarts)
    app.add_middleware(Limits, api_key=api_key, hosts=frozenset(hosts))
    _say_errors(app)

    @app.get("/health", responses={503: {"description": "a model is loading or down"}})
    async def health() -> JSONResponse:
        """Green when every opened model answers."""
        well = pool.well()
        status = "ok" if well else "unavailable"
        return JSONResponse({"status": status, "models": pool.states()}, 200 if well else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "retort"}
            for name in pool.entries
        ]
        return {"object": "list", "data": listed}

    @app.post("/v1/chat/completions", responses=ANSWERS)
    async def chat(question: ChatQuestion, request: Request) -> Response:
        model = pool.model(question.model)
        form = ChatForm(model.entry.name, question.wants_usage)
        ask = _asked(question, model.entry)
        return await _answer(model, ask, form, bool(question.stream), request, metrics)

    @app.post("/v1/completions", responses=ANSWERS)
    async def complete(question: TextQuestion, request: Request) -> Response:
        model = pool.model(question.model)
        ask = Ask(
            begun=question.prompt,
            sampling=question.sampling(),
            max_tokens=question.max_tokens,
        )
        form = TextForm(model.entry.name, question.wants_usage)
        return await _answer(model, ask, form, bool(question.stream), request, metrics)

    return app


def _asked(question: ChatQuestion, entry: Entry) -> Ask:
    turns = tuple(turn.message() for turn in question.messages)
    own_rules = any(turn.role == "system" for turn in turns)
    return Ask(
        messages=turns if own_rules else (*entry.lead, *turns),
        tags=entry.tags,
        sampling=question.sampling(),
        max_tokens=question.max_completion_tokens or question.max_tokens,
        reasoning_budget=question.reasoning_budget,
        waits=question.budget_forcing,
    )


ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the answer, whole or in pieces",
        "content": {"application/json": {}, "text/event-stream": {}},
    },
    400: {"description": "the prompt leaves no room for the answer, or is not JSON"},
    401: {"description": "the API key is missing or wrong"},
    404: {"description": "no such model"},
    413: {"description": "the body is too long"},
    429: {"description": "too many are waiting"},
    503: {"description": "the model is down"},
}


async def _answer(
    model: ModelProcess, ask: Ask, form: Form, stream: bool, request: Request, metrics: Metrics
) -> Response:
    talk = Talk(model, ask)
    end, handed_on = "left", False
    try:
        replies = [await _unless_left(request, talk.next())]
        if stream and replies[0].error is None:
            handed_on = True
            return _Events(form, talk, replies[0], metrics)
        while not replies[-1].last:
            replies.append(await _unless_left(request, talk.next()))
        last = replies[-1]
        end = last.finish or "error"
        if last.refused:
            return JSONResponse(problem(400, str(last.error), form.asked_field), 400)
        if last.error is not None:
            retry = {"Retry-After": str(RETRY_S)}
            return JSONResponse(problem(503, last.error), 503, headers=retry)
        return JSONResponse(form.whole(talk, replies))
    finally:
        if not handed_on:
            talk.leave()
            metrics.ended(talk, end)


class _Events(StreamingResponse):
    """A stream of server-sent events. However it ends, the slot is free."""

    def __init__(self, form: Form, talk: Talk, first: Reply, metrics: Metrics) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._lines(first), media_type="text/event-stream", headers=headers)
        self._form, self._talk, self._metrics = form, talk, metrics
        self._end = "left"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._talk.leave()
            self._metrics.ended(self._talk, self._end)

    async def _lines(self, reply: Reply) -> AsyncIterator[str]:
        while True:
            line = self._form.piece(self._talk, reply)
            if line is not None:
                yield line
            if reply.last:
                break
            reply = await self._talk.next()
        self._end = reply.finish or "error"
        if reply.error is not None:
            yield event(problem(503, reply.error))
        elif self._form.wants_usage:
            yield self._form.usage(self._talk)
        yield "data: [DONE]\n\n"


async def _unless_left(request: Request, reply: Coroutine[Any, Any, Reply]) -> Reply:
    """The reply; raises _Left as soon as the client is gone."""
    work = asyncio.ensure_future(reply)
    gone = asyncio.ensure_future(_gone(request))
    try:
        done, _ = await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work not in done:
            raise _Left
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _say_errors(app: FastAPI) -> None:
    """Every refusal in OpenAI's form, without a path or a trace."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse(problem(400, "the body is no JSON", "body"), 400)
        field = ".".join(str(part) for part in first["loc"][1:]) or "body"
        return JSONResponse(problem(422, f"{field}: {first['msg']}", field), 422)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        said = problem(error.status_code, str(error.detail))
        return JSONResponse(said, error.status_code, headers=error.headers)

    @app.exception_handler(UnknownModel)
    async def unknown(_: Request, error: UnknownModel) -> JSONResponse:
        return JSONResponse(problem(404, str(error.args[0]), "model"), 404)

    @app.exception_handler(RetortError)
    async def failed(_: Request, error: RetortError) -> JSONResponse:
        status = 429 if isinstance(error, Busy) else 503
        retry = {"Retry-After": str(RETRY_S)}
        return JSONResponse(problem(status, str(error.args[0])), status, headers=retry)

    @app.exception_handler(_Left)
    async def left(_: Request, __: _Left) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("unexpected", exc_info=error)
        return JSONResponse(problem(500, "internal error"), 500)
