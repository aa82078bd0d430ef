"""Rounding against correlated inputs, on numbers small enough to check."""

import numpy as np
import pytest
import torch

from quant import gptq
from quant.codes import Coded
from quant.gptq import _inverse_root, rounded

UNIFORM, CURVED = np.arange(-8.0, 8.0), np.array([-8.0, -5, -3, -2, -1, 0, 1, 2, 4, 7, 10])


def grid(rows: int, columns: int, levels=UNIFORM, scale: float = 0.2) -> Coded:
    groups = np.full((rows, columns // 16), scale, np.float32)
    codes = np.zeros((rows, columns), np.uint8)
    return Coded(codes, groups, np.zeros_like(groups), levels.astype(np.float32))


def values(coded: Coded, codes: np.ndarray) -> np.ndarray:
    width = codes.shape[1] // coded.scale.shape[1]
    return np.repeat(coded.scale, width, 1) * coded.levels[codes] + np.repeat(coded.base, width, 1)


def nearest(coded: Coded, weights: np.ndarray) -> np.ndarray:
    width = weights.shape[1] // coded.scale.shape[1]
    wanted = (weights - np.repeat(coded.base, width, 1)) / np.repeat(coded.scale, width, 1)
    return np.abs(wanted[..., None] - coded.levels).argmin(axis=-1)


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(400, 6)) @ random.normal(size=(6, 64))
    inputs += 0.1 * random.normal(size=inputs.shape)
    weights = (0.5 * random.normal(size=(48, 64))).astype(np.float32)
    return inputs, weights


@pytest.mark.parametrize("levels", [UNIFORM, CURVED])
def test_errors_cancel_on_correlated_inputs(case, levels):
    inputs, weights = case
    coded = grid(48, 64, levels)
    (codes,) = rounded([weights], [coded], _inverse_root(torch.tensor(inputs.T @ inputs)))
    errors = [
        np.square(inputs @ (weights - values(coded, chosen)).T).mean()
        for chosen in (nearest(coded, weights), codes)
    ]
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("levels", [UNIFORM, CURVED])
def test_uncorrelated_inputs_are_rounded_to_the_nearest(case, levels):
    _, weights = case
    coded = grid(48, 64, levels)
    (codes,) = rounded([weights], [coded], _inverse_root(torch.eye(64)))
    assert np.array_equal(codes, nearest(coded, weights))


def test_the_strongest_columns_are_rounded_first():
    """They would otherwise be rounded with the losses of all the weak ones on them."""
    random = np.random.default_rng(2)
    mixed = random.normal(size=(400, 32)) @ random.normal(size=(32, 32))
    inputs = mixed * np.linspace(0.02, 3.0, 32)
    weights = (0.5 * random.normal(size=(64, 32))).astype(np.float32)
    coded = grid(64, 32)
    root = _inverse_root(torch.tensor(inputs.T @ inputs))
    assert root.order[0] > 16 > root.order[-1]
    strengths = np.square(inputs).sum(axis=0)[root.order.numpy()]
    assert list(strengths) == sorted(strengths, reverse=True)
    (codes,) = rounded([weights], [coded], root)
    assert (
        np.square(inputs @ (weights - values(coded, codes)).T).mean()
        < 0.5 * np.square(inputs @ (weights - values(coded, nearest(coded, weights))).T).mean()
    )


def test_weights_are_rounded_as_they_would_be_alone(case, monkeypatch):
    inputs, weights = case
    root = _inverse_root(torch.tensor(inputs.T @ inputs))
    kinds = [grid(48, 64), grid(48, 64, CURVED), grid(48, 64, scale=0.3)]
    together = rounded([weights] * 3, kinds, root)
    monkeypatch.setattr(gptq, "ROWS_AT_A_TIME", 10)
    for kind, codes in zip(kinds, together, strict=True):
        (alone,) = rounded([weights], [kind], root)
        # A product over more rows may add up in another order.
        assert (alone == codes).mean() > 0.999
    assert not np.array_equal(together[0], together[2])


def test_a_group_without_a_step_and_inputs_that_are_always_zero():
    random = np.random.default_rng(1)
    inputs, weights = random.normal(size=(90, 32)), np.full((4, 32), 0.5, np.float32)
    weights[:, 16:] = 0.5 * random.normal(size=(4, 16)).clip(-2, 2)
    inputs[:, 20] = 0
    coded = grid(4, 32)
    coded.scale[:, 0], coded.base[:, 0] = 0, 0.5
    (codes,) = rounded([weights], [coded], _inverse_root(torch.tensor(inputs.T @ inputs)))
    assert np.array_equal(values(coded, codes)[:, :16], weights[:, :16])
    assert np.abs(values(coded, codes)[:, 16:] - weights[:, 16:]).max() < 1.0
