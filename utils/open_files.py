"""Limit of open files, which every connection of a load counts against."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

# Files that a run opens besides its connections: the event loop, a progress bar, telemetry, the record.
RESERVE = 16


def raise_limit() -> int:
    """Raise this process's soft limit of open files to the hard limit, and return the new limit.

    1024 is a usual soft limit, although the hard limit is often a hundred times higher.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS reports no hard limit, but has one
            return soft
    return hard


def free_files() -> int:
    """Return the number of connections that this process can open now."""
    limit = raise_limit()
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    listing = Path("/proc/self/fd")
    used = len(os.listdir(listing if listing.exists() else "/dev/fd"))
    return limit - used - RESERVE
