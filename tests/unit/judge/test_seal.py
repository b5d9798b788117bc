"""While an exercise is graded the answers are out of reach: not in the files, not in the functions."""

import subprocess
import sys

import pytest

from tools.lab.judge.hidden_tests import load_gradings
from tools.lab.judge.seal import build_sealed, dotted, split_name
from utils.profiles import ROOT

GRADINGS = [g for by_exercise in load_gradings(ROOT).values() for g in by_exercise.values()]
SEALS = [seal for grading in GRADINGS for seal in grading.seals()]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed")
    build_sealed(ROOT, folder, SEALS)
    return folder


def run(folder, code):
    answer = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    return answer.stdout + answer.stderr


def test_references_are_sealed_without_being_named():
    assert "utils.kvcache.blocks.BlockPool" in SEALS
    assert "utils.kvcache.scheduler.schedule" in SEALS
    assert "utils.benchmark.recommend.best_for_api" in SEALS
    assert not any(seal.startswith("utils.checks") for seal in SEALS)


def test_no_line_of_an_answer_is_left_in_the_files(sealed):
    text = "\n".join(path.read_text() for path in (sealed / "utils").rglob("*.py"))
    for line in (
        "block = self.free.popleft()",  # BlockPool.allocate
        "waiting.appendleft(victim)",  # schedule
        "return len(good) / duration",  # goodput
        "reach = t * array.std(ddof=1)",  # mean_interval
    ):
        assert line in "\n".join(path.read_text() for path in (ROOT / "utils").rglob("*.py"))
        assert line not in text


@pytest.mark.parametrize(
    "code",
    [
        "from utils.kvcache.blocks import BlockPool; BlockPool(3, 4)",
        "from utils.kvcache.scheduler import schedule; schedule([], [], None)",
        "from utils.benchmark import recommend; recommend.best_for_api([], 1.0)",
        "from utils.checks import lab_3_3_1 as checks; checks.goodput",
    ],
)
def test_a_sealed_answer_says_so(sealed, code):
    assert "not in reach" in run(sealed, code)


def test_everything_else_still_imports(sealed):
    code = (
        "import utils.benchmark, utils.engines, utils.benchmark.engine_run, tools.lab.judge.worker"
    )
    assert run(sealed, code) == ""
    hasattr_code = (
        "from utils.checks import lab_3_3_1 as checks; print(hasattr(checks, '__path__'))"
    )
    assert run(sealed, hasattr_code) == "False\n"


def test_neither_hidden_parts_nor_solutions_are_there(sealed):
    names = {path.name for path in sealed.rglob("*")}
    assert not any("solution" in name or name == "grade.py" for name in names)


def test_names_are_split_into_file_and_place():
    path, name = split_name(ROOT, "utils.kvcache.blocks.BlockTable.grow")
    assert (path.as_posix(), name) == ("utils/kvcache/blocks.py", "BlockTable.grow")
    assert dotted(path) == "utils.kvcache.blocks"
    with pytest.raises(LookupError, match="in no module"):
        split_name(ROOT, "utils.nothing.here")


def test_a_seal_on_nothing_is_refused(tmp_path):
    with pytest.raises(LookupError, match="does not exist"):
        build_sealed(ROOT, tmp_path, ["utils.kvcache.blocks.NoSuchThing"])
