"""`make lab`: JupyterLab opens on the right notebook and leaves no process after Ctrl-C."""

import signal
import sys
import urllib.request
from pathlib import Path

import pytest
from lab_server import serving

from utils.profiles import ROOT


@pytest.fixture
def course(tmp_path: Path) -> Path:
    (tmp_path / "labs").mkdir()
    notebook = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    (tmp_path / "labs" / "lab-3.3.9-sample.ipynb").write_text(notebook)
    return tmp_path


def test_jupyterlab_serves_lab_and_ends_with_ctrl_c(course):
    argv = [
        sys.executable,
        "-m",
        "tools.lab",
        "--root",
        str(course),
        "open",
        "9",
        "--headless",
    ]
    with serving(argv, ROOT, course / "log") as served:
        assert served.page.startswith(f"{served.base}/lab/tree/labs/")
        with urllib.request.urlopen(served.page, timeout=30) as page:
            assert page.status == 200
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(served.page, timeout=5)
