"""Makes one report of several: ``python -m benchmarks.merge results/A.json results/B.json``.

Groups can so be measured apart. Targets are judged anew from what was measured; of a scenario that several files have, the
last one counts. Each section says with what command, and when, it was measured.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.catalogue import read
from benchmarks.report import facts, new_stem
from benchmarks.section import write


def main(arguments: list[str]) -> int:
    """Merge, and say where it is."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 64
    sections = read([Path(name) for name in arguments])
    report = write(sections, facts(arguments, "benchmarks.merge"), new_stem())
    print(report.read_text())
    print(f"written: {os.path.relpath(report)} (and .json)")
    return 1 if any(one.is_met is False for section in sections for one in section.targets) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
