"""The models of a run or a bundle in a terminal.

    python -m apps.terminal RUN

Type a question; `/use NAME` chooses who answers, `/compare NAME NAME` has two answer, `/stats`
shows how fast they were, `/models` lists them, `/quit` ends.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from statistics import mean

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from apps.conversation import Said, models_of, say
from serve.conversations import Ask
from serve.errors import RetortError, UsageError
from serve.messages import Sampling
from serve.model_process import ModelProcess
from serve.pool import Pool

# Escape sequences begin with one of these; line feeds and tabs may stay.
CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))
HELP = "a question, or /models, /use NAME, /compare NAME NAME, /stats, /quit"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        ask = _asked(options)
        pool = models_of(options.run)
        try:
            Talk(Console(), pool, ask, options.fold).listen()
        finally:
            pool.close()
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _asked(options: argparse.Namespace) -> Ask:
    """How answers are drawn. Raises UsageError for a number out of its bounds."""
    try:
        return Ask(
            sampling=Sampling(temperature=options.temperature, seed=options.seed),
            max_tokens=options.max_tokens,
            reasoning_budget=options.thinking_budget,
        )
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][-1]).replace("reasoning_", "thinking_").replace("_", "-")
        raise UsageError(f"--{name} {fault['input']}: {fault['msg']}") from error


class Talk:
    """One person at a terminal. `fold` shows of the reasoning only how long it was."""

    def __init__(self, console: Console, pool: Pool, ask: Ask, fold: bool) -> None:
        self._console, self._pool, self._ask, self._fold = console, pool, ask, fold
        self._chosen = list(pool.entries)[:2]
        self._said: dict[str, list[Said]] = {}

    def listen(self) -> None:
        self._console.print(f"[dim]{HELP}; answering: {', '.join(self._chosen)}[/dim]")
        while True:
            try:
                line = self._console.input("[bold]> [/bold]").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if line == "/quit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                for name in self._chosen:
                    self._answer(self._pool.model(name), line)

    def _command(self, line: str) -> None:
        command, _, rest = line.partition(" ")
        if command == "/models":
            self._console.print(", ".join(self._pool.entries), markup=False)
        elif command == "/use":
            self._choose([name for name in self._pool.entries if rest and rest in name])
        elif command == "/compare":
            self._choose(self._named(rest))
        elif command == "/stats":
            self._console.print(self._stats())
        else:
            self._console.print(HELP, markup=False)

    def _named(self, rest: str) -> list[str]:
        """Whole names, which hold blanks, or parts of names, in the order they were said."""
        found: dict[int, str] = {}
        for name in sorted(self._pool.entries, key=len, reverse=True):
            if name in rest:
                found[rest.index(name)] = name
                rest = rest.replace(name, " " * len(name))
        for word in re.finditer(r"\S+", rest):
            part = next((name for name in self._pool.entries if word[0] in name), None)
            if part is None:
                self._console.print(f"no model is called {word[0]!r}", markup=False)
            else:
                found[word.start()] = part
        return list(dict.fromkeys(found[place] for place in sorted(found)))

    def _choose(self, names: list[str]) -> None:
        self._chosen = names or self._chosen
        self._console.print(f"answering: {', '.join(self._chosen)}", markup=False)

    def _stats(self) -> Table:
        columns = ("model", "answers", "tokens", "tokens/s", "first token, s")
        table = Table(*columns)
        for name, answers in self._said.items():
            # An answer that came in one piece has no rate.
            rates = [said.tokens_per_s for said in answers if said.tokens_per_s]
            table.add_row(
                name,
                str(len(answers)),
                str(sum(said.tokens for said in answers)),
                f"{mean(rates):.1f}" if rates else "",
                f"{mean(said.first_token_s for said in answers):.2f}",
            )
        return table

    def _answer(self, model: ModelProcess, question: str) -> None:
        """Stream one answer; reasoning is dim. Ctrl-C ends this answer only."""
        name = model.entry.name
        self._console.rule(name, align="left")
        said, before = None, Said()
        try:
            for (said,) in say([model], question, self._ask):
                self._show(before, said)
                before = said
        except KeyboardInterrupt:
            self._console.print("\n(stopped)")
        if said is not None and said.problem is not None:
            self._console.print(f"{name} cannot answer: {said.problem}", markup=False)
        elif said is not None and said.tokens:
            self._said.setdefault(name, []).append(said)
            if self._fold and not said.answer:
                self._print(_thought(said), "dim")
            ended = "" if said.finish in ("stop", None) else f", ended by {said.finish}"
            self._console.print(
                f"\n[dim]{said.tokens} tokens, {said.tokens_per_s:.1f} tokens/s, "
                f"first after {said.first_token_s:.2f} s{ended}[/dim]"
            )

    def _show(self, before: Said, said: Said) -> None:
        if not self._fold:
            self._print(said.reasoning[len(before.reasoning) :], "dim")
        if said.answer and not before.answer and said.reasoning:
            self._print(f"{_thought(said) if self._fold else ''}\n", "dim")
        self._print(said.answer[len(before.answer) :], "")

    def _print(self, text: str, style: str) -> None:
        """What a model wrote, which must not move the cursor or colour what follows."""
        text = text.translate(CONTROL)
        self._console.print(text, end="", style=style, markup=False, highlight=False)


def _thought(said: Said) -> str:
    return f"(thought for {len(said.reasoning.split())} words)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m apps.terminal", description="Talk to a run's models in the terminal."
    )
    parser.add_argument("run", type=Path, help="a run or a bundle, for example runs/default")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--thinking-budget", type=int, metavar="TOKENS")
    parser.add_argument("--fold", action="store_true", help="do not show the reasoning")
    return parser


if __name__ == "__main__":
    sys.exit(main())
