"""What takes minutes of training is left out where training is slow, and said to be."""

import os
import time

import numpy as np
import pytest
from hypothesis import settings

from serve.hardware import has_fast_bfloat16

# Of a product of 1,024 x 1,024 float32 matrices. Two cores of a first-generation EPYC do 69, with
# which the suite would take two hours; the next ones do more than twice that.
ENOUGH_GFLOPS = 90.0

# A busy machine is no finding, and what is drawn is the same each time.
settings.register_profile("retort", deadline=None, derandomize=True)
settings.load_profile("retort")


def gflops():
    """The best of a few products, so that another process's moment does not count."""
    matrix = np.random.default_rng(0).random((1024, 1024), dtype=np.float32)
    taken_s = []
    for _ in range(20):
        started_s = time.perf_counter()
        matrix @ matrix
        taken_s.append(time.perf_counter() - started_s)
    return 2 * 1024**3 / min(taken_s) / 1e9


def pytest_collection_modifyitems(items):
    if has_fast_bfloat16() or os.environ.get("RETORT_SLOW"):
        return
    reasons = {"slow": "minutes of training on a processor without bfloat16"}
    if any(item.get_closest_marker("heavy") for item in items) and gflops() < ENOUGH_GFLOPS:
        reasons["heavy"] = f"minutes at less than {ENOUGH_GFLOPS:g} float32 GFLOP/s"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{reason}; RETORT_SLOW=1 runs it"))
