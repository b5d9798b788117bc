"""The sandbox of a learner's code: bubblewrap or, where that is asked for, a plain process.

Bubblewrap (Debian, Ubuntu: package `bubblewrap`) gives the process its own view of the machine:
Python and the course read-only, nothing else of the disk, no network but its own loopback, its own
process table. As root, the process also runs as another user, without capabilities; otherwise in a
user namespace that cannot make another.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from tools.lab.judge.syscalls import can_refuse

_FIRST_USER = 1_000_000  # above it nobody has files
_TEMPORARY_BYTES = 64 << 20
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/fonts", "/etc/alternatives")
_REFUSED = "no system calls that make uncounted memory or new namespaces (seccomp)"
_NEXT_STEP = (
    "Install it (Debian, Ubuntu: apt install bubblewrap), or grade without a sandbox, if you trust "
    "every submission: make grade ... SANDBOX=none"
)


class SandboxError(Exception):
    """Missing sandbox; the message has the next step."""


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of a learner's code.

    Attributes:
        memory_bytes: of all processes of one notebook together, and data of each.
        processes: at once, threads included.
        files: in temporary folders.
        cell_s: seconds of processor time that one cell may take.
        check_s: the same for one check or hidden part, where the check does not say less.
        notebook_s: seconds of processor time of one notebook, all restarts included.
        idle_s: seconds that a cell or a check may wait without computing anything.
        clock_s: seconds by the clock for one notebook; the last resort.
    """

    memory_bytes: int = 2 << 30
    processes: int = 96
    files: int = 20_000
    cell_s: float = 20.0
    check_s: float = 20.0
    notebook_s: float = 180.0
    idle_s: float = 20.0
    clock_s: float = 1800.0

    def __str__(self) -> str:
        return (
            f"{self.memory_bytes / 2**30:g} GiB of memory, {self.processes} processes and "
            f"{self.files} files per notebook; {self.cell_s:g} s of processor time per cell and per check, "
            f"{self.notebook_s:g} s per notebook; {self.idle_s:g} s of waiting"
        )


class Sandbox(Protocol):
    """A way to start the worker process.

    Attributes:
        cwd: the folder to start it in; None for this process's own.
        own_user: whether it has a user of its own, whose processes can be counted and who is
            refused some system calls.
        temporary: folders that it may write to, as it sees them, and which end with it.
    """

    @property
    def cwd(self) -> Path | None: ...  # noqa: D102
    @property
    def own_user(self) -> bool: ...  # noqa: D102
    @property
    def temporary(self) -> tuple[str, ...]: ...  # noqa: D102

    def command(self, python: Sequence[str]) -> list[str]:
        """Return the command line that runs `python` (arguments of the interpreter) inside."""

    def environment(self) -> dict[str, str]:
        """Return the environment of that command."""

    def protections(self) -> list[str]:
        """Return the limits in force, in words."""


def _variables(course: str, home: str) -> dict[str, str]:
    return {
        "COURSE_PROFILE": "cpu",  # the same answers on every machine
        "HF_HUB_OFFLINE": "1",
        "HOME": home,
        "IPYTHONDIR": f"{home}/ipython",
        "LANG": "C.UTF-8",
        "LOGNAME": "learner",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as in JupyterLab
        "MPLCONFIGDIR": f"{home}/matplotlib",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": course,
    }


@dataclass(frozen=True)
class PlainSandbox:
    """No sandbox: a process of this user, bounded in memory and time.

    Attributes:
        course: the folder that holds `utils`.
        home: scratch folder.
        cwd: where it starts.
        inherit: whether it sees this process's environment (a learner's own machine).
    """

    course: Path
    home: Path
    cwd: Path | None = None
    inherit: bool = False
    own_user = False
    temporary = ()

    def command(self, python: Sequence[str]) -> list[str]:
        """See `Sandbox`."""
        return [sys.executable, *python]

    def environment(self) -> dict[str, str]:
        """See `Sandbox`."""
        variables = _variables(str(self.course), str(self.home))
        return (
            {**variables, **os.environ, "PYTHONPATH": str(self.course)}
            if self.inherit
            else variables
        )

    def protections(self) -> list[str]:
        """See `Sandbox`."""
        return [
            "NO SANDBOX: submissions ran as you, with your files and your network in reach",
            "a process of its own, without the answers; memory and time bounded",
        ]


@dataclass(frozen=True)
class Bubblewrap:
    """Bubblewrap around the worker.

    Attributes:
        course: Folder with the sealed `utils` and `tools`, mounted read-only at /course.
        models: mounted read-only at /course/models.
    """

    course: Path
    models: Path
    cwd = None
    own_user = True
    temporary = ("/tmp", "/course/labs")

    def command(self, python: Sequence[str]) -> list[str]:
        """See `Sandbox`."""
        root = os.geteuid() == 0
        command = [bwrap(), "--die-with-parent", "--new-session", "--hostname", "grading"]
        command += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        command += ["--unshare-cgroup-try"]
        command += (
            _for_root() if root else ["--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
        )
        # What is mounted first may be mounted upon: the course, or Python, can lie below /tmp.
        command += ["--proc", "/proc", "--dev", "/dev"]
        command += ["--perms", "1777", "--size", str(_TEMPORARY_BYTES), "--tmpfs", "/tmp"]
        for path in _SYSTEM:
            if os.path.islink(path):
                command += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                command += ["--ro-bind", path, path]
        for path in _FILES:
            command += ["--ro-bind-try", path, path]
        built: set[str] = {"/tmp"}
        for path in dict.fromkeys((sys.base_prefix, sys.prefix)):
            if not path.startswith("/usr/"):
                command += [*_parents(path, built), "--ro-bind", path, path]
        command += ["--perms", "0755", "--dir", "/course"]
        for name in ("tools", "utils"):
            command += ["--ro-bind", str(self.course / name), f"/course/{name}"]
        command += ["--ro-bind", str(self.models), "/course/models"]
        command += ["--perms", "1777", "--size", str(_TEMPORARY_BYTES), "--tmpfs", "/course/labs"]
        command += ["--remount-ro", "/dev", "--remount-ro", "/"]  # no memory to be had there
        command += ["--chdir", "/course/labs", "--"]
        if root:
            user = str(_FIRST_USER + os.getpid())  # processes are counted by user
            drop = ["--reuid", user, "--regid", user, "--clear-groups"]
            drop += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
            command += [shutil.which("setpriv") or "setpriv", *drop]
        return [*command, sys.executable, *python]

    def environment(self) -> dict[str, str]:
        """See `Sandbox`."""
        return _variables("/course", "/tmp")

    def protections(self) -> list[str]:
        """See `Sandbox`."""
        user = (
            "another user for each notebook, no capabilities, no new privileges"
            if os.geteuid() == 0
            else "a user namespace of its own, no capabilities, no further user namespaces"
        )
        return [
            f"{version()}: process table, file system, IPC and host name of its own",
            "no network but its own loopback",
            user,
            *([_REFUSED] if can_refuse() else []),
            "files: Python and the course read-only, the course without answers; no other "
            f"submission, no gradebook; {_TEMPORARY_BYTES >> 20} MiB of temporary space in each of two "
            "folders",
        ]


def _for_root() -> list[str]:
    keep = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")  # for setpriv, which drops them
    return ["--cap-drop", "ALL", *(word for cap in keep for word in ("--cap-add", cap))]


def _parents(path: str, built: set[str]) -> list[str]:
    """Make the folders above a mount point, readable: bubblewrap's own would be root's alone."""
    words: list[str] = []
    for parent in reversed(Path(path).parents):
        if str(parent) != "/" and str(parent) not in built:
            built.add(str(parent))
            words += ["--perms", "0755", "--dir", str(parent)]
    return words


def bwrap() -> str:
    """Path of the bubblewrap program.

    Raises:
        SandboxError: it is not installed.
    """
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError(
            f"Grading runs submissions in bubblewrap, and it is not here. {_NEXT_STEP}"
        )
    return found


@lru_cache
def version() -> str:
    """Name and version of the installed bubblewrap."""
    return subprocess.run([bwrap(), "--version"], capture_output=True, text=True).stdout.strip()


def find_sandbox(kind: str, course: Path, models: Path, home: Path) -> Sandbox:
    """Return the sandbox of this machine, tried out.

    Args:
        kind: "bubblewrap" or "none".
        course: folder with the sealed `utils`.
        models: the course's models.
        home: scratch folder, for "none".

    Raises:
        SandboxError: it is not installed, or does not work here.
    """
    if kind == "none":
        return PlainSandbox(course, home, cwd=home)
    if kind != "bubblewrap":
        raise SandboxError(f"There is no sandbox {kind!r}: SANDBOX=bubblewrap or SANDBOX=none.")
    if platform.system() != "Linux":
        raise SandboxError(f"Bubblewrap runs on Linux only. {_NEXT_STEP}")
    sandbox = Bubblewrap(course, models)
    tried = subprocess.run(
        sandbox.command(["-c", "import tools.lab.judge.rpc_codec"]),
        env=sandbox.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if tried.returncode:
        raise SandboxError(
            f"Bubblewrap does not work here: {tried.stderr.strip()[-500:]}\n"
            "If it may not make a namespace: they can be switched off (Ubuntu: sysctl "
            "kernel.apparmor_restrict_unprivileged_userns=0 allows them). If Python is not found or "
            "may not be read: it must be readable by all. To grade without a sandbox, if you trust "
            "every submission: make grade ... SANDBOX=none"
        )
    return sandbox
