"""The key of a kept execution: what changes it, and what does not."""

import json

import pytest

from tools.site.digest import run_key
from utils.profiles import LOAD_VARIABLE

FILES = {
    "utils/__init__.py": "",
    "utils/used.py": "from utils import inner\n",
    "utils/inner/__init__.py": "from .deep import value\n",
    "utils/inner/deep.py": "def value():\n    import utils.late\n",
    "utils/late.py": "COMMAND = ['python', '-m', 'utils.program']\n",
    "utils/program/__init__.py": "",
    "utils/program/__main__.py": "print(1)\n",
    "utils/inner/page.j2": "a template",
    "utils/unused/__init__.py": "",
    "utils/unused/other.py": "x = 1\n",
    "models/tiny.bin": "weights",
    "models/README.md": "a card",
    "solutions/beside.py": "y = 1\n",
}
CODE = ["%matplotlib inline\nimport beside\nfrom utils.used import x\n", "x + 1\n"]


def write_notebook(root, code=CODE, prose="# A lab"):
    cells = [{"cell_type": "markdown", "source": [prose]}]
    cells += [{"cell_type": "code", "source": part.splitlines(keepends=True)} for part in code]
    path = root / "solutions" / "lab.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    return path


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


CHANGES = [
    "used.py",
    "inner/__init__.py",
    "inner/deep.py",
    "late.py",
    "program/__main__.py",
    "inner/page.j2",
]


@pytest.mark.parametrize(
    "name", [*(f"utils/{n}" for n in CHANGES), "models/tiny.bin", "solutions/beside.py"]
)
def test_what_the_notebook_reaches_changes_the_key(root, name):
    before = run_key(write_notebook(root), root)
    assert run_key(write_notebook(root), root) == before
    (root / name).write_text(FILES[name] + "\n# changed\n")
    assert run_key(write_notebook(root), root) != before


@pytest.mark.parametrize("name", ["utils/unused/other.py", "models/README.md"])
def test_what_it_does_not_reach_leaves_the_key(root, name):
    before = run_key(write_notebook(root), root)
    (root / name).write_text(FILES[name] + "\n# changed\n")
    assert run_key(write_notebook(root), root) == before


def test_code_and_load_change_the_key_and_prose_does_not(root, monkeypatch):
    monkeypatch.setenv(LOAD_VARIABLE, "full")
    before = run_key(write_notebook(root), root)
    assert run_key(write_notebook(root, prose="# Another title"), root) == before
    assert run_key(write_notebook(root, code=[CODE[0], "x + 2\n"]), root) != before
    monkeypatch.setenv(LOAD_VARIABLE, "quick")
    assert run_key(write_notebook(root), root) != before
