"""`python3 -m tools.doctor`: the page; exit status 0 if all labs of this profile can run, 1 otherwise.

What set-up has not made yet does not count against a lab: `make lab` makes it.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):  # noqa: UP036 (this runs on whatever python3 is)
    sys.exit(
        "The doctor needs Python 3.9 or newer, the course 3.11. Try: make doctor PYTHON=python3.12"
    )

from tools.doctor.diagnoses import examine, stopped
from tools.doctor.doctor_report import render
from tools.doctor.facts import Machine
from tools.doctor.machine_probe import Probe


def main() -> int:
    """Print the page, and return the exit status."""
    machine = Machine(Probe())
    findings = examine(machine)
    print(render(machine, findings))
    return 1 if stopped(findings) else 0


if __name__ == "__main__":
    sys.exit(main())
