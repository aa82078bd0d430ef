"""Libraries keep their bars and advice to themselves: stdout is the run's own."""

from __future__ import annotations

import logging
import os

QUIET = {
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def quieten() -> None:
    """Before any library is loaded. What the environment already says of them holds."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # It writes on stdout that it found no GPU, once transformers sees it installed. Its own level
    # and handler are set as it is loaded; a filter stays.
    logging.getLogger("DeepSpeed").addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
