"""The messages in TROUBLESHOOTING.md are printed by the course or by an engine.

A heading quotes a message in backticks, with `...` where it varies. A comment below it names the file
of an engine that prints it: <!-- from: sglang: sglang/srt/managers/tokenizer_manager.py -->
"""

import ast
import builtins
import re
from functools import cache

import pytest

from utils.profiles import ROOT

ENTRIES = re.split(r"(?m)^#+ ", (ROOT / "TROUBLESHOOTING.md").read_text())[2:]
SYMPTOMS = [
    entry for entry in ENTRIES if "\n\n" in entry.strip()
]  # the others are titles of groups


def parts(entry):
    """Return the constant parts of the messages in an entry's heading."""
    messages = re.findall(r"`([^`]+)`", entry.partition("\n")[0])
    pieces = [piece.strip(" .:,") for message in messages for piece in message.split("...")]
    return [piece for piece in pieces if len(piece) > 3]


@cache
def course_texts():
    """Return every text in the course's code. A NUL is in the place of each formatted value."""
    found = [(ROOT / name).read_text() for name in ("Makefile", "utils/gateway/page/chat.js")]
    for path in [*ROOT.glob("utils/**/*.py"), *ROOT.glob("tools/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(getattr(part, "value", "\0")) for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@cache
def engine_texts(engine, pattern):
    """Return the bytes of an engine's files, or None where that engine isn't set up."""
    environment = ROOT / (".venv" if engine == "course" else f".engines/{engine}")
    packages = [*environment.glob("lib/python3.*/site-packages")]
    files = [file for folder in packages for file in folder.glob(pattern)]
    texts = [file.read_bytes() for file in files]
    if pattern.endswith(".py"):  # join the texts that go over several lines
        texts = [re.sub(rb"\"\s*\n\s*f?r?\"", b"", text) for text in texts]
    return texts if packages else None


def unknown_parts(entry):
    source = re.search(r"<!-- from:\s*(\w+):\s*(\S+) -->", entry)
    texts = engine_texts(*source.groups()) if source else course_texts()
    if texts is None:
        return []
    return [
        part
        for part in parts(entry)
        if not hasattr(builtins, part)
        and not any((part.encode() if source else part) in text for text in texts)
    ]


@pytest.mark.parametrize("entry", SYMPTOMS, ids=lambda entry: entry.partition("\n")[0])
def test_message_is_printed_and_has_a_fix(entry):
    assert unknown_parts(entry) == []
    assert "**Fix**" in entry


def test_unknown_message_is_found_when_planted():
    assert unknown_parts("`Port ... is in use by another program.`\n\n**Fix**: end it.") == []
    assert unknown_parts("`Port ... is used by another program.`\n\n**Fix**: end it.") != []
    where = "<!-- from: course: sglang_router/sglang_router_rs.abi3.so -->"
    assert unknown_parts(f"`No such words`\n{where}") == ["No such words"]
