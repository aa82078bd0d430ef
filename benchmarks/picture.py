"""Writes the README's picture and table from a finished run.

python -m benchmarks.picture runs/default
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipeline.plots import ladder_svg
from pipeline.report import print_results


def main() -> None:
    run = Path(sys.argv[1])
    ladder = json.loads((run / "08-evaluate" / "ladder.json").read_text(encoding="utf-8"))
    Path("docs/ladder.svg").write_text(ladder_svg(ladder), encoding="utf-8")
    print_results(run)


if __name__ == "__main__":
    main()
