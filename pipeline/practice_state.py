"""What practice needs to go on after a kill: weights, moments and counters, written now and then.

Blocks after the newest state are computed again from their attempts and grades, which are kept
one by one; so states may be far apart.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.store import sync_folder, write_json
from serve.errors import DiskError


def save_state(
    folder: Path, block: int, model: Any, optimizer: torch.optim.Optimizer, counters: dict[str, Any]
) -> None:
    """`folder/state-BLOCK`, whole or not at all; older ones are removed after it is there.

    Raises DiskError.
    """
    final, partial = folder / f"state-{block:06d}", folder / ".state.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        save_file(_contiguous(weights), partial / "weights.safetensors")
        save_file(_contiguous(_moments(model, optimizer)), partial / "moments.safetensors")
        write_json(partial / "counters.json", counters | {"block": block})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DiskError(f"cannot write {final}: {error.strerror}") from error
    for path in sorted(folder.glob("state-*"))[:-1]:
        shutil.rmtree(path)


def load_state(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Restore the newest state and return its counters; None where there is none."""
    states = sorted(folder.glob("state-*"))
    if not states:
        return None
    newest = states[-1]
    weights = load_file(newest / "weights.safetensors")
    moments = load_file(newest / "moments.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
            held = {
                key: moments[f"{name}/{key}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}/{key}" in moments
            }
            if held:
                optimizer.state[parameter] = {
                    key: value.to(parameter.device) for key, value in held.items()
                }
    counters: dict[str, Any] = json.loads((newest / "counters.json").read_text(encoding="utf-8"))
    return counters


def _moments(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
