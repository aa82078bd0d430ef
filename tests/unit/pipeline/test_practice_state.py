"""A state on disk gives back weights and moments to the bit, and is there whole or not at all."""

import pytest
import torch

from pipeline.practice_state import load_state, save_state
from serve.errors import DiskError


def trained(steps):
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


def test_going_on_equals_never_having_stopped(tmp_path):
    whole, _ = trained(5)
    model, optimizer = trained(3)
    save_state(tmp_path, 1, *trained(1), {"rows": [1]})
    save_state(tmp_path, 3, model, optimizer, {"rows": [1, 2, 3]})
    assert [p.name for p in tmp_path.iterdir()] == ["state-000003"]
    again, fresh = trained(0)
    assert load_state(tmp_path, again, fresh) == {"rows": [1, 2, 3], "block": 3}
    for _ in range(2):
        step(again, fresh)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_nothing_there_is_a_state_of_its_own(tmp_path):
    assert load_state(tmp_path, *trained(0)) is None


def test_a_folder_that_cannot_be_written_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"cannot write .*state-000001"):
        save_state(tmp_path / "file", 1, *trained(1), {})
