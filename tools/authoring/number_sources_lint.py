r"""Every number about speed, memory, size or time in documents and notebooks has an origin.

This is the one place where the rule stands. `python -m tools.authoring docs` (part of `make check`) applies
it to every document and to the markdown of every lab.

**What counts as a claim**: a number with a unit of `UNITS` behind it (`113 tok/s`, `2.1 GB`, `3.6 times`,
`95 %`), a spelled-out one with a unit of time or of comparison (`half an hour`, `twice as fast`), and a bare
number in a column of a table whose heading names a unit. What stands in code, code spans, formulas between
dollar signs, and addresses is none: those are inputs, names and definitions.

**What counts as its origin**, one of:

* *measured*: the word, and the date (2026-11-26), in the same paragraph, list item or table.
* *cited*: in the same sentence, a link to the source or an arXiv number; or in the same paragraph the word
  "cited" together with a link, an arXiv number, a code span that names the file, or a year. A link to a file
  of this repository (a notebook is none) counts only if the number stands in that file, with its unit.
* *derived*: the calculation in the same paragraph, `273 ÷ 16.1 = 17 tok/s`. It is calculated again, and
  covers its result alone: what went into it needs an origin of its own.
* a comment that no reader sees, in the paragraph or on the line under it:

      <!-- origin: measured: 2026-11-26, 2 x86-64 cores -->    the date has to be there
      <!-- origin: cited: https://... -->                      or a file, in which the number stands
      <!-- origin: derived: 2 * 8.19 = 16.4 -->                calculated again; covers its result
      <!-- origin: setting: utils/profiles.py: time_budget_s=300.0 -->
                                                               the file holds these words, they the number
      <!-- origin: plan: time for one's own work -->           what a learner may take; minutes and up
      <!-- origin: example: why it is made up -->              in labs, ELI5.md, PREREQUISITES.md alone

A paragraph that ends with a colon right above a table is its caption: what it says of an origin counts there.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from itertools import takewhile
from pathlib import Path

from tools.authoring.lint_errors import Problem
from tools.authoring.markdown import LINK, Block

_SPEED = (
    r"tok/s|tokens/s|tokens (?:a|per) second|requests/s|requests (?:a|per) second|[kMGT]?FLOP/s"
)
_SIZE = r"[KMGT]i?B(?:/s)?|kB(?:/s)?|bytes/s"
_PLANNED = r"min|minutes?|h|hours?|days?|weeks?"
_TIME = rf"[nµm]s|s|seconds?|{_PLANNED}"
UNITS = rf"{_SPEED}|{_SIZE}|{_TIME}|×(?!\s*[\w(])|%|percent|times"
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_DIGITS = re.compile(
    rf"(?<![\w.,/-])(?P<number>{_NUMBER})(?:[ \u00a0-]?)(?P<unit>{UNITS})(?![\w/])"
    rf"|(?<![\w.,/-])(?P<first>{_NUMBER}) (?:to|and|against) "
    rf"(?={_NUMBER}[ \u00a0]?(?P<later>{UNITS})(?![\w/]))"
)
_COUNT = (
    r"two|three|four|five|six|seven|eight|nine|ten|twelve|fifteen|twenty|thirty|fifty|a hundred"
)
_COMPARED = r"fast|quick|slow|long|large|big|small|high"
_WORDS = re.compile(
    rf"(?<![\w-])(?:(?:half an?|{_COUNT}) (?:seconds?|minutes?|hours?|days?|weeks?)"
    rf"|(?:twice|half|a third|a quarter|(?:{_COUNT}) times) as (?:{_COMPARED})\b"
    rf"|(?:twice|half) the (?:time|speed|throughput|latency)\b"
    rf"|(?:{_COUNT}) times (?:faster|slower|larger|smaller))",
    re.IGNORECASE,
)
_HEAD_UNIT = re.compile(
    rf"(?:^|[\s(,])(?P<unit>{_SPEED}|{_SIZE}|[µm]s|s|seconds|{_PLANNED}|%|×)(?=$|[\s),])"
)
_BARE = re.compile(rf"[≈~<>≤≥\s]*(?P<number>{_NUMBER})(?:\s*(?:to|–|-)\s*{_NUMBER})?\s*")
_CODE = re.compile(r"`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b")
_ARXIV = re.compile(r"\barXiv:? ?\d{4}\.\d{4,5}\b")
_SOURCE = re.compile(rf"https?://|⟦|`[^`]+`|{_ARXIV.pattern}|\b(?:19|20)\d\d\b")
_ORIGIN = re.compile(r"origin:\s*(?P<kind>\w+)(?::\s*(?P<what>.*))?", re.DOTALL)
KINDS = ("measured", "cited", "derived", "setting", "plan", "example")
INVENTED_IN = ("ELI5.md", "PREREQUISITES.md")  # and the labs
_FIX = (
    "Say where it comes from, or take it out: tools/authoring/number_sources_lint.py has the rule."
)
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


@dataclass(frozen=True)
class Claim:
    """A number that needs an origin: its value (None where it is spelled out), its unit, its sentence."""

    words: str
    value: str | None
    unit: str
    sentence: str


def find_claims(block: Block) -> list[Claim]:
    """The numbers of a block that need an origin."""
    if block.kind in ("code", "comment"):
        return []
    if block.kind != "table":
        return [claim for sentence in _SENTENCE.split(block.text) for claim in _in(sentence)]
    return [
        claim
        for row in block.rows
        for column, cell in enumerate(row)
        for claim in (_in(cell, " | ".join(row)) or _under_head(block, column, cell, row))
    ]


def _in(text: str, sentence: str = "") -> list[Claim]:
    said = LINK.sub("", _CODE.sub("`", text))
    found = [
        Claim(m[0].strip(), m["number"] or m["first"], m["unit"] or m["later"], sentence or text)
        for m in _DIGITS.finditer(said)
    ]
    return found + [
        Claim(m[0], None, m[0].split()[-1], sentence or text) for m in _WORDS.finditer(said)
    ]


def _under_head(block: Block, column: int, cell: str, row: Sequence[str]) -> list[Claim]:
    head = (
        _HEAD_UNIT.search(_CODE.sub("`", block.rows[0][column]))
        if column < len(block.rows[0])
        else None
    )
    number = _BARE.fullmatch(cell)
    if head is None or number is None:
        return []
    return [
        Claim(f"{cell.strip()} {head['unit']}", number["number"], head["unit"], " | ".join(row))
    ]


def check_claims(path: Path, blocks: Sequence[Block], root: Path) -> Iterator[Problem]:
    """The claims of a document or notebook that have no origin, and comments that are none."""
    invented = path.name in INVENTED_IN or path.suffix == ".py"
    for number, block in enumerate(blocks):
        comments, broken = _origins(blocks, number, root, invented)
        for reason in broken:
            yield Problem(
                path, block.line, reason, "tools/authoring/number_sources_lint.py has the rule."
            )
        claims = find_claims(block)
        if not claims:
            continue
        caption = _caption(blocks, number)
        for claim in claims:
            if not (
                _prose_origin(claim, f"{caption} {block.text}", root)
                or _named(claim, comments, root)
            ):
                yield Problem(path, block.line, f"no origin of {claim.words!r}", _FIX)


def _caption(blocks: Sequence[Block], number: int) -> str:
    """The paragraph above a table, if it ends with a colon; comments between them do not count."""
    if blocks[number].kind != "table":
        return ""
    above = next((block for block in reversed(blocks[:number]) if block.kind != "comment"), None)
    said = above.text.rstrip() if above is not None and above.kind == "text" else ""
    return said if said.endswith(":") else ""


def _prose_origin(claim: Claim, text: str, root: Path) -> bool:
    if "measured" in text.lower() and any(_is_date(day) for day in _DATE.findall(text)):
        return True
    if _ARXIV.search(claim.sentence):
        return True
    if any(_cites(address, claim, root) for address in LINK.findall(claim.sentence)):
        return True
    if re.search(r"\bcited\b", text) and _SOURCE.search(_SENTENCE_END.sub(" ", text)):
        return True
    return claim.value is not None and _same(claim.value, results(text))


_SENTENCE_END = re.compile(r"\s+")


def _is_date(day: str) -> bool:
    try:
        date.fromisoformat(day)
    except ValueError:
        return False
    return True


def _cites(address: str, claim: Claim, root: Path) -> bool:
    if address.startswith(("http://", "https://")):
        return True
    target = root / address.partition("#")[0]
    held = target.is_file() and target.suffix != ".ipynb"
    return claim.value is not None and held and _same(claim.value, _numbers_of(target, claim.unit))


@cache
def _numbers_of(path: Path, unit: str = "") -> frozenset[float]:
    """The numbers in a file, or those of them that this unit follows."""
    behind = rf"(?=[ \u00a0-]?{re.escape(unit)}(?!\w))" if unit else ""
    found = re.findall(_NUMBER + behind, path.read_text(encoding="utf-8"))
    return frozenset(_value(number) for number in found)


def _value(number: str) -> float:
    return float(number.replace(",", "").rstrip("."))


def _same(number: str, others: frozenset[float] | Sequence[float]) -> bool:
    """Whether one of `others` is this number, rounded to as many digits as it has."""
    digits = len(number.partition(".")[2])
    return any(abs(other - _value(number)) <= 0.5 * 10**-digits + 1e-9 for other in others)


_SUM = re.compile(
    rf"(?P<left>\(?{_NUMBER}(?:[^\S\n]*[\w/%]*\)?[^\S\n]*[×*÷/+−-][^\S\n]*\(?{_NUMBER})+\)?)(?:[^\S\n]*[\w/%]*)"
    rf"[^\S\n]*[=≈][^\S\n]*(?:about |at most )?(?P<right>{_NUMBER})"
)


def results(text: str) -> list[float]:
    """Results of the calculations in a text that are right; units between the numbers are passed over."""
    found = []
    for calculation in _SUM.finditer(_CODE.sub(" ", text).replace(",", "")):
        bare = re.sub(r"(?<=[\d)])[^\S\n]*(?:[A-Za-z%][\w/%]*)", "", calculation["left"])
        for sign, plain in (("×", "*"), ("÷", "/"), ("−", "-")):
            bare = bare.replace(sign, plain)
        value = _calculate(bare)
        if value is not None and _same(calculation["right"], [value]):
            found.append(_value(calculation["right"]))
    return found


def _calculate(expression: str) -> float | None:
    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                return value(left) / value(right)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return float(_OPERATORS[type(op)](value(left), value(right)))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
        raise ValueError(expression)

    try:
        return value(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class _Origin:
    kind: str
    what: str


def _origins(
    blocks: Sequence[Block], number: int, root: Path, invented: bool
) -> tuple[list[_Origin], list[str]]:
    """Origins that comments in a block, or right below it, name; and what is wrong with its own."""
    own = list(blocks[number].comments)
    origins, broken = [], []
    for comment in (*own, *_below(blocks, number)):
        named = _ORIGIN.match(comment)
        if named is None:
            continue
        origin = _Origin(named["kind"], (named["what"] or "").strip())
        fault = _fault(origin, root, invented)
        if not fault:
            origins.append(origin)
        elif comment in own:
            broken.append(f"an origin that is none, {comment!r}: {fault}")
    return origins, broken


def _below(blocks: Sequence[Block], number: int) -> list[str]:
    """Comments on the lines right under a block; under the summary of a fold, what is in the fold."""
    follows = blocks[number + 1 :]
    if blocks[number].kind == "html":
        return [comment for block in follows[:1] for comment in block.comments]
    comments = takewhile(lambda block: block.kind == "comment", follows)
    return [comment for block in comments for comment in block.comments]


def _fault(origin: _Origin, root: Path, invented: bool) -> str:
    match origin.kind:
        case kind if kind not in KINDS:
            return f"the kinds are {', '.join(KINDS)}"
        case "measured" if not any(_is_date(day) for day in _DATE.findall(origin.what)):
            return "when was it measured? Write the date, 2026-11-26"
        case "cited" if not (
            _ARXIV.search(origin.what) or "://" in origin.what or _file(origin, root)
        ):
            return "no address, no arXiv number, and no file of this repository"
        case "derived" if not results(origin.what):
            return "no calculation in it that is right: write 2 * 8.19 = 16.4"
        case "setting" if not _holds(origin, root):
            return "no such file, or it does not hold these words"
        case "example" if not invented:
            return f"made-up numbers belong into labs, {' and '.join(INVENTED_IN)}"
        case "plan" | "example" if not origin.what:
            return "say what it is a plan or an example of"
    return ""


def _file(origin: _Origin, root: Path) -> Path | None:
    path = root / origin.what.split(":")[0].split(",")[0].strip()
    return path if path.is_file() else None


def _holds(origin: _Origin, root: Path) -> bool:
    path, words = _file(origin, root), origin.what.partition(":")[2].strip()
    return bool(words) and path is not None and words in path.read_text(encoding="utf-8")


def _named(claim: Claim, origins: Sequence[_Origin], root: Path) -> bool:
    return any(_covers(origin, claim, root) for origin in origins)


def _covers(origin: _Origin, claim: Claim, root: Path) -> bool:
    match origin.kind:
        case "plan":
            return re.fullmatch(_PLANNED, claim.unit) is not None
        case "derived":
            return claim.value is not None and _same(claim.value, results(origin.what))
        case "setting":
            numbers = [_value(n) for n in re.findall(_NUMBER, origin.what.partition(":")[2])]
            others = [n / by for n in numbers for by in (1, 60, 3600)] + [n * 100 for n in numbers]
            return claim.value is not None and _same(claim.value, others)
        case "cited" if path := _file(origin, root):
            return claim.value is not None and _same(claim.value, _numbers_of(path))
    return True
