"""Counts the habits that make the course's English hard to read. CONTRIBUTING.md explains the style."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from documents import PARSER, read_documents

from tools.authoring.lab_source import read_source
from utils.profiles import ROOT

# An entry in a section of a docstring: `name (type): text`.
_ENTRY = re.compile(r"^ +\*{0,2}\w+(?:, \*{0,2}\w+)*(?: \([^)]*\))?: (?P<text>.*)")
_SECTION = re.compile(r"^ *(?:Args|Attributes|Returns|Yields|Raises|Examples?|Notes?):$")
_CODE = re.compile(r"(`+)[^`]+?\1|https?://\S+")


@dataclass(frozen=True)
class Habit:
    """A pattern of style, and the rate that is allowed.

    Attributes:
        name: Short name for messages.
        advice: Better wording.
        pattern: Regular expression that finds one case in a paragraph.
        most: Highest number of cases in 1,000 words, or None if there is no such limit.
        least: Lowest number of cases in 1,000 words, for words that help a reader.
        kinds: Kinds of text to which the limit applies.
    """

    name: str
    advice: str
    pattern: str
    most: float | None = None
    least: float = 0.0
    kinds: tuple[str, ...] = ("documents", "labs", "docstrings", "messages")


_PROSE = ("documents", "labs", "docstrings")
_NO_QUESTION = r"(?![^.!?]*\?)"  # as in "What is a token?"
HABITS = (
    Habit(
        "what as a noun",
        "Name the thing: 'the engine's answer' instead of 'what the engine answers'.",
        r"(?:^|[.:;,(] |\b(?:and|of|from|to|with|for|is|are|that|in|on|by) )[Ww]hat \w+ "
        + _NO_QUESTION,
        most=1.0,
    ),
    Habit("stands", "Write 'is'.", r"\b[Ss](?:tands?|tood)\b(?! (?:in )?for\b)", most=0.2),
    Habit(
        "who as a noun",
        "Write 'anyone who' or 'a learner who'.",
        r"\b[Ww]hoever\b|(?:(?:^|[.:;] )Who|\b(?:to|for|by|from) who) \w+" + _NO_QUESTION,
        most=0.2,
    ),
    Habit("beside", "Write 'next to', 'with' or 'compared with'.", r"\b[Bb]eside\b", most=0.3),
    Habit(
        "says so",
        "Give the sentence a subject: 'the lab tells you why'.",
        r"\b[Ss]ays (?:so|why|which|how|what|that)\b|\b[Ss]ay so\b",
        most=0.3,
    ),
    Habit("behind", "Write 'after', unless it is a place.", r"\b[Bb]ehind\b", most=0.3),
    Habit("colons", "Start a new sentence.", r"[;:](?= )", most=25.0, kinds=_PROSE),
    Habit(
        "connectives",
        "Write the logic out.",
        r"\b(?:[Bb]ecause|[Tt]herefore|[Hh]owever|[Nn]ote that)\b"
        r"|\b(?:[Ff]or (?:example|instance)|[Ii]n other words)\b",
        least=1.5,
        kinds=_PROSE,
    ),
    Habit(
        "riddles",
        "Open a docstring with an imperative or a noun.",
        r"^(?:What|Whether|How|Whoever|Who|Of|Where|When)\b(?=[ ,])",
        most=0.3,
        kinds=("docstrings",),
    ),
)


@dataclass(frozen=True)
class Paragraph:
    """A paragraph without code, links' targets and tables.

    Attributes:
        kind: "documents", "labs", "docstrings" or "messages".
        where: File and line.
        text: Text in one line. Code is replaced by X.
    """

    kind: str
    where: str
    text: str


def course_paragraphs() -> Iterator[Paragraph]:
    """Yield all prose of the course."""
    for document in read_documents():
        if document.path.suffix == ".md":
            yield from markdown_paragraphs("documents", str(document), 0, document.text)
            continue
        for cell in read_source(document.path).cells:
            if cell.kind == "markdown":
                yield from markdown_paragraphs(
                    "labs", str(document), cell.first_line - 1, cell.source
                )
    for folder in ("utils", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield from python_paragraphs(str(path.relative_to(ROOT)), path.read_text())


def markdown_paragraphs(kind: str, file: str, offset: int, text: str) -> Iterator[Paragraph]:
    """Yield the paragraphs and headings of a Markdown text that begins `offset` lines into its file."""
    in_table = False
    for token in PARSER.parse(text):
        in_table = (in_table or token.type == "table_open") and token.type != "table_close"
        if token.type != "inline" or in_table or token.map is None:
            continue
        shown = {"code_inline": "X", "softbreak": " ", "hardbreak": " "}
        parts = (
            shown.get(child.type, child.content if child.type == "text" else "")
            for child in token.children or []
        )
        yield Paragraph(kind, f"{file}:{offset + token.map[0] + 1}", "".join(parts))


def python_paragraphs(file: str, source: str) -> Iterator[Paragraph]:
    """Yield a module's docstrings and the messages that its users read."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for text in _docstring_parts(ast.get_docstring(node) or ""):
                line = node.body[0].lineno
                yield Paragraph("docstrings", f"{file}:{line}", _CODE.sub("X", text))
        for part in _messages(node):
            text = " ".join(_text_of(part).split())
            if " " in text:
                yield Paragraph("messages", f"{file}:{part.lineno}", _CODE.sub("X", text))


def _docstring_parts(text: str) -> Iterator[str]:
    """Yield the paragraphs and entries of a docstring, without the entries' labels."""
    part: list[str] = []
    for line in [*text.splitlines(), ""]:
        entry = _ENTRY.match(line)
        if (
            entry
            or not line.strip()
            or _SECTION.match(line)
            or line.lstrip().startswith(("- ", "* "))
        ):
            if part:
                yield " ".join(part)
            part = [entry["text"]] if entry else []
            if entry or not line.strip() or _SECTION.match(line):
                continue
        part.append(line.strip(" -*"))


def _messages(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return list(node.exc.args)
    if not isinstance(node, ast.Call):
        return []
    helps = [pair.value for pair in node.keywords if pair.arg in ("help", "description")]
    printed = isinstance(node.func, ast.Name) and node.func.id == "print"
    return helps + (node.args if printed else [])


def _text_of(node: ast.expr) -> str:
    """Return a literal's text, with X for each value."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _text_of(part) if isinstance(part, ast.Constant) else "X" for part in node.values
        )
    if isinstance(node, ast.BinOp):
        return _text_of(node.left) + _text_of(node.right)
    return ""


def cases(habit: Habit, paragraphs: list[Paragraph]) -> list[str]:
    """Return the place and the words around each case of a habit."""
    found = []
    for paragraph in paragraphs:
        for match in re.finditer(habit.pattern, paragraph.text):
            around = paragraph.text[max(0, match.start() - 30) : match.end() + 50]
            found.append(f"{paragraph.where} …{around}…")
    return found


def words(paragraphs: list[Paragraph]) -> int:
    """Return the number of words."""
    return sum(len(re.findall(r"[A-Za-z']+", paragraph.text)) for paragraph in paragraphs)
