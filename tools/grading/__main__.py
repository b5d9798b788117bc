"""Instructors' commands: `python -m tools.grading --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.lab.course_error import CourseError, run_command
from tools.lab.open_lab import open_formgrader
from utils.profiles import ROOT


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.grading", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    graded = commands.add_parser("grade", help="grade a folder of submissions")
    graded.add_argument("submissions", type=Path, help="folder with one folder per student")
    graded.add_argument("out", type=Path, help="folder for the gradebook, feedback and report")
    graded.add_argument("--sandbox", default="bubblewrap", help="bubblewrap (default) or none")
    graded.add_argument("--seed", help="seed of the hidden inputs, for example the class's name")
    graded.add_argument("--jobs", help="number of notebooks judged at the same time")
    form = commands.add_parser("formgrader", help="open nbgrader's formgrader, for points by hand")
    form.add_argument("out", type=Path, help="folder that was graded into")
    form.add_argument("--headless", action="store_true", help="print the URL, open no browser")
    sample = commands.add_parser("sample-class", help="write submissions to practise on")
    sample.add_argument("folder", type=Path, help="folder to write; it gets one folder per student")
    sample.add_argument("--only", nargs="*", help="names of the students (default: all)")
    return run_command(lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    match args.command:
        case "grade":
            return _grade(args)
        case "formgrader":
            open_formgrader(args.out.resolve(), headless=args.headless)
        case _:
            return _sample_class(args.root, args.folder, args.only)


def _grade(args: argparse.Namespace) -> int:
    from tools.grading.grade import Options, grade  # takes seconds to import

    given = {key: vars(args)[key] for key in ("sandbox", "seed", "jobs") if vars(args)[key]}
    if "jobs" in given:
        if not (given["jobs"].isdecimal() and int(given["jobs"])):
            raise CourseError(f"JOBS={given['jobs']} is not a whole number of at least 1.")
        given["jobs"] = int(given["jobs"])
    return grade(args.root, args.submissions.resolve(), args.out.resolve(), Options(**given))


def _sample_class(root: Path, folder: Path, only: list[str] | None) -> int:
    from tools.lab.judge.hidden_tests import load_sample_class

    written = load_sample_class(root).write_class(root, folder, only)
    print(f"wrote {len(written)} submissions to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
