"""Many clients of one server for a minute each: nobody reads another's answer, nothing grows.

    python -m benchmarks.serve_soak BUNDLE [--clients 1 4 16 64] [--seconds 60]

Every client has a word of its own, says it four times and lets the model go on: a model that
repeats what it sees writes that word again. An answer with another client's word is a crossed
conversation. Memory is that of the server and its model processes, after the first ten seconds of a
level and at its end. Then 50 clients hang up: midway, before the first token, while waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import httpx
import psutil

from benchmarks.clients import ask
from benchmarks.machine import describe
from serve.catalogue import read_catalogue

TEXT = "/v1/completions"
TURNED_AWAY_S = 0.25
SETTLED_S = 10.0
GONE = 50


def canary(number: int) -> str:
    """Six letters no two clients share, and no word."""
    draw = Random(number)
    return "".join(draw.choice("bcdfghjklmnpqrstvwxz") for _ in range(6))


async def client(base: str, number: int, everyone: Sequence[str], seen: Counter[str]) -> None:
    """Ask until cancelled."""
    own = everyone[number]
    for turn in range(10**9):
        prompt = f"{turn}: " + f"{own} " * 4
        try:
            answer = await ask(base, TEXT, {"prompt": prompt, "max_tokens": 16, "temperature": 0})
        except (OSError, ValueError, IndexError) as error:
            seen[f"connection: {type(error).__name__}"] += 1
            continue
        seen[f"status {answer.status}"] += 1
        if answer.status != 200:
            await asyncio.sleep(TURNED_AWAY_S)
            continue
        seen["tokens"] += answer.tokens
        seen["own word"] += own in answer.text
        seen["crossed"] += any(w in answer.text for w in everyone if w != own)


def memory_mb(server: psutil.Process) -> float:
    processes = [server, *server.children(recursive=True)]
    return sum(p.memory_info().rss for p in processes) / 1e6


async def level(base: str, clients: int, seconds: float, server: psutil.Process) -> str:
    seen: Counter[str] = Counter()
    everyone = [canary(number) for number in range(clients)]
    tasks = [asyncio.create_task(client(base, n, everyone, seen)) for n in range(clients)]
    await asyncio.sleep(SETTLED_S)
    before_mb = memory_mb(server)
    await asyncio.sleep(seconds - SETTLED_S)
    after_mb = memory_mb(server)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    counts = ", ".join(f"{what} {count}" for what, count in sorted(seen.items()))
    grown = 100 * (after_mb / before_mb - 1)
    return f"{clients:3} clients: {counts}; {before_mb:.0f} to {after_mb:.0f} MB ({grown:+.1f} %)"


async def hang_ups(base: str, slots: int) -> list[float]:
    """Seconds until nobody is asked any more, for 50 that leave: two thirds alone, then a crowd."""
    address = urlsplit(base)
    took = []
    for index in range(GONE):
        waiting = index % 3 == 2
        crowd = slots + 1 if waiting else 1
        lines = [await _long_question(address.hostname, address.port) for _ in range(crowd)]
        if index % 3 == 0:
            await lines[0][0].readuntil(b"data: {")
            await lines[0][0].readuntil(b"data: {")
        else:
            while await _asked(base) < crowd:
                await asyncio.sleep(0.01)
        for _, writer in reversed(lines):
            writer.transport.abort()
        started_s = time.monotonic()
        while await _asked(base) > 0:
            await asyncio.sleep(0.01)
        took.append(time.monotonic() - started_s)
    return took


async def _long_question(
    host: str | None, port: int | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sent = b'{"prompt": "One, two, three,", "max_tokens": 512, "temperature": 0, "stream": true}'
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(
        f"POST {TEXT} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(sent)}\r\n\r\n".encode()
        + sent
    )
    await writer.drain()
    return reader, writer


async def _asked(base: str) -> float:
    async with httpx.AsyncClient(base_url=base) as http:
        lines = (await http.get("/metrics")).text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("retort_asked "))


async def soak(base: str, process: psutil.Process, options: argparse.Namespace) -> None:
    for clients in options.clients:
        print(await level(base, clients, options.seconds, process), flush=True)
    took = await hang_ups(base, options.slots)
    within = sum(seconds < 1.0 for seconds in took)
    print(f"{within} of {len(took)} hang-ups free within 1 s, the slowest after {max(took):.2f} s")
    async with httpx.AsyncClient(base_url=base) as http:
        print(f"health afterwards: {(await http.get('/health')).status_code}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_soak")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--slots", type=int, default=8)
    options = parser.parse_args()
    print(describe("llama-cpp-python", "fastapi", "uvicorn"))
    name = next(e for e in read_catalogue(options.bundle) if e.engine == "llama.cpp").name
    command = [sys.executable, "-m", "serve", str(options.bundle), "--port", "0"]
    command += ["--models", name, "--slots", str(options.slots), "--context-tokens", "1024"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        base = child.stdout.readline().split(" at ")[1].split("/v1")[0]
        try:
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(soak(base, psutil.Process(child.pid), options))
        finally:
            child.terminate()
    print(f"the server ended with {child.returncode}")


if __name__ == "__main__":
    main()
