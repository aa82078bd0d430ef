"""Processes below this one, while some of them end."""

import os

import psutil


def below(words: str, parent: int | None = None) -> list[psutil.Process]:
    """Those below `parent`, or below this process, whose command line holds `words`."""
    found = []
    for process in psutil.Process(parent or os.getpid()).children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # ended since
        if words in line:
            found.append(process)
    return found
