"""The event-stream parser: whatever the pieces' borders, the events are the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.http.sse import Event, SSEParser

STREAM = (
    ": a comment\n"
    'data: {"text": "naïve 日本語 🙂"}\n\n'
    "event: error\r\ndata: broken\r\n\r\n"
    "data: two\ndata: lines\n\n"
    "id: 7\nretry: 5\ndata:no space\n\n"
    "data\n\n"
    "error: llama\n\n"
    "\n\n: ping\n\n"
    "data: [DONE]\n\n"
).encode()
EVENTS = [
    Event('{"text": "naïve 日本語 🙂"}'),
    Event("broken", "error"),
    Event("two\nlines"),
    Event("no space"),
    Event(""),
    Event("llama", "error"),
    Event("[DONE]"),
]


def parse(pieces: list[bytes]) -> list[Event]:
    parser = SSEParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    last = parser.close()
    return events if last is None else [*events, last]


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def test_whole_stream() -> None:
    assert parse([STREAM]) == EVENTS


def test_byte_by_byte() -> None:
    assert parse([STREAM[i : i + 1] for i in range(len(STREAM))]) == EVENTS


@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_any_split(cuts: list[int]) -> None:
    assert parse(split(STREAM, cuts)) == EVENTS


def test_events_that_come_together_keep_their_own_bytes() -> None:
    raw = [b'data: {"a": 1}\n\n', "data: naïve\n\n".encode(), b"data: [DONE]\n\n"]
    together = SSEParser().feed(b"".join(raw))
    assert [event.raw for event in together] == raw
    assert together == parse([raw[0], raw[1], raw[2]])


@given(st.sampled_from([b"\n", b"\r\n", b"\r"]), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_line_ending(ending: bytes, cuts: list[int]) -> None:
    stream = b"data: a\n\ndata: b\ndata: c\n\n: x\n\ndata: d\n\n".replace(b"\n", ending)
    expected = [Event("a"), Event("b\nc"), Event("d")]
    assert parse(split(stream, cuts)) == expected


def test_byte_order_mark_is_ignored_only_at_the_start() -> None:
    bom = b"\xef\xbb\xbf"
    assert parse([bom[:1], bom[1:] + b"data: a\n\n", b"data: " + bom + b"\n\n"]) == [
        Event("a"),
        Event("\ufeff"),
    ]


def test_unicode_line_separators_do_not_end_a_line() -> None:
    text = "a\u2028b\u2029c\x85d\x0be"
    assert parse([f"data: {text}\n\n".encode()]) == [Event(text)]


def test_an_event_without_its_empty_line_is_given_at_the_end() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\n\ndata: [DONE]") == [Event("a")]
    assert parser.close() == Event("[DONE]")
    assert SSEParser().close() is None


@pytest.mark.parametrize("field", ["id: 1", "retry: 3", "unknown: x", ": comment", "event: e"])
def test_a_block_without_data_is_no_event(field: str) -> None:
    assert parse([f"{field}\n\ndata: a\n\n".encode()]) == [Event("a")]


def test_the_kind_does_not_leak_into_the_next_event() -> None:
    parser = SSEParser()
    assert parser.feed(b"event: x\n") == []
    assert parser.feed(b"data: a\n\n") == [Event("a", "x")]
    assert parser.feed(b"data: b\n\n") == [Event("b")]
