"""Two models side by side in the browser.

    python -m apps.chat RUN [--port 7860]

Shows text only, listens on this machine only, keeps nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from apps.conversation import Said, Speaker, say, speakers
from serve.errors import DataError, RetortError, UsageError
from serve.messages import Sampling

LONGEST_QUESTION_CHARACTERS = 4_000
QUEUE = 16


def build(run: Path) -> gr.Blocks:
    """The page over one run folder. Raises DataError when there is nothing to talk to."""
    by_name = {s.name: s for s in speakers(run)}
    if not by_name:
        raise DataError(f"{run} holds no model to talk to")
    names = list(by_name)
    with gr.Blocks(title="Retort", analytics_enabled=False) as page:
        gr.Markdown(f"## Retort · {run.name}\nTwo models answer the same question.")
        question = gr.Textbox(
            label="Question",
            placeholder="Solve the following multiplication: 23 * 47.",
            max_length=LONGEST_QUESTION_CHARACTERS,
            lines=2,
        )
        with gr.Row():
            temperature = gr.Slider(0.0, 1.5, 0.0, step=0.1, label="Temperature (0 = greedy)")
            limit = gr.Slider(16, 512, 256, step=16, label="Longest answer, tokens")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31)
        with gr.Row():
            ask = gr.Button("Ask", variant="primary")
            stop = gr.Button("Stop")
        with gr.Row():
            columns = [
                _column(names, default) for default in (names[0], names[min(1, len(names) - 1)])
            ]
        runs = []
        for choice, reasoning, answer, numbers in columns:

            def reply(
                name: str, text: str, temperature_: float, limit_: float, seed_: float
            ) -> Iterator[tuple[str, str, str]]:
                yield from _reply(by_name, name, text, temperature_, limit_, seed_)

            event = gr.on(
                [ask.click, question.submit],
                reply,
                [choice, question, temperature, limit, seed],
                [reasoning, answer, numbers],
                concurrency_limit=1,
                concurrency_id="answers",
            )
            runs.append(event)
        stop.click(None, cancels=runs)
    page.queue(max_size=QUEUE)
    return page


def _column(
    names: list[str], default: str
) -> tuple[gr.Dropdown, gr.Textbox, gr.Textbox, gr.Textbox]:
    with gr.Column(min_width=280):
        choice = gr.Dropdown(names, value=default, label="Model")
        with gr.Accordion("Reasoning", open=True):
            reasoning = gr.Textbox(show_label=False, lines=6, interactive=False)
        answer = gr.Textbox(label="Answer", lines=2, interactive=False)
        numbers = gr.Textbox(label="Speed", lines=1, interactive=False)
    return choice, reasoning, answer, numbers


def _reply(
    by_name: dict[str, Speaker],
    name: str,
    question: str,
    temperature: float,
    limit: float,
    seed: float,
) -> Iterator[tuple[str, str, str]]:
    """Stream (reasoning, answer, numbers); a model that fails says why in its own column."""
    if not question.strip():
        yield "", "Type a question first.", ""
        return
    yield "", "", f"loading {name} …"
    sampling = Sampling(
        temperature=temperature, top_p=0.95, max_tokens=int(limit), seed=int(seed or 0)
    )
    try:
        for said in say(by_name[name], question.strip(), sampling):
            yield said.reasoning, said.answer, numbers_line(said)
    except RetortError as error:
        yield "", f"{name} cannot answer: {error}", ""


def numbers_line(said: Said) -> str:
    """Tokens, rate and time to first token, as one line."""
    return (
        f"{said.tokens} tokens · {said.tokens_per_s:.1f} tokens/s · "
        f"first token after {said.first_token_s:.2f} s"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m apps.chat", description="Two models side by side in the browser."
    )
    parser.add_argument("run", type=Path, help="a run folder, for example runs/default")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args(arguments)
    try:
        page = build(options.run)
        page.launch(
            server_name="127.0.0.1",
            server_port=options.port,
            share=False,
            allowed_paths=[],
            show_error=False,
            quiet=True,
            footer_links=[],
            prevent_thread_lock=True,
        )
        print(f"open http://127.0.0.1:{options.port} (Ctrl-C ends)", flush=True)
        page.block_thread()
    except OSError as error:
        problem = UsageError(f"port {options.port} cannot be used: {error}", hint="try --port")
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
