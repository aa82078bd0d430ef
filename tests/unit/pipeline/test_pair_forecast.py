"""What the preflight says of time and memory, from answers that are measured. The engines are
scripts here, each answer a second."""

from itertools import count
from types import SimpleNamespace

import pytest

import serve.engines
from pipeline import pair_forecast
from pipeline.recipe_files import find_recipe, load_recipe
from serve.messages import Completion


class Engine:
    def grade(self, requests, top):
        return [SimpleNamespace(scores=SimpleNamespace(ids=range(20))) for _ in requests]

    def generate(self, requests):
        for request in requests:
            done = Completion(text="", finish="stop", prompt_tokens=1, completion_tokens=10)
            yield request.key, done

    def close(self):
        pass


@pytest.fixture
def scripted(monkeypatch):
    seconds = count()
    monkeypatch.setattr(pair_forecast, "open_teacher", lambda _: Engine())
    monkeypatch.setattr(serve.engines, "load_engine", lambda *_, **__: Engine())
    monkeypatch.setattr(pair_forecast, "time", SimpleNamespace(monotonic=lambda: next(seconds)))


@pytest.mark.usefixtures("scripted")
def test_answers_are_taken_to_be_as_long_as_the_recipe_lets_them(tmp_path):
    found = {}
    for limit in (100, 4000):
        recipe = load_recipe(find_recipe("default"), (f"on_policy.max_tokens={limit}",))
        found[limit] = pair_forecast.measured(recipe, tmp_path)
    # 8 texts of 20 tokens in a second; 32 attempts of 10.
    assert found[100] == pytest.approx((35 / 160, 35 / 320))
    assert found[4000] == pytest.approx((1400 / 160, 1400 / 320))
    bare = load_recipe(find_recipe("default"), ("teacher.examples=[]", "on_policy.max_tokens=100"))
    assert pair_forecast.measured(bare, tmp_path) == pytest.approx((35 / 20, 35 / 320))


@pytest.mark.usefixtures("scripted")
def test_a_recipe_for_gpus_is_told_what_it_wants_of_one(monkeypatch, tmp_path):
    monkeypatch.setattr(pair_forecast, "parameters_of", lambda _: 10**9)
    monkeypatch.setattr(pair_forecast, "teacher_weights", lambda *_, **__: 8 * 10**9)
    monkeypatch.setattr(pair_forecast, "_teacher_bytes", lambda _: 0)
    lines = list(pair_forecast.forecast(load_recipe(find_recipe("gpu-h100")), tmp_path, "aligned"))
    assert lines[1] == (
        "memory   of a GPU: SFT 37.0 of 77.6 GiB: fits; practice 77.5 of 77.6 GiB: fits"
    )
    plain = list(pair_forecast.forecast(load_recipe(find_recipe("default")), tmp_path, "aligned"))
    assert not any("of a GPU" in line for line in plain)
