"""The same two models in a terminal.

    python -m apps.terminal RUN

Type a question; `/use NAME [NAME]` chooses who answers, `/models` lists them, `/quit` ends.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from apps.conversation import Speaker, say, speakers
from serve.errors import DataError, RetortError
from serve.messages import Sampling

HELP = "a question, or /models, /use NAME, /quit"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m apps.terminal", description="Talk to a run's models in the terminal."
    )
    parser.add_argument("run", type=Path, help="a run folder, for example runs/default")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=256)
    options = parser.parse_args(arguments)
    console = Console()
    try:
        found = speakers(options.run)
        if not found:
            raise DataError(f"{options.run} holds no model to talk to")
        sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens)
        _talk(console, found, sampling)
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _talk(console: Console, found: list[Speaker], sampling: Sampling) -> None:
    chosen = found[:2]
    console.print(f"[dim]{HELP}; answering: {', '.join(s.name for s in chosen)}[/dim]")
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/quit":
            return
        if line == "/models":
            console.print(", ".join(s.name for s in found), markup=False)
        elif line.startswith("/use"):
            wanted = line.removeprefix("/use").strip()
            picked = [s for s in found if wanted and wanted in s.name]
            chosen = picked or chosen
            console.print(f"answering: {', '.join(s.name for s in chosen)}", markup=False)
        elif line.startswith("/"):
            console.print(HELP, markup=False)
        elif line:
            for speaker in chosen:
                _answer(console, speaker, line, sampling)


def _answer(console: Console, speaker: Speaker, question: str, sampling: Sampling) -> None:
    """Stream one answer; reasoning is dim. Ctrl-C ends this answer only."""
    console.rule(speaker.name, align="left")
    shown = {"reasoning": 0, "answer": 0}
    said = None
    try:
        for said in say(speaker, question, sampling):
            for part, style in (("reasoning", "dim"), ("answer", "")):
                text: str = getattr(said, part)
                if part == "answer" and text and not shown["answer"] and shown["reasoning"]:
                    console.print()
                console.print(
                    text[shown[part] :], end="", style=style, markup=False, highlight=False
                )
                shown[part] = len(text)
    except RetortError as error:
        console.print(f"{speaker.name} cannot answer: {error}", markup=False)
    except KeyboardInterrupt:
        console.print("\n(stopped)")
    if said is not None:
        console.print(
            f"\n[dim]{said.tokens} tokens, {said.tokens_per_s:.1f} tokens/s, "
            f"first after {said.first_token_s:.2f} s[/dim]"
        )


if __name__ == "__main__":
    sys.exit(main())
