r"""Grammar masks: a regular expression as an automaton over bytes, and the tokens that each state allows.

A pattern is parsed into a term. The *derivative* of a term by a byte is the term for the rest of the text
(Brzozowski, "Derivatives of Regular Expressions", 1964), so the terms that are found by derivatives are the
automaton's states. `.`, classes with `^`, shorthands such as `\d`, anchors and look-around are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

Term = tuple[Any, ...]
EMPTY: Term = ("empty",)  # matches nothing
END: Term = ("end",)  # matches the empty text only
MAX_INTEGERS = 1000
MAX_STATES = 10_000


def _then(first: Term, second: Term) -> Term:
    if EMPTY in (first, second):
        return EMPTY
    if first == END:
        return second
    if second == END:
        return first
    if first[0] == "then":
        return ("then", first[1], _then(first[2], second))
    return ("then", first, second)


def _either(*terms: Term) -> Term:
    branches: list[Term] = []
    for term in terms:
        for branch in term[1] if term[0] == "either" else (term,):
            if branch != EMPTY and branch not in branches:
                branches.append(branch)
    if len(branches) < 2:
        return branches[0] if branches else EMPTY
    return ("either", tuple(sorted(branches, key=repr)))


@cache
def _accepts_end(state: Term) -> bool:
    match state:
        case ("then", first, second):
            return _accepts_end(first) and _accepts_end(second)
        case ("either", branches):
            return any(map(_accepts_end, branches))
    return state[0] in ("end", "many")


@cache
def _derivative(state: Term, byte: int) -> Term:
    match state:
        case ("bytes", allowed):
            return END if byte in allowed else EMPTY
        case ("then", first, second):
            rest = _then(_derivative(first, byte), second)
            return _either(rest, _derivative(second, byte)) if _accepts_end(first) else rest
        case ("either", branches):
            return _either(*(_derivative(branch, byte) for branch in branches))
        case ("many", repeated):
            return _then(_derivative(repeated, byte), state)
    return EMPTY


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def refuse(self, reason: str) -> ValueError:
        return ValueError(f"{reason} at position {self.at} of the pattern {self.pattern!r}.")

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self) -> str:
        letter = self.peek()
        if not letter:
            raise self.refuse("Something is missing")
        self.at += 1
        return letter

    def choice(self) -> Term:
        branches = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            branches.append(self.sequence())
        return _either(*branches)

    def sequence(self) -> Term:
        terms = []
        while self.peek() not in ("", "|", ")"):
            terms.append(self.repeated(self.atom()))
        found = END
        for term in reversed(terms):
            found = _then(term, found)
        return found

    def repeated(self, term: Term) -> Term:
        bounds = re.compile(r"\{(\d+)(,?)(\d*)\}|[*+?]").match(self.pattern, self.at)
        if bounds is None:
            return term
        self.at = bounds.end()
        least, comma, most = bounds.groups()
        if least is None:
            least, most = {"*": (0, ""), "+": (1, ""), "?": (0, 1)}[bounds[0]]
        elif not comma:
            most = least
        optional = ("many", term) if most == "" else END
        for _ in range(int(most or least) - int(least)):
            optional = _either(END, _then(term, optional))
        for _ in range(int(least)):
            optional = _then(term, optional)
        return optional

    def atom(self) -> Term:
        letter = self.take()
        if letter == "(":
            if self.pattern.startswith("?:", self.at):
                self.at += 2
            term = self.choice()
            if self.take() != ")":
                raise self.refuse("A group isn't closed")
            return term
        if letter == "[":
            return ("bytes", frozenset(self.letters()))
        if letter in ".^$*+?{":
            raise self.refuse(f"{letter!r} isn't supported here. Escape it, or write a class,")
        return self.literal(self.escaped() if letter == "\\" else letter)

    def literal(self, letter: str) -> Term:
        found = END
        for byte in reversed(letter.encode()):
            found = _then(("bytes", frozenset((byte,))), found)
        return found

    def escaped(self) -> str:
        letter = self.take()
        if letter.isalnum():
            raise self.refuse(f"\\{letter} isn't supported. Write a class such as [0-9]")
        return letter

    def letters(self) -> set[int]:
        if self.peek() == "^":
            raise self.refuse("A class with ^ isn't supported. Write the letters that are allowed")
        found: set[int] = set()
        while (letter := self.take()) != "]":
            low = high = self.escaped() if letter == "\\" else letter
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                high = self.escaped() if (letter := self.take()) == "\\" else letter
            if not (low <= high and high.isascii()):
                raise self.refuse(f"{low}-{high} isn't a range of ASCII characters")
            found.update(range(ord(low), ord(high) + 1))
        return found


@dataclass(frozen=True)
class Automaton:
    """Deterministic automaton over bytes. Its states are numbers, and the first one is 0.

    Attributes:
        moves: Next state by byte, for each state. A byte without an entry can't follow.
        ends: States in which the text may end.
    """

    moves: list[dict[int, int]]
    ends: frozenset[int]

    def after(self, text: bytes, state: int = 0) -> int | None:
        """Return the state after some bytes, or None if no text of the grammar goes on like this."""
        for byte in text:
            after = self.moves[state].get(byte)
            if after is None:
                return None
            state = after
        return state


def compile_pattern(pattern: str) -> Automaton:
    """Return a regular expression's automaton.

    Raises:
        ValueError: The pattern has a part that this module doesn't support, isn't complete, or is too large.
    """
    parser = _Parser(pattern)
    terms = [parser.choice()]
    if parser.peek():
        raise parser.refuse("A group is closed that isn't open")
    numbers = {terms[0]: 0}
    moves: list[dict[int, int]] = []
    for term in terms:  # grows in the loop
        moves.append({})
        for byte in range(256):
            after = _derivative(term, byte)
            if after == EMPTY:
                continue
            if after not in numbers:
                numbers[after] = len(terms)
                terms.append(after)
            moves[-1][byte] = numbers[after]
        if len(terms) > MAX_STATES:
            raise ValueError(f"The pattern needs more than {MAX_STATES} states. Make it shorter.")
    return Automaton(moves, frozenset(numbers[term] for term in terms if _accepts_end(term)))


def schema_pattern(schema: Mapping[str, Any]) -> str:
    """Return a regular expression for the compact JSON texts that a schema allows.

    Objects have exactly their `properties` in this order, with `", "` and `": "` between the parts as in
    `json.dumps`. Other parts may be an `enum`, a boolean, or an integer between two bounds.

    Raises:
        ValueError: The schema has a part that this function doesn't support.
    """
    if "enum" in schema:
        return "(" + "|".join(re.escape(json.dumps(value)) for value in schema["enum"]) + ")"
    match schema.get("type"):
        case "boolean":
            return "(true|false)"
        case "integer" if {"minimum", "maximum"} <= schema.keys():
            numbers = range(schema["minimum"], schema["maximum"] + 1)
            if 0 < len(numbers) <= MAX_INTEGERS:
                return "(" + "|".join(re.escape(str(number)) for number in numbers) + ")"
        case "object" if set(schema["properties"]) == set(schema.get("required", ())):
            parts = (
                re.escape(json.dumps(name) + ": ") + schema_pattern(part)
                for name, part in schema["properties"].items()
            )
            return r"\{" + re.escape(", ").join(parts) + r"\}"
    raise ValueError(f"This part of the schema isn't supported here: {json.dumps(schema)}.")


def vocabulary(tokenizer: Any) -> list[bytes]:
    """Return the bytes of every token of a byte-level BPE tokenizer, and no bytes for special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + place): byte for place, byte in enumerate(others)}  # GPT-2's alphabet
    special = set(tokenizer.all_special_ids)
    return [
        b"" if token in special else bytes(byte_of[letter] for letter in spelled)
        for token, spelled in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    ]


class Masks:
    """Mask of each state, computed when the state is reached first, and kept for the next time.

    Args:
        automaton: Automaton of the grammar.
        token_mask: Function that gets the moves, a state and the tokens, and returns the allowed tokens' ids.
        tokens: Bytes of each token.
        end_token: Token that ends an answer. It is allowed where the text may end.
    """

    def __init__(
        self,
        automaton: Automaton,
        token_mask: Callable[..., Sequence[int]],
        tokens: Sequence[bytes],
        end_token: int,
    ) -> None:
        self.automaton, self.token_mask = automaton, token_mask
        self.tokens, self.end_token = tokens, end_token
        self.known: dict[int, list[int]] = {}

    def allowed(self, state: int) -> list[int]:
        """Return the ids of the tokens that may come next."""
        if state not in self.known:
            end = [self.end_token] if state in self.automaton.ends else []
            allowed = self.token_mask(self.automaton.moves, state, self.tokens)
            self.known[state] = sorted([*allowed, *end])
        return self.known[state]

    def after(self, state: int, token: int) -> int:
        """Return the state after an allowed token."""
        after = self.automaton.after(self.tokens[token], state)
        if after is None:
            raise ValueError(
                f"Token {token} isn't allowed in state {state}. Does `token_mask` say so?"
            )
        return after
