"""Says whether an answer is right, in a child process that may take two seconds.

The parent hands over text and gets true or false back as JSON; nothing a model wrote is run.
`python -m pipeline.tasks.judge` is the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
from importlib.metadata import version
from types import TracebackType
from typing import Any

from pipeline.records import Problem, Verdict
from pipeline.tasks.extract import answer_forms, extract_answer
from serve.errors import DataError
from serve.messages import Completion

TIME_LIMIT_S = 2.0
START_LIMIT_S = 60.0
ANSWER_LIMIT_CHARACTERS = 4_096
# A letter by itself, or a capital that a choice's text may follow: `c`, `(C)`, `C) two`.
CHOICE = re.compile(r"(?:\\text\{)?\W*(?:([A-Z])(?=\s*[).:,–-])|([A-Za-z])\W*$)")
# More letters of their own after it: `C, D`, `A, B and C`.
MORE_CHOICES = re.compile(r"(?:\W+(?:(?:and|or)\W+)?[A-Za-z])+\W*$")


class Judge:
    """Owns the child; a verdict that takes too long kills it and the next one starts another."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._time_limit_s = time_limit_s
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def verdict(self, problem: Problem, completion: Completion) -> Verdict:
        """Judge one completion; `passed` is None only when the verifier itself failed."""
        verifier = verifier_of(problem)
        if completion.finish == "length":
            return Verdict(passed=False, reason="truncated", extracted=None, verifier=verifier)
        # To contain a word, an answer need not end with it.
        extracted = extract_answer(completion.text, problem.scorer == "contains")
        if extracted is None or len(extracted) > ANSWER_LIMIT_CHARACTERS:
            return Verdict(passed=False, reason="no_answer", extracted=None, verifier=verifier)
        return self.judge(problem, extracted)

    def judge(self, problem: Problem, extracted: str) -> Verdict:
        """Judge an extracted answer."""
        verifier = verifier_of(problem)
        reply = self._ask({"problem": problem.model_dump(), "forms": answer_forms(extracted)})
        if reply is None:
            return Verdict(
                passed=None, reason="verifier_timeout", extracted=extracted, verifier=verifier
            )
        passed = reply.get("passed")
        if not isinstance(passed, bool):
            return Verdict(
                passed=None, reason="verifier_error", extracted=extracted, verifier=verifier
            )
        return Verdict(
            passed=passed,
            reason="correct" if passed else "wrong",
            extracted=extracted,
            verifier=verifier,
        )

    def _ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """The child's reply, or None when it took too long or died."""
        child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(question).encode("utf-8") + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            self._stop()
            return None
        if not select.select([child.stdout], [], [], self._time_limit_s)[0]:
            self._stop()
            return None
        line = child.stdout.readline()
        if not line:
            self._stop()
            return None
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "pipeline.tasks.judge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert child.stdout is not None
        ready = select.select([child.stdout], [], [], START_LIMIT_S)[0]
        if not ready or child.stdout.readline().strip() != b"ready":
            child.kill()
            raise DataError(f"the verifier did not start within {START_LIMIT_S} s")
        self._child = child
        return child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # the question died with it
                        pipe.close()


def verifier_of(problem: Problem) -> str:
    """Who judges this problem, with the version that did."""
    if problem.scorer.startswith("gym:"):
        return f"{problem.scorer}@{version('reasoning-gym')}"
    return f"{problem.scorer}@{version('math-verify')}"


def is_right(problem: Problem, answer: str) -> bool:
    """One form of an answer against the reference, by the problem's own scorer. Child side."""
    if problem.scorer.startswith("gym:"):
        from pipeline.tasks.gym import score

        return score(problem, answer)
    if problem.scorer == "contains":
        return re.search(rf"\b{re.escape(problem.answer)}\b", answer, re.IGNORECASE) is not None
    if problem.scorer == "choice":
        match = CHOICE.match(answer)
        if match is None or MORE_CHOICES.match(answer, match.end(1) if match[1] else match.end()):
            return False
        return (match[1] or match[2]).upper() == problem.answer
    return _same_mathematics(problem.answer, answer)


def _same_mathematics(reference: str, answer: str) -> bool:
    if " ".join(reference.split()).casefold() == " ".join(answer.split()).casefold():
        return True
    from math_verify import parse, verify

    expected, found = (
        parse(f"${text}$", parsing_timeout=None, raise_on_error=False)
        for text in (reference, answer)
    )
    return bool(expected and found and verify(expected, found, timeout_seconds=None))


def _child_loop() -> None:
    # Scorers may print; replies travel on a descriptor of their own.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Imported before the clock of the first question starts.
    import math_verify  # noqa: F401
    import reasoning_gym  # noqa: F401

    replies.write("ready\n")
    for line in sys.stdin:
        question = json.loads(line)
        try:
            problem = Problem.model_validate(question["problem"])
            passed = any(is_right(problem, form) for form in question["forms"])
            replies.write(json.dumps({"passed": passed}) + "\n")
        except Exception as error:  # the edge: any failure of a foreign scorer is "not scored"
            replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")


if __name__ == "__main__":
    _child_loop()
