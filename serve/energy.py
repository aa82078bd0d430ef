"""Joules this machine has used, where it says so: RAPL counters of the processor, NVML of a GPU.

A difference of two readings is the whole machine's, whoever caused it.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

RAPL = Path("/sys/class/powercap")
NVIDIA = ("--query-gpu=power.draw", "--format=csv,noheader,nounits")


class EnergyMeter:
    """Started when made. `used_j` is None where nothing reports energy."""

    def __init__(self) -> None:
        self._zones, self._watts = _zones(), _gpu_watts()
        self._read_s = time.monotonic()
        self._processor_j: float | None = None
        self._gpu_j: float | None = None

    def used_j(self) -> float | None:
        """Processor packages by their counters; GPUs by the mean power between two readings, so
        that frequent readings make it exact."""
        zones, watts, now_s = _zones(), _gpu_watts(), time.monotonic()
        both = self._zones.keys() & zones.keys()
        if both:
            # A counter that ran over its range says nothing.
            used = (max(0, zones[name] - self._zones[name]) for name in both)
            self._processor_j = (self._processor_j or 0.0) + sum(used) / 1e6
        if self._watts is not None and watts is not None:
            mean_w = (self._watts + watts) / 2
            self._gpu_j = (self._gpu_j or 0.0) + mean_w * (now_s - self._read_s)
        self._zones, self._watts, self._read_s = zones, watts, now_s
        known = [j for j in (self._processor_j, self._gpu_j) if j is not None]
        return sum(known) if known else None


def _zones() -> dict[str, int]:
    """Microjoules of every processor package; those of its parts are inside it."""
    found = {}
    for zone in sorted(RAPL.glob("intel-rapl:?")) if RAPL.is_dir() else []:
        try:
            found[zone.name] = int((zone / "energy_uj").read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return found


def _gpu_watts() -> float | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    done = subprocess.run([tool, *NVIDIA], capture_output=True, text=True, check=False)
    try:
        return sum(float(line) for line in done.stdout.split())
    except ValueError:
        return None
