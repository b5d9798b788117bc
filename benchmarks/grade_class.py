"""How long a class takes to grade: `make bench-grade`. Untouched and solved submissions of one lab."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

from tools.grading.grade import Options, grade
from tools.lab.labs import find_lab
from utils.profiles import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grade_class", description=__doc__)
    parser.add_argument("--lab", default="1", help="3, 3.3.3 or a file name")
    parser.add_argument("--students", type=int, default=60, help="half of them solved the lab")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    fresh = find_lab(args.lab, ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for number in range(args.students):
            source = ROOT / ("solutions" if number % 2 else "labs") / fresh.name
            target = folder / "class" / f"student-{number:03}" / fresh.name
            target.parent.mkdir(parents=True)
            shutil.copy(source, target)
        began = time.monotonic()
        grade(ROOT, folder / "class", folder / "graded", Options(jobs=args.jobs))
        first = time.monotonic() - began
        began = time.monotonic()
        grade(ROOT, folder / "class", folder / "graded", Options(jobs=args.jobs))
        second = time.monotonic() - began
    print(
        f"\n{fresh.stem}, {args.students} submissions, {args.jobs} at a time on {os.cpu_count()} cores "
        f"({platform.machine()}): {first:.0f} s; a second time, with nothing new: {second:.0f} s"
    )


if __name__ == "__main__":
    main()
