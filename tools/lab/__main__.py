"""Learners' commands: `python -m tools.lab --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.lab.course_error import run_command
from tools.lab.fresh_lab import make_fresh
from tools.lab.open_lab import open_lab
from utils.profiles import ROOT


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.lab", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("open", help="open a lab in JupyterLab")
    show.add_argument("lab", nargs="?", default="1", help="3, 3.3.3 or a file name")
    show.add_argument("--headless", action="store_true", help="print the URL, open no browser")
    for command, text in (
        ("run", "execute a lab into a file, without a browser"),
        ("fresh", "put a fresh notebook in a lab's place, and keep the old one"),
    ):
        commands.add_parser(command, help=text).add_argument("lab", help="3, 3.3.3 or a file name")
    commands.add_parser("progress", help="show your milestones")
    return run_command(lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    if args.command == "open":
        open_lab(args.lab, headless=args.headless, root=args.root)
    if args.command == "run":
        from tools.lab.run_lab import run_lab

        print(f"Done: {run_lab(args.lab, args.root)}. Open it in JupyterLab to see its figures.")
        return 0
    if args.command == "fresh":
        fresh, old = make_fresh(args.lab, args.root)
        print(f"{fresh.name} is fresh. Your own is now {old.relative_to(args.root)}.")
        return 0
    from tools.lab.milestones import (
        print_progress,  # takes seconds to import; `make lab` needs none of it
    )

    return print_progress(args.root)


if __name__ == "__main__":
    sys.exit(main())
