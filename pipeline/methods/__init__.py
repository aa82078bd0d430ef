"""How graded attempts become lessons: METHODS, method name -> the module that holds its `lessons`.

`exact` is not among them: it sees whole distributions and is a trainer of its own
(`pipeline/exact.py`).
"""

from __future__ import annotations

from pipeline.methods import aligned, recover, span

METHODS = {"aligned": aligned, "span": span, "recover": recover}
