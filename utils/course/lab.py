"""Opens a lab in JupyterLab, on 127.0.0.1 and a free port, from the course's own environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from utils.course.build import ROOT, find_lab


def jupyter_command(notebook: Path, *, headless: bool, root: Path = ROOT) -> list[str]:
    """The command line that serves the course's folder and shows `notebook` first.

    Args:
        notebook: the lab, below `root`.
        headless: print the URL and open no browser.
        root: what the file browser shows.
    """
    command = [
        *(sys.executable, "-m", "jupyterlab"),
        f"--ServerApp.root_dir={root}",
        f"--LabApp.default_url=/lab/tree/{notebook.relative_to(root).as_posix()}",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.answer_yes=True",  # make waits for it: Ctrl-C ends it without a question
        "--ServerApp.log_level=ERROR",
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
    print(f"Opening {notebook.relative_to(root)}. Ctrl-C stops JupyterLab, notebooks and engines.")
    sys.stdout.flush()
    os.chdir(root)
    command = jupyter_command(notebook, headless=headless, root=root)
    os.execv(command[0], command)
