"""`python -m tools.setup`: makes what is missing, after saying what it will cost."""

from __future__ import annotations

import argparse
import errno
import fcntl
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from types import FrameType

from tools.setup.packages import UV_CACHE
from tools.setup.progress_line import Progress
from tools.setup.setup_steps import (
    LLAMA_CPP,
    LLAMA_CPP_NATIVE,
    SITE,
    SPARE_GIGABYTES,
    Step,
    steps_for,
)
from tools.setup.shell import FULL_DISK, Halt, Halted, SetupError, Shell
from utils.profiles import ROOT, ProfileError, load_profile

LOGS = ROOT / ".setup"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def plan(steps: Sequence[Step]) -> list[Step]:
    """Print the table of steps with their costs; return those still to run."""
    due = [step for step in steps if not step.done()]
    if not due:
        return due
    print(
        "Setting up (measured on 2 quiet cores with a fast network; busy ones take up to 3 times as long):"
    )
    for step in steps:
        cost = f"{duration(step.minutes)}, {step.gigabytes:.1f} GB" if step in due else "ready"
        print(f"  {step.title:<72} {cost}")
        if again := step.why_again():
            print(f"    {again}")
    return due


def duration(minutes: float) -> str:
    """Return a length of time in whole minutes, or in seconds if it is below one minute."""
    return f"{minutes * 60:.0f} s" if minutes < 1 else f"{minutes:.0f} min"


def check_disk(due: Sequence[Step]) -> None:
    """Refuse to start steps that would not fit on the disk.

    Raises:
        SetupError: Less is free than the steps need; names both figures.
    """
    needed = sum(step.gigabytes for step in due) + SPARE_GIGABYTES
    free = shutil.disk_usage(ROOT).free / 1e9
    if due and free < needed:
        raise SetupError(
            f"Set-up needs about {needed:.1f} GB and {ROOT} has {free:.1f} GB free.",
            "Free some space, or clone the course onto a larger disk.",
        )


def set_up(steps: Sequence[Step], lock: int | None = None) -> None:
    """Run the steps that are not done; `lock` is a file descriptor that commands inherit.

    Compiling keeps the cores busy, installing waits for network and disk much of the time: where both are
    due, they run side by side. Else the steps run in order.

    Raises:
        SetupError: One failed, or the disk is too full.
    """
    due = plan(steps)
    check_disk(due)
    progress, halt = Progress(), Halt()

    def run(lane: Sequence[Step]) -> None:
        for step in lane:
            halt.check()
            shell = Shell(step.name, LOGS / f"{step.name}.log", lock, progress, halt)
            step.run(shell)
            shell.finish()

    lanes = [[step for step in due if step.compiles is compiles] for compiles in (False, True)]
    run_side_by_side([partial(run, lane) for lane in lanes if lane], halt)
    shutil.rmtree(UV_CACHE, ignore_errors=True)  # what was installed from it stays
    (LOGS / "python").write_text(sys.executable)  # the Makefile goes on with it


def run_side_by_side(lanes: Sequence[Callable[[], None]], halt: Halt) -> None:
    """Run each of `lanes` in a thread of its own; a single one in this thread.

    As soon as one fails, or this thread is interrupted, `halt` ends the others. It returns when all have
    ended and cleaned up.

    Raises:
        BaseException: Error of the lane that failed first, or the interrupt of this thread.
    """
    if len(lanes) == 1:
        lanes[0]()
        return
    with ThreadPoolExecutor(max(1, len(lanes))) as pool:
        running = [pool.submit(lane) for lane in lanes]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            halt.call()
    errors = [error for future in running if (error := future.exception())]
    # One that was halted only followed another.
    for error in sorted(errors, key=lambda error: isinstance(error, Halted)):
        raise error


def choose(names: Sequence[str] | None, native: bool = False) -> list[Step]:
    """Return the steps to run.

    Args:
        names: Names of steps, or None for all steps of this machine's profile.
        native: True if to compile llama.cpp as well.

    Raises:
        SetupError: A name is unknown, or nothing here can be compiled. The message lists the steps.
    """
    steps = steps_for(load_profile().name)
    extra = (LLAMA_CPP_NATIVE, SITE) if LLAMA_CPP in steps else (SITE,)
    known = {step.name: step for step in (*steps, *extra)}
    if wrong := [name for name in names or () if name not in known]:
        raise SetupError(f"No such step: {' '.join(wrong)}.", f"The steps are: {', '.join(known)}.")
    chosen = [known[name] for name in names] if names else list(steps)
    if native and LLAMA_CPP not in chosen:
        raise SetupError(
            "NATIVE=1 compiles llama.cpp, but llama_cpp is not among the steps.",
            "Use it on the cpu profile, with: make setup STEP=llama_cpp NATIVE=1",
        )
    return [*chosen, LLAMA_CPP_NATIVE] if native else chosen


@contextmanager
def locked() -> Iterator[int]:
    """Hold the folder's set-up lock, and give its file descriptor.

    The programs that set-up starts inherit it, so that nobody builds into a folder that a killed set-up's
    commands are still writing to.
    """
    LOGS.mkdir(exist_ok=True)
    with (LOGS / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"Another set-up is running: waiting for it. Its logs are in {LOGS}.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def _stop(number: int, frame: FrameType | None) -> None:
    # Where all of a process group is told, make tells its commands once more: that must not end the clean-up.
    for known in STOPS:
        signal.signal(known, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.setup", description=__doc__)
    parser.add_argument("--only", nargs="*", metavar="STEP", help="run these steps alone")
    parser.add_argument("--native", action="store_true", help="also compile llama.cpp")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 (runs on whatever python3 is)
        found = ".".join(map(str, sys.version_info[:3]))
        print(f"Python 3.11 or newer is needed, this is {found}. Try: make lab PYTHON=python3.11")
        return 1
    for number in STOPS:
        signal.signal(number, _stop)
    try:
        steps = choose(arguments.only, arguments.native)
        if any(not step.done() for step in steps):
            with locked() as lock:
                set_up(steps, lock)
    except (SetupError, ProfileError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except OSError as error:
        advice = FULL_DISK if error.errno == errno.ENOSPC else f"Can {ROOT} be written to?"
        print(f"\nSet-up stopped: {error}.\n{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nStopped. What was half made has been removed; finished steps and downloads are kept "
            "(make clean removes them). The same command goes on from here.",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
