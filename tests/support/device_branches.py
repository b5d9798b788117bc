"""Every place where the course's code asks for the device, the runtime or the profile, found by its syntax.

`python tests/support/device_branches.py` prints the places, for `tests/unit/device_branches.yaml`.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ASKED = {"device", "runtime"}  # names and attributes whose comparison is a branch
OWNERS = {"name": {"profile"}, "type": {"device"}}  # `profile.name`, `device.type`


def _last_name(node: ast.AST) -> str:
    return getattr(node, "attr", getattr(node, "id", ""))


def _is_asked(node: ast.AST) -> bool:
    name = _last_name(node)
    if isinstance(node, ast.Attribute) and name in OWNERS:
        return _last_name(node.value) in OWNERS[name]
    return name in ASKED


def is_branch(node: ast.AST) -> bool:
    """Tell whether an expression asks for a device, a runtime or a profile."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        texts = any(
            isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
            for side in sides
            for leaf in ast.walk(side)
        )
        return texts and any(map(_is_asked, sides))
    if isinstance(node, ast.Attribute):
        return node.attr == "is_cuda"
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.cuda.is_available"


def branches(source: str) -> Iterator[tuple[str, str]]:
    """Yield the function and the expression of each branch in a module's source."""

    def walk(node: ast.AST, inside: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            name = inside
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{inside}.{child.name}".lstrip(".")
            if is_branch(child):
                yield inside or "module", ast.unparse(child)
            else:
                yield from walk(child, name)

    yield from walk(ast.parse(source), "")


def find_branches(root: Path = ROOT) -> dict[str, list[str]]:
    """Return the branches of `utils` and of the labs' sources: expressions by file and function."""
    found: dict[str, list[str]] = {}
    for path in [*sorted(root.glob("utils/**/*.py")), *sorted(root.glob("solutions/lab-*.py"))]:
        for function, expression in branches(path.read_text(encoding="utf-8")):
            place = f"{path.relative_to(root)}::{function}"
            if expression not in found.setdefault(place, []):
                found[place].append(expression)
    return found


if __name__ == "__main__":
    for place, expressions in find_branches().items():
        sys.stdout.write("".join(f"{place}: {expression}\n" for expression in expressions))
