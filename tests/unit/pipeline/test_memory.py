"""Huge pages are asked for at the start of a process, once, unless the user chose otherwise."""

import os
import subprocess
import sys

import pytest

from pipeline.memory import HUGE_PAGES, KERNEL_CHOICE, TUNABLES

SCRIPT = (
    "import os, sys; from pipeline.memory import start_again_on_huge_pages as again; again();"
    f"print(os.environ.get('{TUNABLES}'), sys.argv[1:])"
)


def started(environment: dict[str, str]) -> str:
    plain = {k: v for k, v in os.environ.items() if k != TUNABLES}
    command = [sys.executable, "-c", SCRIPT, "--run", "a b"]
    done = subprocess.run(
        command, env={**plain, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.skipif(not KERNEL_CHOICE.is_file(), reason="this kernel has no huge pages")
def test_a_process_starts_again_with_its_own_arguments():
    if "[never]" in KERNEL_CHOICE.read_text():
        pytest.skip("huge pages are off")
    assert started({}) == f"{HUGE_PAGES} ['--run', 'a b']"


def test_a_choice_of_the_user_stays():
    chosen = "glibc.malloc.arena_max=2"
    assert started({TUNABLES: chosen}) == f"{chosen} ['--run', 'a b']"


def test_memory_of_a_finished_model_goes_back_to_the_kernel():
    script = """
import os
from pipeline.memory import give_back_memory, keep_freed_memory
keep_freed_memory()
def resident_mb():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
class Node: pass
def cycle():
    node = Node(); node.itself = node
    node.parts = [b"x" * (60_000 + i) for i in range(5000)]
before = resident_mb(); cycle(); held = resident_mb() - before
give_back_memory(); kept = resident_mb() - before
print(round(held), round(kept))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    held, kept = map(int, done.stdout.split())
    assert held >= 280
    assert kept <= 30
