"""The server beside the bare runtime and beside llama.cpp's own server, on one file, in one run.

    python -m benchmarks.serve BUNDLE --peer PEER/bin/python [--rounds 3]

BUNDLE holds a GGUF student; PEER is an environment with the package xllamacpp. Rates are of plain
greedy continuations of a count, which nothing ends early. Times to the first token that is seen are
of chats about problems of the default recipe: alone, beside four long answers, and beside four who
ask such problems again and again. Bare: the same counts decoded by `llama_decode`, the most likely
token taken by llama.cpp's own sampler, no text made. A machine's speed may change within a minute,
so every answer of one stream comes right after a bare one, and both rates of a ratio are taken
in turn. Rounds alternate; medians are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.bare_llama import bare_llama
from benchmarks.clients import Answer, ask
from benchmarks.machine import describe
from pipeline.recipe_files import find_recipe, load_recipe
from pipeline.tasks.gym import family_problems
from serve.catalogue import Entry, read_catalogue
from serve.hardware import cores

SLOTS, CONTEXT_TOKENS, ANSWER_TOKENS = 8, 1024, 128
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
# Of those who ask while others are answered; idle ones are as many.
LATE_ASKERS = 24
BESIDE = 4
# How many times one stream and eight take turns.
TURNS = 4
Bare = Callable[[str], float]


def questions(count: int) -> list[str]:
    families = load_recipe(find_recipe("default")).problems.families
    each = -(-count // len(families))
    drawn = [family_problems(f.name, f.options, 20_261_123, each) for f in families]
    return [p.question for row in zip(*drawn, strict=True) for p in row][:count]


def counting(count: int) -> list[str]:
    """Beginnings that a language model goes on with for as long as it may."""
    return [", ".join(str(10 * n + i) for i in range(3)) + "," for n in range(count)]


@contextmanager
def ours(bundle: Path, entry: Entry) -> Iterator[str]:
    """`python -m serve`, as a user starts it."""
    command = [sys.executable, "-m", "serve", str(bundle), "--port", "0", "--models", entry.name]
    command += ["--slots", str(SLOTS), "--context-tokens", str(CONTEXT_TOKENS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().split(" at ")[1].split("/v1")[0]
        finally:
            child.terminate()


@contextmanager
def theirs(python: Path, entry: Entry) -> Iterator[str]:
    """llama.cpp's server of the package xllamacpp."""
    script = Path(__file__).with_name("peer_server.py")
    numbers = [str(number) for number in (cores(), SLOTS, CONTEXT_TOKENS)]
    with subprocess.Popen(
        [str(python), str(script), str(entry.path()), *numbers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        try:
            print(f"peer: xllamacpp {child.stdout.readline().split()[-1]}", file=sys.stderr)
            yield child.stdout.readline().strip()
        finally:
            child.terminate()


async def _answered(base: str, route: str, question: dict[str, Any]) -> Answer:
    limits = {"max_tokens": ANSWER_TOKENS, "temperature": 0}
    answer = await ask(base, route, question | limits)
    assert answer.status == 200, answer
    return answer


async def _written(base: str, prompt: str) -> Answer:
    return await _answered(base, TEXT, {"prompt": prompt})


async def rates(base: str, bare: Bare) -> dict[str, float]:
    """One stream and eight at once, beside llama.cpp with nothing around it."""
    written = partial(_written, base)
    counts = counting(2 * SLOTS)
    await written("Warm up:")
    bares, alone, rates_alone, rates_together = [], [], [], []
    for turn in range(TURNS):
        ones = []
        for count in counts[2 * turn :][:2]:
            bares.append(bare(count))
            ones.append(await written(count))
        together = await asyncio.gather(*(written(count) for count in counts[SLOTS:]))
        alone += ones
        rates_alone.append(sum(a.tokens for a in ones) / sum(a.total_s for a in ones))
        rates_together.append(sum(a.tokens for a in together) / max(a.total_s for a in together))
    over_bare = [a.tokens_per_s / rate for a, rate in zip(alone, bares, strict=True)]
    over_one = [t / one for t, one in zip(rates_together, rates_alone, strict=True)]
    return {
        "bare, tokens/s after the first": statistics.median(bares),
        "one stream, tokens/s after the first": statistics.median(a.tokens_per_s for a in alone),
        "one stream over bare": statistics.median(over_bare),
        "one stream, tokens/s": statistics.median(rates_alone),
        f"{SLOTS} streams, tokens/s in all": statistics.median(rates_together),
        f"{SLOTS} streams over one": statistics.median(over_one),
    }


async def waits(base: str, entry: Entry, asked: Sequence[str]) -> dict[str, float]:
    """How long those wait who come while nobody is answered, and while four are."""
    written = partial(_written, base)

    async def chatted(question: str) -> Answer:
        turns = [message.model_dump() for message in entry.messages(question)]
        return await _answered(base, CHAT, {"messages": turns})

    counts = counting(2 * SLOTS)
    await chatted("Warm up.")
    first, second, third = (asked[i * LATE_ASKERS :][:LATE_ASKERS] for i in range(3))
    idle = [await chatted(question) for question in first]
    beside = await _late(chatted, second, written, counts)
    crowded = await _late(chatted, third, chatted, asked[3 * LATE_ASKERS :])
    return {
        "first token idle, p95 ms": 1000 * _p95([a.first_s for a in idle]),
        "first token beside 4 answers, p95 ms": 1000 * _p95([a.first_s for a in beside]),
        "first token beside 4 askers, p95 ms": 1000 * _p95([a.first_s for a in crowded]),
    }


Asking = Callable[[str], Awaitable[Answer]]


async def _late(
    one: Asking, asked: Sequence[str], other: Asking, others: Sequence[str]
) -> list[Answer]:
    """Four who ask again and again, and beside them the one whose waiting counts."""

    async def busy(start: int) -> None:
        for turn in range(10**6):
            await other(others[(start + BESIDE * turn) % len(others)])

    crowd = [asyncio.create_task(busy(start)) for start in range(BESIDE)]
    await asyncio.sleep(1.0)
    late = [await one(question) for question in asked]
    for task in crowd:
        task.cancel()
    await asyncio.gather(*crowd, return_exceptions=True)
    return late


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[int(0.95 * (len(values) - 1) + 0.5)]


def _measured(base: str, entry: Entry, asked: Sequence[str]) -> dict[str, float]:
    with bare_llama(entry.path(), CONTEXT_TOKENS, ANSWER_TOKENS) as bare:
        found = asyncio.run(rates(base, bare))
    return found | asyncio.run(waits(base, entry, asked))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--peer", type=Path, help="a Python that has the package xllamacpp")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    entry = next(e for e in read_catalogue(options.bundle) if e.engine == "llama.cpp")
    print(describe("llama-cpp-python", "fastapi", "uvicorn"))
    print(f"{entry.name}, {cores()} threads, {SLOTS} slots, answers of {ANSWER_TOKENS} tokens")
    found: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    asked = questions(3 * LATE_ASKERS + 32)
    for _ in range(options.rounds):
        with ours(options.bundle, entry) as base:
            found["ours"].append(_measured(base, entry, asked))
        if options.peer:
            with theirs(options.peer, entry) as base:
                found["peer"].append(_measured(base, entry, asked))
    for what in found["ours"][0]:
        cells = [
            f"{side} {statistics.median(r[what] for r in rounds):8.2f} "
            f"({', '.join(f'{r[what]:.2f}' for r in rounds)})"
            for side, rounds in found.items()
            if rounds
        ]
        print(f"{what:38} {'   '.join(cells)}")
    print(describe("llama-cpp-python"))


if __name__ == "__main__":
    main()
