"""Did practice help? The practised student beside that of SFT, on the same fresh items.

While chance alone could explain the difference, both are asked more items, as a file is whose
verdict is open (`pipeline/gate.py`). The interval is wider for that (Pocock): over all looks that
may be taken it misses the difference on either side with a probability of 2.5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.examine import ON_POLICY, SFT
from pipeline.ladder import Judged, against, greedy
from quant.stats import alpha_per_look

ALPHA_A_SIDE = 0.025


def confidence_per_look(sizes: Sequence[int]) -> float:
    """Of the interval at each of the looks that may be taken, at so many items each."""
    return 1 - 2 * alpha_per_look(sizes, ALPHA_A_SIDE)


def practice_gain(answers: Sequence[Judged], confidence: float) -> dict[str, Any] | None:
    """Of the items both students answered, as `ladder.against`; None without practice."""
    before, after = ([a for a in answers if a.rung == rung] for rung in (SFT, ON_POLICY))
    return against(greedy(before), greedy(after), confidence)


def is_open(gain: dict[str, Any] | None) -> bool:
    """True while chance alone could explain it."""
    return gain is not None and gain["interval"][0] <= 0 <= gain["interval"][1]
