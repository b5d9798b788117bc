"""`make lab`: JupyterLab on one of the labs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from utils.course.build import ROOT, find_lab


def jupyter_command(notebook: Path, headless: bool) -> list[str]:
    """The command that opens `notebook` in JupyterLab, on a free port of 127.0.0.1.

    Args:
        notebook: A lab's notebook.
        headless: Print the URL and open no browser.
    """
    page = f"/lab/tree/{notebook.relative_to(ROOT).as_posix()}"
    options = [f"--ServerApp.root_dir={ROOT}", f"--LabApp.default_url={page}"]
    if headless:
        options.append("--no-browser")
    if os.geteuid() == 0:
        options.append("--allow-root")
    return [sys.executable, "-m", "jupyterlab", *options]


def open_lab(name: str, headless: bool) -> None:
    """Replaces this process by JupyterLab, so that Ctrl-C reaches it.

    Raises:
        CourseError: No such lab; the message lists the right ones.
    """
    command = jupyter_command(find_lab(name), headless)
    print("JupyterLab is starting; Ctrl-C ends it.", flush=True)
    os.execv(command[0], command)
