"""What takes minutes of training is left out where training is slow, and said to be."""

import os

import pytest

from serve.hardware import has_fast_bfloat16


def pytest_collection_modifyitems(items):
    if has_fast_bfloat16() or os.environ.get("RETORT_SLOW"):
        return
    reason = "minutes of training on a processor without bfloat16; RETORT_SLOW=1 runs it"
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason=reason))
