"""The command of `make lab`, and a lab that does not exist."""

import sys
from pathlib import Path

import pytest

from tools.lab.__main__ import main
from tools.lab.open_lab import jupyter_command


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
    assert main(["--root", str(course), "open", "4", "--headless"]) == 2
    assert "9  lab-3.3.9-sample" in capsys.readouterr().err
