"""Opens a lab, or a gradebook, in JupyterLab: on 127.0.0.1, from the course's own environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from tools.lab.course_error import CourseError
from tools.lab.fresh_lab import keep_if_untouched
from tools.lab.labs import find_lab
from utils.profiles import ROOT

_NBGRADER = ("formgrader", "validate_assignment", "assignment_list", "course_list")


def jupyter_command(notebook: Path, *, headless: bool, root: Path = ROOT) -> list[str]:
    """Return the command line that serves the course's folder and shows `notebook` first.

    Args:
        notebook: the lab, below `root`.
        headless: print the URL and open no browser.
        root: what the file browser shows.
    """
    url = f"/lab/tree/{notebook.relative_to(root).as_posix()}"
    extensions = {"tools.lab.validate": True}  # nbgrader's Validate button, answered by us
    return _serve(root, url, extensions, headless)


def formgrader_command(out: Path, *, headless: bool) -> list[str]:
    """Return the command line that serves a graded course (`make grade`) in nbgrader's formgrader."""
    return _serve(
        out, "/formgrader/gradebook", {"nbgrader.server_extensions.formgrader": True}, headless
    )


def _serve(root: Path, url: str, extensions: dict[str, bool], headless: bool) -> list[str]:
    off = {f"nbgrader.server_extensions.{name}": False for name in _NBGRADER}
    command = [
        *(sys.executable, "-m", "jupyterlab"),
        f"--ServerApp.root_dir={root}",
        f"--LabApp.default_url={url}",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.answer_yes=True",  # make waits for it: Ctrl-C ends it without a question
        "--ServerApp.log_level=ERROR",
        "--LabApp.news_url=None",  # no question about news over the lab, and no network
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        f"--ServerApp.jpserver_extensions={off | extensions}",
        f"--LabApp.workspaces_dir={root / '.run' / 'workspaces'}",  # not the tabs of other projects
    ]
    if headless:
        command.append("--ServerApp.open_browser=False")
    if os.geteuid() == 0:
        command.append("--ServerApp.allow_root=True")
    return command


def open_lab(name: str, *, headless: bool, root: Path = ROOT) -> NoReturn:
    """Become JupyterLab on one lab; Ctrl-C ends it, its kernels and their engines.

    Raises:
        CourseError: no such lab.
    """
    notebook = find_lab(name, root)
    keep_if_untouched(notebook, root)
    print(f"Opening {notebook.relative_to(root)}. Ctrl-C stops JupyterLab, notebooks and engines.")
    sys.stdout.flush()
    os.chdir(root)
    command = jupyter_command(notebook, headless=headless, root=root)
    os.execv(command[0], command)


def open_formgrader(out: Path, *, headless: bool) -> NoReturn:
    """Become JupyterLab with nbgrader's formgrader on a graded course; Ctrl-C ends it.

    Raises:
        CourseError: the folder holds no gradebook.
    """
    if not (out / "gradebook.db").is_file():
        raise CourseError(
            f"{out} holds no gradebook. Grade first: make grade SUBMISSIONS=... OUT={out}"
        )
    print(f"Opening the formgrader on {out}. Ctrl-C stops it.")
    sys.stdout.flush()
    os.chdir(out)
    os.environ["PATH"] = path_with_tools()
    command = formgrader_command(out, headless=headless)
    os.execv(command[0], command)


def path_with_tools() -> str:
    """PATH with this environment's programs: nbgrader calls one (alembic) by its bare name."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
