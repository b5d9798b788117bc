"""Authors' commands: `python -m tools.authoring --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.lab.course_error import run_command
from tools.lab.labs import GENERATED_BY
from utils.profiles import ROOT


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.authoring", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="write labs/ and solutions/ from solutions/*.py")
    make.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    make.add_argument("--force", action="store_true", help="overwrite notebooks somebody ran")
    make.add_argument("--lab", help="one lab: 3, 3.3.3 or a file name")
    commands.add_parser("list", help="labs, exercises, minutes, points")
    tried = commands.add_parser("checks", help="try every check: right, empty, wrong solutions")
    tried.add_argument("--messages", action="store_true", help="show what learners would read")
    commands.add_parser("tables", help="write the tables of LAB_PREP.md and QUICK_REFERENCE.md")
    release = commands.add_parser("release", help="write the folder that learners get")
    release.add_argument("target", type=Path, help="the folder")
    return run_command(lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    root: Path = args.root
    match args.command:
        case "build":
            return _check(root, args.lab) if args.check else _build(args)
        case "list":
            return _list(root)
        case "release":
            return _release(root, args.target.resolve())
        case "tables":
            from tools.authoring.generated_tables import write_tables

            for path in write_tables(root):
                print(f"wrote {path.relative_to(root)}")
            return 0
        case _:
            from tools.authoring.check_selftest import report

            return report(root, messages=args.messages)


def _build(args: argparse.Namespace) -> int:
    from tools.authoring.build import build

    written = build(args.root, args.lab, force=args.force)
    for path in written:
        print(f"wrote {path.relative_to(args.root)}")
    if not written:
        print("every notebook is fresh")
    return 0


def _check(root: Path, only: str | None) -> int:
    from tools.authoring.build import drift

    found = drift(root, only)
    for item in found:
        print(f"{item.path.relative_to(root)}:{item.line} {item.reason}")
        if item.diff:
            print(item.diff)
    if found:
        print(f"\nMake them again: {GENERATED_BY}   (delete notebooks that have no source)")
        return 1
    print("every notebook is what its source makes")
    return 0


def _release(root: Path, target: Path) -> int:
    from tools.authoring.release import report_release, write_release

    report_release(target, write_release(root, target))
    return 0


def _list(root: Path) -> int:
    from tools.authoring.build import read_labs
    from tools.lab.labs import count

    for lab in read_labs(root):
        minutes = sum(exercise.minutes for exercise in lab.exercises)
        points = sum(exercise.points for exercise in lab.exercises)
        points += sum(answer.points for answer in lab.answers)
        exercises = count(len(lab.exercises), "exercise")
        print(f"{lab.source.stem}: {exercises}, {minutes} min, {count(points, 'point')}")
        for e in lab.exercises:
            facts = f"{'★' * e.difficulty:<5} {e.minutes:>3} min {count(e.points, 'point'):>9}"
            print(f"  {e.number}. {e.title:<44} {facts}  {e.id}")
        for answer in lab.answers:
            facts = f"{'':<5} {'':>7} {count(answer.points, 'point'):>9}"
            print(f"     {'written answer, graded by a person':<44} {facts}  {answer.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
