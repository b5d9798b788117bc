"""`make lab`: JupyterLab opens on the right notebook and leaves nothing behind on Ctrl-C."""

import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from utils.course.__main__ import main
from utils.course.build import ROOT
from utils.course.lab import jupyter_command


@pytest.fixture
def course(tmp_path: Path) -> Path:
    (tmp_path / "labs").mkdir()
    notebook = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
    (tmp_path / "labs" / "lab-3.3.9-sample.ipynb").write_text(notebook)
    return tmp_path


@pytest.mark.parametrize("headless", [True, False])
def test_the_command_stays_on_this_machine(course, headless):
    notebook = course / "labs" / "lab-3.3.9-sample.ipynb"
    command = jupyter_command(notebook, headless=headless, root=course)
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert "--ServerApp.ip=127.0.0.1" in command
    assert "--LabApp.default_url=/lab/tree/labs/lab-3.3.9-sample.ipynb" in command
    assert ("--ServerApp.open_browser=False" in command) is headless
    assert "--LabApp.news_url=None" in command, "it asks nobody elsewhere for news"


def test_a_wrong_lab_is_refused_before_anything_starts(course, capsys):
    assert main(["--root", str(course), "lab", "4", "--headless"]) == 2
    assert "9  lab-3.3.9-sample" in capsys.readouterr().err


def test_it_serves_the_lab_and_ends_with_ctrl_c(course):
    argv = [sys.executable, "-m", "utils.course", "--root", str(course), "lab", "9", "--headless"]
    log = course / "log"
    with log.open("w") as out:
        server = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        url = None
        for _ in range(300):
            url = re.search(r"http://127\.0\.0\.1:\d+/lab/tree/labs/\S+", log.read_text())
            if url or server.poll() is not None:
                break
            time.sleep(0.2)
        assert url, log.read_text()
        with urllib.request.urlopen(url[0], timeout=30) as page:
            assert page.status == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url[0], timeout=5)
