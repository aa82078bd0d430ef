"""Batches without padding: which places stay, and the loss over parts of the head."""

import torch

from pipeline.packing import TOKEN_MULTIPLE, kept_places
from pipeline.sft_trainer import HEAD_ROWS, summed_loss


def lengths(*counts: int, width: int) -> torch.Tensor:
    return torch.arange(width)[None] < torch.tensor(counts)[:, None]


def test_padding_fills_up_to_the_multiple_and_no_further():
    real = lengths(100, 60, 90, width=112)
    kept = kept_places(real)
    assert int(kept.sum()) == 2 * TOKEN_MULTIPLE
    assert bool((kept & real).sum() == real.sum())
    assert kept.sum(dim=1).tolist() == [106, 60, 90]


def test_a_batch_with_too_little_padding_keeps_all_of_it():
    assert kept_places(lengths(10, 12, width=16)).all()


def test_a_full_batch_of_a_fitting_size_keeps_nothing_else():
    real = lengths(64, 64, 0, width=64)
    assert torch.equal(kept_places(real), real)


def test_the_loss_in_parts_is_the_loss_at_once():
    torch.manual_seed(1)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(2 * HEAD_ROWS + 3, 8, requires_grad=True)
    labels = torch.randint(0, 50, (len(hidden),))
    at_once = torch.nn.functional.cross_entropy(head(hidden), labels, reduction="sum")
    (expected,) = torch.autograd.grad(at_once, hidden)
    in_parts = summed_loss(head, hidden, labels)
    (found,) = torch.autograd.grad(in_parts, hidden)
    torch.testing.assert_close(in_parts, at_once, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
