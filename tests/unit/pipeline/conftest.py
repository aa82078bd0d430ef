"""For tests that train tiny models."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """Threads of a busy machine wait for each other at every one of these small products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
