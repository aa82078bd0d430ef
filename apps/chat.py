"""The models of a run or a bundle side by side in the browser.

    python -m apps.chat RUN [--port 7860]

Listens on this machine only, keeps nothing but the cases it is asked to keep.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gradio as gr

from apps.chat_page import build
from apps.conversation import models_of
from apps.problem_source import ProblemSource
from apps.shown import STYLE
from serve.errors import RetortError, UsageError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        pool, problems = models_of(options.run), ProblemSource(options.run)
        page = build(options.run, pool, problems)
        try:
            _launch(page, options.port)
            print(f"open http://127.0.0.1:{options.port} (Ctrl-C ends)", flush=True)
            page.block_thread()
        finally:
            problems.close()
            pool.close()
    except RetortError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _launch(page: gr.Blocks, port: int) -> None:
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            allowed_paths=[],
            # The page takes no files, and gradio's route for them is there all the same.
            max_file_size=1,
            show_error=False,
            quiet=True,
            footer_links=[],
            css=STYLE,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UsageError(f"port {port} cannot be used: {error}", hint="try --port") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m apps.chat", description="Up to four models side by side in the browser."
    )
    parser.add_argument("run", type=Path, help="a run or a bundle, for example runs/default")
    parser.add_argument("--port", type=int, default=7860)
    return parser


if __name__ == "__main__":
    sys.exit(main())
