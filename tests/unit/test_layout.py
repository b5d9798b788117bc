"""Layout of the repository: three shelves, and layers inside `utils`."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from utils.profiles import ROOT

# Lowest first. A package imports only packages of lower layers.
LAYERS = (
    {"files", "loopback", "gpu_choice", "hub_cache", "cpp_compiler", "open_files"},
    {"host_memory", "model_sizes"},
    {"gpu"},
    {"memory_plan"},
    {"fleet_plan"},
    {"profiles"},
    {"tinymodel"},
    {"engines"},
    {"telemetry", "http"},
    {"benchmark"},
    {"roofline", "kvcache", "quantisation", "speculative", "gateway"},
    {"compiled"},
    {"checks"},
    {"labs"},
)
UNRELEASED = ("authoring", "grading", "tinymodel")
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def imported_modules(source: str, packages: Collection[str] = ()) -> Iterator[str]:
    """Yield the dotted name of each module of ours that a file imports, anywhere in it.

    Args:
        source: Text of the file.
        packages: Packages besides `utils` and `tools` whose modules are imported by name.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            by_name = node.module in ("utils", "tools", *packages)
            yield from [f"{node.module}.{a.name}" for a in node.names] if by_name else [node.module]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports_of_tools(root: Path) -> list[str]:
    """Return the files below `utils` that import `tools`."""
    return [
        f"{path.relative_to(root)} imports {name}"
        for path in sorted((root / "utils").rglob("*.py"))
        for name in imported_modules(path.read_text())
        if name.split(".")[0] == "tools"
    ]


def unreleased_imports(root: Path) -> list[str]:
    """Return the imports of instructors' tools below the tools that a release ships."""
    return [
        f"{path.relative_to(root)} imports {name}"
        for folder in ("lab", "setup", "doctor")
        for path in sorted((root / "tools" / folder).rglob("*.py"))
        for name in imported_modules(path.read_text())
        if name.split(".")[:2] in (["tools", other] for other in UNRELEASED)
    ]


def upward_imports(root: Path) -> list[str]:
    """Return the imports below `utils` that go from a lower layer to a higher one, or sideways."""
    found = []
    for path in sorted((root / "utils").rglob("*.py")):
        own = path.relative_to(root / "utils").parts[0].removesuffix(".py")
        for name in imported_modules(path.read_text()):
            parts = name.split(".")
            if parts[0] != "utils" or len(parts) < 2 or parts[1] == own or own == "__init__":
                continue
            if LAYER[parts[1]] >= LAYER[own]:
                found.append(f"{path.relative_to(root)} imports {name}")
    return found


def imports_of_other_labs(root: Path) -> list[str]:
    """Return the imports in a lab's package that go to another lab's package."""
    return [
        f"{path.relative_to(root)} imports {name}"
        for path in sorted((root / "utils" / "labs").glob("lab_*/**/*.py"))
        for name in imported_modules(path.read_text(), packages=("utils.labs",))
        if name.startswith("utils.labs.lab_")
        and name.split(".")[2] != path.relative_to(root / "utils" / "labs").parts[0]
    ]


def test_utils_never_imports_tools():
    assert imports_of_tools(ROOT) == []


def test_released_tools_never_import_unreleased_ones():
    assert unreleased_imports(ROOT) == []


def test_import_of_unreleased_tools_is_found_when_planted(tmp_path):
    (tmp_path / "tools" / "lab").mkdir(parents=True)
    (tmp_path / "tools" / "lab" / "planted.py").write_text("from tools.authoring import build\n")
    assert len(unreleased_imports(tmp_path)) == 1


def test_utils_packages_import_only_lower_layers():
    assert upward_imports(ROOT) == []


def test_labs_never_import_another_lab():
    assert imports_of_other_labs(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        "from tools.setup import shell\n",
        "import tools.doctor\n",
        "def late():\n    from tools import lab\n",
    ],
)
def test_import_of_tools_is_found_when_planted(tmp_path, line):
    (tmp_path / "utils" / "engines").mkdir(parents=True)
    (tmp_path / "utils" / "engines" / "planted.py").write_text(line)
    assert len(imports_of_tools(tmp_path)) == 1


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("benchmark", "from utils.kvcache.scheduler import Job\n"),
        ("engines", "from utils import labs\n"),
        ("http", "import utils.benchmark\n"),
        ("kvcache", "def late():\n    from utils.speculative import tree\n"),
    ],
)
def test_upward_import_is_found_when_planted(tmp_path, package, line):
    (tmp_path / "utils" / package).mkdir(parents=True)
    (tmp_path / "utils" / package / "planted.py").write_text(line)
    assert len(upward_imports(tmp_path)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "from utils.labs.lab_3_3_1.plots import draw\n",
        "from utils.labs.lab_3_3_1 import plots\n",
        "from utils.labs import lab_3_3_1\n",
        "import utils.labs.lab_3_3_1.plots\n",
    ],
)
def test_import_of_another_lab_is_found_when_planted(tmp_path, line):
    (tmp_path / "utils" / "labs" / "lab_3_3_2").mkdir(parents=True)
    planted = tmp_path / "utils" / "labs" / "lab_3_3_2" / "planted.py"
    planted.write_text(f"from utils.labs.lab_3_3_2 import tables\n{line}")
    assert len(imports_of_other_labs(tmp_path)) == 1
