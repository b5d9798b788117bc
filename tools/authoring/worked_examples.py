"""Worked examples of exercises: a call and its result, made by the exercise's own check."""

from __future__ import annotations

import functools
import importlib
import re
from typing import Any

from tools.authoring.exercises import Exercise, Lab
from utils.checks import Check
from utils.checks.attempt import ExpectedKind, described_call, repr_of

_MOST_CHARACTERS = 240
_FIRST_CALLS = 3  # later ones are a check's unusual cases
_RANDOM = re.compile(r">>>.*(\.\d{7}|\d{13})")  # an argument that nobody wrote by hand
_NOT_PYTHON = re.compile(r"<\w|\.\.\.")  # objects that can't be pasted, and shortened values


def worked_example(lab: Lab, exercise: Exercise) -> str:
    """Return the longest of the first calls that an exercise's check makes, with its result, as Markdown.

    The first calls are often trivial, such as a tree of one node, so the longest shows most.

    Returns:
        "" if the lab has no checks, if the exercise asks for a value or a class, or if no call is short.
    """
    call = _typical_call(lab.source.number, exercise.id)
    return f"\n\n**Example**\n\n```python\n{call}\n```" if call else ""


@functools.cache
def _typical_call(lab: str, exercise: str) -> str:
    try:
        module = importlib.import_module(f"utils.checks.lab_{lab.replace('.', '_')}")
    except ModuleNotFoundError:
        return ""
    check = getattr(module, exercise, None)
    if not isinstance(check, Check) or ExpectedKind.like(check.reference).kind != "function":
        return ""
    calls: list[str] = []

    @functools.wraps(check.reference)
    def recorded(*args: object, **kwargs: object) -> Any:
        arguments = described_call(args, kwargs)
        result = check.reference(*args, **kwargs)
        if result is not None:
            calls.append(f">>> {exercise}({arguments})\n{repr_of(result)}")
        return result

    check.examine(recorded)
    return max(filter(_is_an_example, calls[:_FIRST_CALLS]), key=len, default="")


def _is_an_example(text: str) -> bool:
    return len(text) <= _MOST_CHARACTERS and not (_NOT_PYTHON.search(text) or _RANDOM.match(text))
