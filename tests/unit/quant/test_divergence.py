"""KL and top-1 on numbers that can be checked by hand."""

import numpy as np
import pytest

from quant.divergence import ROWS_AT_A_TIME, Tally, kl_nats, log_softmax


def test_log_softmax_sums_to_one_and_ignores_a_shift():
    logits = np.array([[1.0, 2.0, 3.0], [1000.0, 1000.0, 1000.0]], dtype=np.float32)
    result = log_softmax(logits)
    assert np.exp(result).sum(axis=1) == pytest.approx([1.0, 1.0])
    assert result[1] == pytest.approx(np.log(1 / 3))
    assert log_softmax(logits + 7)[0] == pytest.approx(result[0], abs=1e-6)


def test_kl_of_two_coins():
    one, other = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert kl_nats(one.astype(np.float32), other.astype(np.float32))[0] == pytest.approx(expected)
    assert kl_nats(one.astype(np.float32), one.astype(np.float32))[0] == 0.0


def test_kinds_are_counted_apart():
    logits = np.zeros((3 * ROWS_AT_A_TIME, 4), dtype=np.float32)
    logits[:, 1] = 2.0
    changed = logits.copy()
    changed[0] = [5.0, 0.0, 0.0, 0.0]
    tally = Tally()
    tally.add(log_softmax(logits), changed)
    first = [index == 0 for index in range(len(logits))]
    found = tally.by_kind({"number": first, "none": [False] * len(logits)})
    assert sorted(found) == ["all", "number"]
    assert (found["number"].tokens, found["number"].top1_share) == (1, 0.0)
    assert found["all"].top1_share == pytest.approx(1 - 1 / len(logits))
    assert found["all"].mean_nats == pytest.approx(found["number"].mean_nats / len(logits))
    assert found["all"].p99_nats == pytest.approx(0.0, abs=1e-6)
