"""Batches without padding: which places stay."""

import torch

from pipeline.packing import TOKEN_MULTIPLE, kept_places


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
