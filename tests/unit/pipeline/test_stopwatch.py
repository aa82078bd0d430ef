"""A stage's cost counts what killed processes spent on it."""

import json
import time

import pytest

from pipeline.stopwatch import Spent, Stopwatch


def left(path, took_s, fingerprint="one", energy_j=None):
    path.write_text(
        json.dumps({"fingerprint": fingerprint, "took_s": took_s, "energy_j": energy_j})
    )


def test_costs_add_up_where_they_are_known():
    assert Spent(1.0, None) + Spent(2.0, None) == Spent(3.0, None)
    assert Spent(1.0, 4.0) + Spent(2.0, None) == Spent(3.0, 4.0)
    assert Spent(1.0, 4.0) + Spent(2.0, 5.0) == Spent(3.0, 9.0)


def test_a_resumed_stage_goes_on_counting_and_leaves_nothing(tmp_path):
    path = tmp_path / "logs" / "stage.json"
    path.parent.mkdir()
    left(path, 100.0, energy_j=7.0)
    with Stopwatch(path, "one") as watch:
        spent = watch.spent()
    assert spent.took_s == pytest.approx(100.0, abs=5.0)
    assert spent.took_s > 100.0
    assert spent.energy_j is not None
    assert spent.energy_j >= 7.0
    assert not path.exists()


@pytest.mark.parametrize("torn", ['{"fingerprint": "one"', '{"fingerprint": "one"}', "[]"])
def test_another_stage_or_a_torn_file_counts_nothing(tmp_path, torn):
    path = tmp_path / "stage.json"
    left(path, 100.0, "another")
    with Stopwatch(path, "one") as watch:
        assert watch.spent().took_s < 50
    path.write_text(torn)
    with Stopwatch(path, "one") as watch:
        assert watch.spent().took_s < 50


def test_a_failed_stage_leaves_what_it_cost(tmp_path):
    path = tmp_path / "logs" / "stage.json"
    with pytest.raises(KeyError), Stopwatch(path, "one"):
        raise KeyError
    assert json.loads(path.read_text())["fingerprint"] == "one"


def test_a_killed_stage_left_its_last_beat(tmp_path):
    path = tmp_path / "stage.json"
    with Stopwatch(path, "one", beat_s=0.01):
        until_s = time.monotonic() + 30
        while not path.exists() and time.monotonic() < until_s:
            time.sleep(0.01)
        assert json.loads(path.read_text())["took_s"] > 0
