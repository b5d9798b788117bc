"""Errors that a command reports in one message, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class CourseError(Exception):
    """Request that can't be met. The message has the next step."""


def run_command(command: Callable[[], int]) -> int:
    """Run a command and return its exit status; print an expected error to stderr.

    Returns:
        Result of `command`, 2 after an expected error, 130 after Ctrl-C.
    """
    try:
        return command()
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.strerror or error}: {error.filename}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to continue from here.", file=sys.stderr)
        return 130
