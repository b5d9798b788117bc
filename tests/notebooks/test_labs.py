"""The notebooks of the course, executed by nbmake: the learners' untouched, the solved graded.

The learners' are executed where learners have them, in a release, with the quick load: each cell that
measures runs, on the references. The solved ones take as long again and run the same cells, so they are
executed where `COURSE_LOAD=full make test` asks for it, with the load that their figures need; that their
exercises are right is also what the grader finds (tests/grading, the samples "good"). One execution per
notebook serves all that is asserted of it. The same by hand: `COURSE_LOAD=quick pytest --nbmake
--nbmake-timeout=300 labs`, and `COURSE_GRADING=1 pytest --nbmake ... solutions`.
"""

import os
import warnings

import pytest

from utils.profiles import LOAD_VARIABLE, ROOT, load_profile

# A notebook is meant to stay within its profile's budget on a quiet machine. On a busy one it takes longer
# without being wrong, so only a multiple of the budget fails; being over it is reported.
BUDGET_S = load_profile().time_budget_s
LIMIT_S = int(3 * BUDGET_S)
STEMS = sorted(path.stem for path in (ROOT / "solutions").glob("lab-*.py"))
SOLVED = pytest.param(
    "solutions",
    marks=pytest.mark.skipif(
        os.environ.get(LOAD_VARIABLE) != "full", reason="not asked for: COURSE_LOAD=full make test"
    ),
)


def test_every_notebook_is_run_here():
    for folder in ("labs", "solutions"):
        assert sorted(path.stem for path in (ROOT / folder).glob("*.ipynb")) == STEMS


@pytest.mark.engine
@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("folder", ["labs", SOLVED])
def test_notebook(stem, folder, run_notebook, released, monkeypatch):
    solved = folder == "solutions"
    root = ROOT if solved else released
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv(LOAD_VARIABLE, "full" if solved else "quick")
    files = sorted((root / folder).iterdir())
    ran = run_notebook(root / folder / f"{stem}.ipynb", grading=solved, limit_s=LIMIT_S)
    if faults := list(ran.faults(solved=solved)):
        pytest.fail("\n".join(faults), pytrace=False)
    if ran.seconds > BUDGET_S:
        warnings.warn(
            f"{folder}/{stem}: {ran.seconds:.0f} s, budget {BUDGET_S:.0f} s", stacklevel=1
        )
    assert sorted((root / folder).iterdir()) == files, "it writes beside the notebooks"
