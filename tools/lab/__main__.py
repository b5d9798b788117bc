"""Learners' commands: `python -m tools.lab --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.lab.course_error import run_command
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
    commands.add_parser("progress", help="show your milestones")
    return run_command(lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    if args.command == "open":
        open_lab(args.lab, headless=args.headless, root=args.root)
    from tools.lab.milestones import (
        print_progress,  # takes seconds to import; `make lab` needs none of it
    )

    return print_progress(args.root)


if __name__ == "__main__":
    sys.exit(main())
