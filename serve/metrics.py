"""What an operator watches, in Prometheus' words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.talk import Talk

FIRST_TOKEN_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """Counts of one server; a registry of its own, so that two can live in one process."""

    def __init__(self, asked: Callable[[], float], restarts: Callable[[], float]) -> None:
        self._registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": self._registry}
        self.answers = Counter("retort_answers", "Answers by how they ended", ["end"], **of)
        self._prompt = Counter("retort_prompt_tokens", "Prompt tokens", **of)
        self._written = Counter("retort_completion_tokens", "Tokens written", **of)
        self._first = Histogram(
            "retort_first_token_seconds",
            "Question to first token",
            buckets=FIRST_TOKEN_S,
            **of,
        )
        self._rate = Histogram("retort_tokens_per_second", "Of one answer", buckets=RATES, **of)
        Gauge("retort_asked", "Questions answered or waiting", **of).set_function(asked)
        Gauge("retort_restarts", "Models started again", **of).set_function(restarts)

    def ended(self, talk: Talk, end: str) -> None:
        """One answer is over: `stop`, `length`, `reasoning_unclosed`, `left` or `error`."""
        self.answers.labels(end).inc()
        self._prompt.inc(talk.prompt_tokens)
        self._written.inc(talk.tokens)
        if talk.first_s:
            self._first.observe(talk.first_s)
            rate = talk.timings()["tokens_per_s"]
            if rate:  # an answer that was told in one piece has none
                self._rate.observe(rate)

    def text(self) -> bytes:
        return generate_latest(self._registry)
