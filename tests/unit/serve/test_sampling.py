import numpy as np
import pytest
import torch

from serve.engines.decoding import pick_tokens_there
from serve.engines.sampling import pick_token, pick_tokens, uniform
from serve.messages import Sampling

LOGITS_V = np.log(np.array([0.5, 0.25, 0.15, 0.1], dtype=np.float32))


def shares(sampling: dict, draws: int = 4000) -> np.ndarray:
    picked = [pick_token(LOGITS_V, Sampling(seed=s, **sampling), 0) for s in range(draws)]
    return np.bincount(picked, minlength=4) / draws


def test_temperature_zero_takes_the_best():
    assert pick_token(LOGITS_V, Sampling(temperature=0.0, seed=5), 3) == 0


def test_temperature_one_draws_the_distribution():
    # 4,000 fixed seeds: the same numbers every time, within sampling error of the distribution.
    assert shares({"temperature": 1.0}) == pytest.approx([0.5, 0.25, 0.15, 0.1], abs=0.02)


def test_temperature_sharpens():
    sharp = np.array([0.5, 0.25, 0.15, 0.1]) ** 2
    assert shares({"temperature": 0.5}) == pytest.approx(sharp / sharp.sum(), abs=0.02)


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    assert shares({"temperature": 1.0, "top_p": 0.7}) == pytest.approx(
        [2 / 3, 1 / 3, 0, 0], abs=0.02
    )
    assert shares({"temperature": 1.0, "top_p": 0.01}).tolist() == [1, 0, 0, 0]


def sorted_whole(logits_V, sampling, position):
    """The definition: all tokens sorted, the nucleus cut, one drawn."""
    scores_V = (logits_V.astype(np.float64) - logits_V.max()) / sampling.temperature
    order_V = np.argsort(-scores_V, kind="stable")
    cumulative_V = np.cumsum(np.exp(scores_V[order_V]))
    cumulative_V /= cumulative_V[-1]
    kept = int(np.searchsorted(cumulative_V, sampling.top_p)) if sampling.top_p < 1 else -1
    draw = uniform(sampling.seed, position) * cumulative_V[kept]
    return int(order_V[np.searchsorted(cumulative_V, draw, side="right")])


@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 6.0], ids=lambda s: f"spread {s}")
def test_sorting_a_few_draws_what_sorting_all_does(spread):
    # From nearly all tokens alike, where thousands are sorted, to a handful that matter.
    draw = np.random.default_rng(5)
    for number in range(120):
        logits_V = (draw.standard_normal(5000) * spread).astype(np.float32)
        sampling = Sampling(
            temperature=(0.3, 0.7, 1.0, 1.5)[number % 4],
            top_p=(1.0, 0.95, 0.5)[number % 3],
            seed=number,
        )
        assert pick_token(logits_V, sampling, number) == sorted_whole(logits_V, sampling, number)


def test_the_random_number_depends_on_seed_and_position_alone():
    assert uniform(3, 7) == uniform(3, 7)
    assert len({uniform(seed, position) for seed in range(30) for position in range(30)}) == 900
    assert 0.0 <= min(uniform(1, p) for p in range(1000)) < 0.01


def test_a_gpu_draws_what_a_processor_draws():
    draw = np.random.default_rng(3)
    logits_BV = (draw.standard_normal((9, 400)) * 3).astype(np.float32)
    logits_BV[4] -= logits_BV[4]  # all alike: ties are broken by id
    samplings = [
        Sampling(temperature=temperature, top_p=top_p, seed=seed)
        for seed, (temperature, top_p) in enumerate(
            [(1.0, 1.0), (0.0, 1.0), (0.7, 0.95), (1.5, 0.5), (1.0, 1.0), (0.05, 1.0)] * 2
        )
    ][:9]
    for position in range(200):
        expected = pick_tokens(logits_BV, samplings, position)
        there = pick_tokens_there(torch.from_numpy(logits_BV), samplings, position)
        assert there.tolist() == expected


@pytest.mark.parametrize("temperature", [1e-3, 1e-8, 1e-9, 5e-324])
def test_the_coldest_temperature_takes_the_best(temperature):
    logits_V = np.array([3.0, 17.25, 17.0, -2.0], dtype=np.float32)
    sampling = Sampling(temperature=temperature, top_p=0.95, seed=3)
    assert pick_token(logits_V, sampling, 0) == 1
    assert pick_tokens_there(torch.from_numpy(logits_V)[None], [sampling], 0).tolist() == [1]
