"""The messages in TROUBLESHOOTING.md are those that the code, or an engine, really prints.

A heading quotes a message in backticks, with `...` where it varies. Each part between stands in a text of
`utils`, is an exception of Python's, or, where a comment below the heading says so, stands in a file of an
engine's environment:

    <!-- from: sglang: sglang/srt/managers/tokenizer_manager.py -->
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tools.authoring.lint_errors import Problem
from tools.authoring.markdown import Block
from utils.profiles import ROOT

PAGE = "TROUBLESHOOTING.md"
_FROM = re.compile(r"from:\s*(?P<engine>\w+):\s*(?P<file>\S+)")
_PARTS = ("Symptom", "Cause", "Fix")


def check_messages(path: Path, blocks: Sequence[Block], root: Path = ROOT) -> Iterator[Problem]:
    """Messages that nothing prints, and entries without a fix."""
    entries = [i for i, block in enumerate(blocks) if block.kind == "heading" and block.line > 1]
    for start, end in zip(entries, [*entries[1:], len(blocks)], strict=True):
        heading, body = blocks[start], blocks[start + 1 : end]
        if not body or not any(block.kind != "comment" for block in body):
            continue  # a heading of a group
        if "**Fix**" not in " ".join(block.text for block in body):
            yield Problem(
                path, heading.line, f"no fix of {heading.text!r}", "Write **Fix**: what to do."
            )
        source = next((f for block in body for c in block.comments if (f := _FROM.match(c))), None)
        for message in heading.code_spans:
            for words in _said(message):
                if not (_in_engine(source, words, root) if source else _in_course(words, root)):
                    where = f"{source['engine']}'s {source['file']}" if source else "utils"
                    yield Problem(
                        path, heading.line, f"{where} does not say {words!r}", "What does it say?"
                    )


def _said(message: str) -> list[str]:
    return [
        part for part in (piece.strip(" .:,") for piece in message.split("...")) if len(part) > 3
    ]


def _in_course(words: str, root: Path) -> bool:
    return hasattr(builtins, words) or any(words in text for text in _texts(root))


@cache
def _texts(root: Path) -> tuple[str, ...]:
    """Every text in the course's code and commands; what is put into it while it runs is a NUL."""
    found = [
        file.read_text(encoding="utf-8")
        for file in (root / "Makefile", root / "utils/gateway/chat.html")
    ]
    for path in sorted((root / "utils").rglob("*.py")):
        if path.name == "messages.py":
            continue  # it quotes
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(_literal(part) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def _literal(part: ast.expr) -> str:
    return part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "\0"


def _in_engine(source: re.Match[str], words: str, root: Path) -> bool:
    """Whether an engine's file holds the words; yes where it is not set up (another profile)."""
    environment = ".venv" if source["engine"] == "course" else f".engines/{source['engine']}"
    packages = list((root / environment).glob("lib/python3.*/site-packages"))
    files = [file for folder in packages for file in folder.glob(source["file"])]
    if not packages:
        return True
    return any(_without_breaks(words).encode() in _packed(file) for file in files)


def _without_breaks(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@cache
def _packed(file: Path) -> bytes:
    """A file with texts that were broken over lines put together; what varies in them stays."""
    held = file.read_bytes()
    return held if file.suffix != ".py" else re.sub(rb"\"\s*\n\s*f?r?\"", b"", held)
