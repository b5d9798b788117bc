"""What the grading tests share: limits that make hostile submissions end soon, one graded class."""

import platform
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.grading.grade import Options, grade
from tools.lab.judge.hidden_tests import load_sample_class
from tools.lab.judge.sandbox import SandboxLimits
from utils.profiles import ROOT

QUICK = SandboxLimits(cell_s=5, check_s=5, idle_s=5, memory_bytes=1 << 30)

if platform.system() != "Linux":
    collect_ignore_glob = ["*"]  # bubblewrap is a Linux program


@dataclass(frozen=True)
class GradedClass:
    """The sample class, graded into `out`."""

    submissions: Path
    out: Path


@pytest.fixture(scope="session")
def graded_class(tmp_path_factory) -> GradedClass:
    folder = tmp_path_factory.mktemp("class")
    load_sample_class(ROOT).write_class(ROOT, folder / "submissions")
    assert grade(ROOT, folder / "submissions", folder / "out", Options(limits=QUICK)) == 0
    return GradedClass(folder / "submissions", folder / "out")
