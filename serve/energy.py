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
        self._started_s = time.monotonic()
        self._zones = _zones()
        self._watts = _gpu_watts()

    def used_j(self) -> float | None:
        """Processor packages by their counters; GPUs by mean power at both ends, a rough figure."""
        now = _zones()
        both = self._zones.keys() & now.keys()
        # A counter that ran over its range says nothing.
        used = [now[name] - self._zones[name] for name in both]
        processor = sum(u for u in used if u >= 0) / 1e6 if used else None
        watts = _gpu_watts()
        if self._watts is None or watts is None:
            return processor
        gpu = (self._watts + watts) / 2 * (time.monotonic() - self._started_s)
        return gpu + (processor or 0.0)


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
