"""The line every benchmark begins with: what ran where, and how busy the machine was."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from serve.hardware import cores, cpu_flags


def describe(*packages: str) -> str:
    load = " ".join(f"{x:.2f}" for x in os.getloadavg())
    isa = [
        flag
        for flag in ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
        if flag in cpu_flags()
    ]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{platform.machine()}, {cores()} cores, {' '.join(isa)}; {versions}; load average {load}"
    )
