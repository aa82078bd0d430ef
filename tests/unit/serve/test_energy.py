"""Energy comes from counters that are there, and is unknown where there are none."""

import pytest

from serve import energy
from serve.energy import EnergyMeter


def counter(folder, name, microjoules):
    zone = folder / name
    zone.mkdir(exist_ok=True)
    (zone / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_are_summed_and_their_parts_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    monkeypatch.setattr(energy, "_gpu_watts", lambda: None)
    counter(tmp_path, "intel-rapl:0", 1_000_000)
    counter(tmp_path, "intel-rapl:1", 5_000_000)
    counter(tmp_path, "intel-rapl:0:0", 0)
    meter = EnergyMeter()
    counter(tmp_path, "intel-rapl:0", 3_500_000)
    counter(tmp_path, "intel-rapl:1", 6_000_000)
    counter(tmp_path, "intel-rapl:0:0", 9_000_000)
    assert meter.used_j() == pytest.approx(3.5)
    counter(tmp_path, "intel-rapl:0", 4_000_000)
    counter(tmp_path, "intel-rapl:1", 10)  # ran over its range
    assert meter.used_j() == pytest.approx(4.0)


def test_a_gpu_is_its_mean_power_between_readings(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path / "absent")
    watts, seconds = iter([100.0, 300.0, 300.0]), iter([0.0, 2.0, 5.0])
    monkeypatch.setattr(energy, "_gpu_watts", lambda: next(watts))
    monkeypatch.setattr(energy.time, "monotonic", lambda: next(seconds))
    meter = EnergyMeter()
    assert meter.used_j() == pytest.approx(400.0)
    assert meter.used_j() == pytest.approx(1300.0)


def test_nothing_that_counts_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "RAPL", tmp_path / "absent")
    monkeypatch.setattr(energy, "_gpu_watts", lambda: None)
    assert EnergyMeter().used_j() is None
