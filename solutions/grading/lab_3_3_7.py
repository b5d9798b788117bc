"""How lab 3.3.7, the production API, is graded. Never released; tools/lab/judge/hidden_tests.py explains."""

from __future__ import annotations

import bisect
import json
import math
import random
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from utils.checks import expect_close, expect_equal, expect_raises
from utils.checks import lab_3_3_7 as lab
from utils.gateway.bucket import Bucket
from utils.gateway.bucket import full as _full
from utils.gateway.circuit import Circuit
from utils.gateway.circuit import admits as _admits
from utils.gateway.fair_queue import Share
from utils.gateway.timing import Timing
from utils.http.answers import has_text
from tools.lab.judge.hidden_tests import Grading, Wrong

_encode = lab.encode.reference
_feed = lab.feed.reference
_note = lab.on_message.reference
_take = lab.take.reference
_least = lab.least_outstanding.reference
_bounded = lab.bounded_hash.reference
_step = lab.step.reference
_phase = lab.phase.reference
_turn = lab.next_turn.reference
_TEXTS = ["", "a", "hello", "å ß 漢字", " two", '{"choices": [1]}', "data: x", ": no comment"]


def _one_line(data: str, event: str = "") -> bytes:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {data}\n\n".encode()


def _no_empty_line(data: str, event: str = "") -> bytes:
    return _encode(data, event)[:-1]


def _lf_only(data: str, event: str = "") -> bytes:
    if "\n" in event or "\r" in event:
        raise ValueError
    lines = ([f"event: {event}"] if event else []) + [f"data: {x}" for x in data.split("\n")]
    return ("\n".join(lines) + "\n\n").encode()


def _smuggles(data: str, event: str = "") -> bytes:
    name = f"event: {event}\n" if event else ""
    return name.encode() + _encode(data)


def _with_splitlines(data: str, event: str = "") -> bytes:
    if set(event) & {"\r", "\n"}:
        raise ValueError(event)
    body = b"".join(b"data: %s\n" % line.encode() for line in re.split(r"\r\n|\r|\n", data))
    return (b"event: %s\n" % event.encode() if event else b"") + body + b"\n"


def _letter_by_letter(data: str, event: str = "") -> bytes:
    if "\n" in event or "\r" in event:
        raise ValueError("one line")
    text, before = "data: ", ""
    for letter in data:
        if letter == "\n" and before == "\r":
            pass
        elif letter in "\r\n":
            text += "\ndata: "
        else:
            text += letter
        before = letter
    return f"{'event: ' + event + chr(10) if event else ''}{text}\n\n".encode()


encode = Grading(
    lab.encode,
    right={"with re.split": _with_splitlines, "letter by letter": _letter_by_letter},
    wrong={
        "one data line for all": Wrong(_one_line, says="of its own"),
        "no empty line": Wrong(_no_empty_line, says="empty line"),
        "knows only LF": Wrong(_lf_only, says="CR"),
        "lets a name smuggle a field": Wrong(_smuggles, says="ValueError"),
        "text in place of bytes": Wrong(lambda data, event="": _encode(data, event).decode(), says="bytes"),
    },
    twins=("utils.http.sse.error_event",),
)


@encode.part("texts of one and of several lines", points=2)
def _(attempt: Callable[..., bytes], rng: random.Random) -> None:
    for _ in range(30):
        lines = [rng.choice(_TEXTS) for _ in range(rng.randint(1, 4))]
        data = "".join(line + rng.choice(["\n", "\r\n", "\r"]) for line in lines[:-1]) + lines[-1]
        expect_equal(attempt(data), _encode(data), what=f"encode({data!r})")
    several = "one\r\ntwo\nthree"
    expect_equal(attempt(several), _encode(several), what=f"encode({several!r})")


@encode.part("names", points=1)
def _(attempt: Callable[..., bytes], rng: random.Random) -> None:
    name = rng.choice(["error", "ping", "x-y"])
    expect_equal(attempt("a", name), _encode("a", name), what=f"encode('a', {name!r})")
    for mark in ("\n", "\r"):
        bad = f"a{mark}data: {rng.randrange(99)}"
        expect_raises(ValueError, lambda: attempt("x", bad), what=f"the name {bad!r}")  # noqa: B023


def _no_buffer(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    return _feed(b"", piece)[0], b""


def _no_crlf(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    *events, rest = (buffer + piece).split(b"\n\n")
    found = []
    for event in events:
        data = [x[5:].removeprefix(b" ") for x in event.split(b"\n") if x.startswith(b"data:")]
        found += [b"\n".join(data).decode()] if data else []
    return found, rest


def _strips(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    events, rest = _feed(buffer, piece)
    return [event.strip() for event in events], rest


def _every_line(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    events, rest = _feed(buffer, piece)
    return [line for event in events for line in event.split("\n")], rest


def _first_only(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    events, rest = _feed(buffer, piece)
    return events[:1], rest


def _decodes_at_once(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    text = buffer.decode("utf-8", "replace") + piece.decode("utf-8", "replace")
    events, rest = _feed(b"", text.encode())
    return events, rest.decode().encode()


def _cr_at_once(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    return _no_crlf(b"", (buffer + piece).replace(b"\r\n", b"\n").replace(b"\r", b"\n"))


def _line_by_line(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    text, found, data, done, at = buffer + piece, [], [], 0, 0
    for line in re.finditer(rb"([^\r\n]*)(\r\n|\n|\r(?=[^\n]))", text):
        if line.start() != at:
            break
        at = line.end()
        if line[1].startswith(b"data:"):
            value = line[1][5:]
            data.append((value[1:] if value[:1] == b" " else value).decode())
        if not line[1]:
            found += ["\n".join(data)] if data else []
            data, done = [], at
    return found, text[done:]


def _event_by_event(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    left = (buffer + piece).replace(b"\r\n", b"\n")
    cut = left[-1:] == b"\r"
    left = left.removesuffix(b"\r").replace(b"\r", b"\n")
    found = []
    while (end := left.find(b"\n\n")) >= 0:
        lines, left = left[:end].decode().split("\n"), left[end + 2 :]
        values = [line.removeprefix("data:") for line in lines if line.startswith("data:")]
        if values:
            found.append("\n".join(value.removeprefix(" ") for value in values))
    return found, left + b"\r" * cut


feed = Grading(
    lab.feed,
    right={"event by event": _event_by_event, "line by line": _line_by_line},
    wrong={
        "keeps nothing": Wrong(_no_buffer, says="Keep"),
        "knows no CRLF": Wrong(_no_crlf, says="CRLF"),
        "strips the text": Wrong(_strips, says="one space"),
        "each line an event": Wrong(_every_line, says="joined"),
        "one event a piece": Wrong(_first_only, says="Two events"),
        "decodes each piece": Wrong(_decodes_at_once, says="cut in two"),
        "takes half a CRLF for a line end": Wrong(_cr_at_once, says="cut in two"),
    },
    twins=("utils.http.sse.SSEParser",),
)


def _stream(rng: random.Random, end: str) -> bytes:
    parts = []
    for _ in range(rng.randint(2, 6)):
        lines = [rng.choice(_TEXTS) for _ in range(rng.randint(1, 3))]
        fields = [rng.choice([": ping", "event: e", "id: 1"])] if rng.random() < 0.5 else []
        parts.append("".join(x + end for x in [*fields, *(f"data: {x}" for x in lines)]) + end)
        parts += [": keep" + end + end] if rng.random() < 0.3 else []
    return "".join(parts).encode()


def _same_events(attempt: lab.Feed, rng: random.Random, end: str, longest: int) -> None:
    for _ in range(25):
        stream, pieces = _stream(rng, end), []
        wanted = _feed(b"", stream)[0]
        rest = stream
        while rest:
            size = rng.randint(1, longest)
            pieces.append(rest[:size])
            rest = rest[size:]
        expect_equal(lab.fed(attempt, pieces), wanted, what=f"events of {pieces}")


@feed.part("whole events and short pieces, LF", points=2)
def _(attempt: lab.Feed, rng: random.Random) -> None:
    _same_events(attempt, rng, "\n", 400)
    _same_events(attempt, rng, "\n", 40)


@feed.part("CRLF, cut anywhere", points=2)
def _(attempt: lab.Feed, rng: random.Random) -> None:
    _same_events(attempt, rng, "\r\n", 9)


@feed.part("characters cut in two", points=1)
def _(attempt: lab.Feed, rng: random.Random) -> None:
    word = "".join(rng.choice("åßøé漢字") for _ in range(12))
    data = f"data: {word}\n\n".encode()
    for size in (1, 2, 3, 5):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        expect_equal(lab.fed(attempt, pieces), [word], what=f"events of {pieces}")


def _head_counts(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    after = _note(timing, message, now)
    return replace(after, first_token=after.first_token or now)


def _empty_counts(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    if message["type"] == "http.response.body" and timing.first_token is None:
        timing = replace(timing, first_token=now)
    return _note(timing, message, now)


def _moves(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    after = _note(timing, message, now)
    body = message["type"] == "http.response.body" and has_text(message.get("body", b""))
    return replace(after, first_token=now) if body else after


def _any_byte_counts(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    body = message["type"] == "http.response.body" and message.get("body", b"")
    if body and timing.first_token is None:
        timing = replace(timing, first_token=now)
    return _note(timing, message, now)


def _any_data_counts(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    body = message["type"] == "http.response.body" and message.get("body", b"")
    if body and not body.startswith(b":") and timing.first_token is None:
        timing = replace(timing, first_token=now)
    return _note(timing, message, now)


def _content_only(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    after = _note(timing, message, now)
    return (
        after if b'"content"' in message.get("body", b"") else replace(after, first_token=timing.first_token)
    )


def _strict(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    if message["type"] == "http.response.body":
        message["body"], message["more_body"]
    return _note(timing, message, now)


def _always_ends(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    return replace(_note(timing, message, now), ended=now)


def _with_fields(timing: Timing, message: dict[str, Any], now: float) -> Timing:
    fields: dict[str, Any] = {}
    if message["type"] == "http.response.start":
        fields["status"] = message["status"]
    elif message["type"] == "http.response.body":
        if timing.first_token is None and has_text(message.get("body") or b""):
            fields["first_token"] = now
        if message.get("more_body") is not True:
            fields["ended"] = now
    return replace(timing, **fields)


def _with_match(timing: Timing, message: dict[str, Any], now: float) -> Timing:
    match message:
        case {"type": "http.response.start", "status": status}:
            return replace(timing, status=status)
        case {"type": "http.response.body"}:
            first = timing.first_token
            if first is None and has_text(message.get("body", b"")):
                first = now
            ended = timing.ended if message.get("more_body") else now
            return replace(timing, first_token=first, ended=ended)
    return timing


on_message = Grading(
    lab.on_message,
    right={"collects the fields": _with_fields, "with match": _with_match},
    wrong={
        "takes the head for the first token": Wrong(_head_counts, says="head"),
        "takes an empty body for a token": Wrong(_empty_counts, says="empty"),
        "takes a comment for a token": Wrong(_any_byte_counts, says="comment"),
        "takes a role for a token": Wrong(_any_data_counts, says="role"),
        "knows no reasoning": Wrong(_content_only, says="Reasoning"),
        "the last token in place of the first": Wrong(_moves, says="move"),
        "wants every key": Wrong(_strict, says="KeyError"),
        "ends with every message": Wrong(_always_ends, says="more"),
    },
    twins=("utils.gateway.app.Observe",),
    returns=(Timing,),
)


def _messages(rng: random.Random) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"type": "http.response.start", "status": rng.choice([200, 404, 503]), "headers": []}
    ]
    for _ in range(rng.randint(1, 6)):
        deltas = [{"role": "assistant"}, {"content": "y"}, {"reasoning": "hm"}, {"tool_calls": [{}]}]
        chunk = json.dumps({"choices": [{"delta": rng.choice(deltas)}]})
        body = rng.choice([b"", b": ping\n\n", f"data: {chunk}\n\n".encode(), f"data: {chunk}\n\n".encode()])
        found.append({"type": "http.response.body", "body": body, "more_body": True})
    last = [{"type": "http.response.body", "body": b"", "more_body": False}]
    last += [{"type": "http.response.body"}, {"type": "http.response.body", "body": b"data: [DONE]\n\n"}]
    return [*found, rng.choice(last), {"type": "http.response.trailers"}]


def _timings(attempt: Callable[..., Timing], rng: random.Random, what: str) -> None:
    for _ in range(20):
        actual = wanted = Timing(rng.uniform(0, 5))
        now = wanted.began
        for message in _messages(rng):
            now += rng.uniform(0.1, 1.0)
            actual = attempt(actual, message, now)
            wanted = _note(wanted, message, now)
            expect_equal(getattr(actual, what), getattr(wanted, what), what=f"{what} after {message}")


@on_message.part("the first token", points=2)
def _(attempt: Callable[..., Timing], rng: random.Random) -> None:
    _timings(attempt, rng, "first_token")


@on_message.part("status and end", points=1)
def _(attempt: Callable[..., Timing], rng: random.Random) -> None:
    _timings(attempt, rng, "status")
    _timings(attempt, rng, "ended")


def _overflows(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    level = bucket.level + max(0.0, now - bucket.at) * bucket.rate
    filled = replace(bucket, level=level, at=max(bucket.at, now))
    needed = min(cost, bucket.capacity)
    if level >= needed:
        return replace(filled, level=level - cost), 0.0
    return filled, (needed - level) / bucket.rate


def _takes_anyway(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    after, wait = _take(bucket, cost, now)
    return (after if wait == 0 else replace(after, level=after.level - cost)), wait


def _never_more(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    after, wait = _take(bucket, cost, now)
    if cost > bucket.capacity:
        filled = _take(bucket, 0.0, now)[0]
        return filled, (cost - filled.level) / bucket.rate
    return after, wait


def _no_time(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    after, wait = _take(replace(bucket, at=now), cost, now)
    return after, wait


def _waits_units(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    after, wait = _take(bucket, cost, now)
    return after, wait * bucket.rate


def _back_in_time(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    level = min(bucket.capacity, bucket.level + (now - bucket.at) * bucket.rate)
    filled = replace(bucket, level=level, at=now)
    needed = min(cost, bucket.capacity)
    if level >= needed:
        return replace(filled, level=level - cost), 0.0
    return filled, (needed - level) / bucket.rate


def _early_return(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    flowed = bucket.rate * (now - bucket.at) if now > bucket.at else 0
    level = bucket.level + flowed
    if level > bucket.capacity:
        level = bucket.capacity
    at = now if now > bucket.at else bucket.at
    missing = min(cost, bucket.capacity) - level
    if missing > 0:
        return replace(bucket, level=level, at=at), missing / bucket.rate
    return replace(bucket, level=level - cost, at=at), 0.0


def _by_clip(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    at = max(now, bucket.at)
    full = bucket.level + (at - bucket.at) * bucket.rate
    level = sorted([full, bucket.capacity])[0]
    admitted = level >= cost or level >= bucket.capacity
    wait = 0.0 if admitted else (min(cost, bucket.capacity) - level) / bucket.rate
    return replace(bucket, level=level - cost if admitted else level, at=at), wait


take = Grading(
    lab.take,
    right={"with sorted": _by_clip, "by the missing amount": _early_return},
    wrong={
        "overflows": Wrong(_overflows, says="capacity"),
        "takes from who is refused": Wrong(_takes_anyway, says="refused"),
        "never lets a large cost through": Wrong(_never_more, says="debt"),
        "lets nothing flow in": Wrong(_no_time, says="flowed in"),
        "waits in units": Wrong(_waits_units, says="1 s"),
        "goes back in time": Wrong(_back_in_time, says="back"),
    },
    twins=("utils.gateway.auth.Caller",),
    returns=(Bucket,),
)


def _takes(attempt: Callable[..., Any], rng: random.Random, large: bool) -> None:
    for _ in range(15):
        b = _full(rng.uniform(0.5, 5), rng.uniform(5, 20), 0.0)
        now = 0.0
        for _ in range(8):
            now += rng.choice([0.0, rng.uniform(0, 2), rng.uniform(5, 60), -rng.uniform(0, 3)])
            cost = rng.uniform(0, b.capacity) * (rng.choice([1, 3]) if large else 1)
            got, wanted = attempt(b, cost, now), _take(b, cost, now)
            what = f"take({b}, {cost}, {now})"
            expect_close(got, wanted, what=what, rel=1e-9, abs_=1e-9)
            b = wanted[0]


@take.part("costs that fit", points=2)
def _(attempt: Callable[..., Any], rng: random.Random) -> None:
    _takes(attempt, rng, large=False)


@take.part("costs above the capacity", points=2)
def _(attempt: Callable[..., Any], rng: random.Random) -> None:
    _takes(attempt, rng, large=True)
    b = replace(_full(1.0, 10.0, 0.0), level=rng.uniform(0, 9))
    expect_close(attempt(b, 25.0, 0.0), _take(b, 25.0, 0.0), what=f"take({b}, 25.0, 0.0)")


def _first_of_equals(outstanding: dict[str, int], turn: int) -> str:
    return min(outstanding, key=lambda name: outstanding[name])


def _turns_of_all(outstanding: dict[str, int], turn: int) -> str:
    return list(outstanding)[turn % len(outstanding)]


def _turn_by_all(outstanding: dict[str, int], turn: int) -> str:
    equals = [n for n, c in outstanding.items() if c == min(outstanding.values())]
    return equals[turn % len(outstanding) % len(equals)]


def _by_filter(outstanding: dict[str, int], turn: int) -> str:
    groups: dict[int, list[str]] = {}
    for name, count in outstanding.items():
        groups.setdefault(count, []).append(name)
    equals = groups[min(groups)]
    return equals[turn % len(equals)]


def _by_sorted(outstanding: dict[str, int], turn: int) -> str:
    order = sorted(outstanding, key=lambda name: outstanding[name])
    equals = [name for name in order if outstanding[name] == outstanding[order[0]]]
    return equals[turn - len(equals) * (turn // len(equals))]


least_outstanding = Grading(
    lab.least_outstanding,
    right={"groups": _by_filter, "sorted": _by_sorted},
    wrong={
        "always the first of equals": Wrong(_first_of_equals, says="turns"),
        "round robin": Wrong(_turns_of_all, says="fewest"),
        "the most": Wrong(
            lambda outstanding, turn: max(outstanding, key=lambda n: outstanding[n]), says="fewest"
        ),
        "counts turns by all": Wrong(_turn_by_all, says="fewest take turns"),
    },
)


@least_outstanding.part("any loads", points=1)
def _(attempt: Callable[..., str], rng: random.Random) -> None:
    for _ in range(20):
        names = rng.sample("abcdefgh", rng.randint(2, 6))
        loads = {name: count for name, count in zip(names, rng.sample(range(20), len(names)), strict=True)}
        turn = rng.randrange(99)
        wanted = _least(loads, turn)
        expect_equal(attempt(loads, turn), wanted, what=f"of {loads}")


@least_outstanding.part("equals in turn", points=1)
def _(attempt: Callable[..., str], rng: random.Random) -> None:
    for _ in range(20):
        loads = {name: rng.randint(0, 1) for name in rng.sample("abcdefgh", rng.randint(3, 6))}
        for turn in rng.sample(range(50), 8):
            wanted = _least(loads, turn)
            expect_equal(attempt(loads, turn), wanted, what=f"of {loads}, turn {turn}")


def _limited(
    ring: lab.Ring, outstanding: Mapping[str, int], place: int, limit: float, wrap: bool = True
) -> str:
    ahead = [n for at, n in ring if at >= place] + ([n for at, n in ring if at < place] if wrap else [])
    return next(n for n in ahead if n in outstanding and outstanding[n] < limit)


def _unbounded(ring: lab.Ring, outstanding: Mapping[str, int], place: int, slack: float) -> str:
    return _limited(ring, outstanding, place, math.inf)


def _without_one(ring: lab.Ring, outstanding: Mapping[str, int], place: int, slack: float) -> str:
    return _limited(ring, outstanding, place, math.ceil(slack * sum(outstanding.values()) / len(outstanding)))


def _at_the_limit(ring: lab.Ring, outstanding: Mapping[str, int], place: int, slack: float) -> str:
    limit = math.ceil(slack * (sum(outstanding.values()) + 1) / len(outstanding))
    return _limited(ring, outstanding, place, limit + 1)


def _mean_of_all(ring: lab.Ring, outstanding: Mapping[str, int], place: int, slack: float) -> str:
    limit = math.ceil(slack * (sum(outstanding.values()) + 1) / len({n for _, n in ring}))
    return _limited(ring, outstanding, place, limit)


def _straight(ring: lab.Ring, outstanding: Mapping[str, int], place: int, slack: float) -> str:
    limit = math.ceil(slack * (sum(outstanding.values()) + 1) / len(outstanding))
    return _limited(ring, outstanding, place, limit, wrap=False)


def _anybody(ring: lab.Ring, outstanding: Mapping[str, int], place: int, slack: float) -> str:
    ahead = [n for at, n in ring if at >= place] + [n for at, n in ring if at < place]
    limit = math.ceil(slack * (sum(outstanding.values()) + 1) / len(outstanding))
    return next(n for n in ahead if outstanding.get(n, 0) < limit)


def _by_bisection(ring: list[tuple[int, str]], outstanding: dict[str, int], place: int, slack: float) -> str:
    limit = math.ceil(slack * (1 + sum(outstanding.values())) / len(outstanding))
    start = bisect.bisect_left(ring, (place, ""))
    for step in range(len(ring)):
        name = ring[(start + step) % len(ring)][1]
        if outstanding.get(name, limit) < limit:
            return name
    raise ValueError(place)


def _by_distance(ring: list[tuple[int, str]], outstanding: dict[str, int], place: int, slack: float) -> str:
    limit = math.ceil(slack * (sum(outstanding.values()) + 1) / len(outstanding))
    room = [(at, name) for at, name in ring if name in outstanding and outstanding[name] < limit]
    return min(room, key=lambda point: (point[0] < place, point[0]))[1]


bounded_hash = Grading(
    lab.bounded_hash,
    right={"by bisection": _by_bisection, "those with room first": _by_distance},
    wrong={
        "no bound": Wrong(_unbounded, says="limit"),
        "forgets this request": Wrong(_without_one, says="StopIteration"),
        "one more than the limit": Wrong(_at_the_limit, says="no room"),
        "the mean of all": Wrong(_mean_of_all, says="StopIteration"),
        "does not go round": Wrong(_straight, says="StopIteration"),
        "chooses who may not": Wrong(_anybody, says="not in `outstanding`"),
    },
)


def _same_places(attempt: Callable[..., str], rng: random.Random, slack: float, busy: int) -> None:
    for _ in range(30):
        names = list("abcdef")[: rng.randint(3, 6)]
        ring = sorted((rng.randrange(1000), name) for name in names for _ in range(4))
        may = rng.sample(names, rng.randint(2, len(names)))
        loads = {name: rng.randint(0, busy) for name in may}
        place = rng.choice([rng.randrange(1000), 1000, ring[0][0]])
        wanted = _bounded(ring, loads, place, slack)
        what = f"bounded_hash({ring}, {loads}, {place}, {slack})"
        expect_equal(attempt(ring, loads, place, slack), wanted, what=what)


@bounded_hash.part("an idle pool", points=2)
def _(attempt: Callable[..., str], rng: random.Random) -> None:
    _same_places(attempt, rng, rng.uniform(1.0, 3.0), 0)


@bounded_hash.part("backends that are full", points=2)
def _(attempt: Callable[..., str], rng: random.Random) -> None:
    for slack in (1.0, 1.25, 1.5, 2.0):
        _same_places(attempt, rng, slack, 9)


def _not_in_a_row(circuit: Circuit, event: str, now: float) -> Circuit:
    after = _step(circuit, event, now)
    closed = event == "success" and circuit.state == "closed"
    return replace(after, failures=circuit.failures) if closed else after


def _late_results(circuit: Circuit, event: str, now: float) -> Circuit:
    if circuit.state == "open" and event == "success":
        return replace(circuit, state="closed", failures=0)
    return _step(circuit, event, now)


def _no_half(circuit: Circuit, event: str, now: float) -> Circuit:
    return _step(circuit, event, now) if event != "sent" else circuit


def _probe_counts(circuit: Circuit, event: str, now: float) -> Circuit:
    if circuit.state == "half_open" and event == "failure":
        return replace(circuit, state="closed", failures=1)
    return _step(circuit, event, now)


def _cancelled_is_failure(circuit: Circuit, event: str, now: float) -> Circuit:
    return _step(circuit, "failure" if event == "cancelled" else event, now)


def _one_too_late(circuit: Circuit, event: str, now: float) -> Circuit:
    return replace(
        _step(replace(circuit, threshold=circuit.threshold + 1), event, now), threshold=circuit.threshold
    )


def _knows_all(circuit: Circuit, event: str, now: float) -> Circuit:
    known = ("sent", "success", "failure", "cancelled")
    return _step(circuit, event, now) if event in known else circuit


def _by_state(circuit: Circuit, event: str, now: float) -> Circuit:
    opened = replace(circuit, state="open", failures=0, opened_at=now)
    match circuit.state, event:
        case "open", "sent":
            return replace(circuit, state="half_open")
        case (_, "sent") | ("open", "success" | "failure" | "cancelled") | ("closed", "cancelled"):
            return circuit
        case _, "success":
            return replace(circuit, state="closed", failures=0)
        case "half_open", "cancelled":
            return replace(circuit, state="open")
        case "half_open", "failure":
            return opened
        case "closed", "failure":
            more = replace(circuit, failures=circuit.failures + 1)
            return opened if more.failures >= circuit.threshold else more
    raise ValueError(event)


def _by_event(circuit: Circuit, event: str, now: float) -> Circuit:
    state, failures, opened_at = circuit.state, circuit.failures, circuit.opened_at
    if event == "sent":
        state = "half_open" if state == "open" else state
    elif event == "success":
        state, failures = (state, failures) if state == "open" else ("closed", 0)
    elif event == "cancelled":
        state = "open" if state == "half_open" else state
    elif event == "failure":
        failures += state == "closed"
        if state == "half_open" or (state == "closed" and failures >= circuit.threshold):
            state, failures, opened_at = "open", 0, now
    else:
        raise ValueError(f"unknown event {event!r}")
    return replace(circuit, state=state, failures=failures, opened_at=opened_at)


step = Grading(
    lab.step,
    right={"by event": _by_event, "by state and event": _by_state},
    wrong={
        "counts failures that are not in a row": Wrong(_not_in_a_row, says="in a row"),
        "believes late results": Wrong(_late_results, says="nothing changes"),
        "has no half-open state": Wrong(_no_half, says="probe"),
        "a bad probe is one failure": Wrong(_probe_counts, says="enough"),
        "a client that leaves is a failure": Wrong(_cancelled_is_failure, says="told nothing"),
        "one too late": Wrong(_one_too_late, says="third"),
        "accepts any event": Wrong(_knows_all, says="unknown"),
    },
    twins=("utils.gateway.backend.Backend",),
    returns=(Circuit,),
)


def _walks(attempt: Callable[..., Circuit], rng: random.Random, events: list[str]) -> None:
    for _ in range(25):
        c, now = Circuit(rng.randint(1, 4), rng.uniform(1, 9)), 0.0
        for _ in range(14):
            now += rng.uniform(0.1, 4)
            event = rng.choice(events)
            if event == "sent" and not _admits(c, now):
                continue
            wanted = _step(c, event, now)
            expect_equal(attempt(c, event, now), wanted, what=f"step({c}, {event!r}, {now})")
            c = wanted


@step.part("it opens", points=2)
def _(attempt: Callable[..., Circuit], rng: random.Random) -> None:
    _walks(attempt, rng, ["success", "failure", "failure"])


@step.part("it probes and closes", points=2)
def _(attempt: Callable[..., Circuit], rng: random.Random) -> None:
    _walks(attempt, rng, ["sent", "sent", "success", "failure", "failure"])


@step.part("clients that leave, events that are none", points=1)
def _(attempt: Callable[..., Circuit], rng: random.Random) -> None:
    _walks(attempt, rng, ["sent", "cancelled", "failure", "failure"])
    for state in ("closed", "open", "half_open"):
        c = Circuit(2, 1.0, state)
        expect_equal(attempt(c, "cancelled", 9.0), _step(c, "cancelled", 9.0), what=f"{c} cancelled")
        name = f"event {rng.randrange(99)}"
        expect_raises(ValueError, lambda: attempt(c, name, 9.0), what=name)  # noqa: B023


def _falsy(since_s: float | None, in_flight: int, notice_s: float, limit_s: float) -> str:
    return _phase(since_s or None, in_flight, notice_s, limit_s)


def _leaves_when_idle(since_s: float | None, in_flight: int, notice_s: float, limit_s: float) -> str:
    return "done" if since_s is not None and not in_flight else _phase(since_s, in_flight, notice_s, limit_s)


def _limit_after_notice(since_s: float | None, in_flight: int, notice_s: float, limit_s: float) -> str:
    return _phase(since_s, in_flight, notice_s, limit_s + notice_s)


def _no_notice(since_s: float | None, in_flight: int, notice_s: float, limit_s: float) -> str:
    return _phase(since_s, in_flight, 0.0, limit_s)


def _never_cuts(since_s: float | None, in_flight: int, notice_s: float, limit_s: float) -> str:
    return _phase(since_s, in_flight, notice_s, math.inf)


def _cuts_nobody(since_s: float | None, in_flight: int, notice_s: float, limit_s: float) -> str:
    return (
        "cutting"
        if since_s is not None and since_s >= limit_s
        else _phase(since_s, in_flight, notice_s, limit_s)
    )


phase = Grading(
    lab.phase,
    right={
        "one expression": lambda since_s, in_flight, notice_s, limit_s: (
            "serving"
            if since_s is None
            else "leaving"
            if since_s < notice_s
            else "done"
            if not in_flight
            else "finishing"
            if since_s < limit_s
            else "cutting"
        ),
        "from the end": lambda since_s, in_flight, notice_s, limit_s: (
            "serving"
            if since_s is None
            else ("cutting" if since_s >= limit_s else "finishing")
            if since_s >= notice_s and in_flight > 0
            else "done"
            if since_s >= notice_s
            else "leaving"
        ),
    },
    wrong={
        "takes 0.0 for None": Wrong(_falsy, says="0.0"),
        "leaves when idle": Wrong(_leaves_when_idle, says="idle or not"),
        "the limit after the notice": Wrong(_limit_after_notice, says="30 s"),
        "no notice": Wrong(_no_notice, says="leaving"),
        "never cuts": Wrong(_never_cuts, says="time"),
        "cuts nobody": Wrong(_cuts_nobody, says="Nobody"),
    },
    twins=("utils.gateway.app.Gateway",),
)


def _same_phases(attempt: Callable[..., str], rng: random.Random, flying: list[int]) -> None:
    for _ in range(40):
        notice, limit = rng.uniform(0.5, 5), rng.uniform(10, 40)
        times = [None, 0.0, notice, limit, rng.uniform(0, notice), rng.uniform(notice, limit)]
        since = rng.choice([*times, limit + rng.uniform(0, 9), limit + notice / 2])
        count = rng.choice(flying)
        wanted = _phase(since, count, notice, limit)
        what = f"phase({since}, {count}, {notice}, {limit})"
        expect_equal(attempt(since, count, notice, limit), wanted, what=what)


@phase.part("with requests in flight", points=2)
def _(attempt: Callable[..., str], rng: random.Random) -> None:
    _same_phases(attempt, rng, [1, 2, 7])


@phase.part("with none", points=1)
def _(attempt: Callable[..., str], rng: random.Random) -> None:
    _same_phases(attempt, rng, [0])


Turn = tuple[str, list[Share]]


def _forgets_to_pay(ring: list[Share], costs: Mapping[str, float], quantum: float) -> Turn:
    key, after = _turn(ring, costs, quantum)
    return key, [replace(s, deficit=s.deficit + costs[key]) if s.key == key else s for s in after]


def _idle_earn(ring: list[Share], costs: Mapping[str, float], quantum: float) -> Turn:
    waiting = list(ring)
    while True:
        first, *others = waiting
        if first.deficit >= costs.get(first.key, math.inf):
            return first.key, [replace(first, deficit=first.deficit - costs[first.key]), *others]
        waiting = [*others, replace(first, deficit=first.deficit + quantum)]


def _each_in_turn(ring: list[Share], costs: Mapping[str, float], quantum: float) -> Turn:
    waiting = list(ring)
    while waiting[0].key not in costs:
        waiting.append(waiting.pop(0))
    first, *others = waiting
    return first.key, [*others, first]


def _more_than_enough(ring: list[Share], costs: Mapping[str, float], quantum: float) -> Turn:
    waiting = list(ring)
    while True:
        first, *others = waiting
        cost = costs.get(first.key)
        if cost is not None and first.deficit > cost:
            return first.key, [replace(first, deficit=first.deficit - cost), *others]
        waiting = [*others, replace(first, deficit=first.deficit + (quantum if cost is not None else 0))]


def _goes_to_the_end(ring: list[Share], costs: Mapping[str, float], quantum: float) -> Turn:
    key, (first, *others) = _turn(ring, costs, quantum)
    return key, [*others, first]


def _changes_the_ring(ring: list[Share], costs: Mapping[str, float], quantum: float) -> Turn:
    key, ring[:] = _turn(ring, costs, quantum)
    return key, ring


def _with_a_deque(ring: list[Share], costs: dict[str, float], quantum: float) -> tuple[str, list[Share]]:
    waiting = deque(ring)
    while waiting[0].key not in costs or waiting[0].deficit < costs[waiting[0].key]:
        share = waiting[0]
        if share.key in costs:
            waiting[0] = replace(share, deficit=share.deficit + quantum)
        waiting.rotate(-1)
    share = waiting[0]
    waiting[0] = replace(share, deficit=share.deficit - costs[share.key])
    return share.key, list(waiting)


def _by_place(ring: list[Share], costs: dict[str, float], quantum: float) -> tuple[str, list[Share]]:
    shares, place = ring[:], 0
    while shares[place].deficit < costs.get(shares[place].key, math.inf):
        share = shares[place]
        shares[place] = replace(share, deficit=share.deficit + quantum * (share.key in costs))
        place = (place + 1) % len(shares)
    paid = replace(shares[place], deficit=shares[place].deficit - costs[shares[place].key])
    return paid.key, [paid, *shares[place + 1 :], *shares[:place]]


next_turn = Grading(
    lab.next_turn,
    right={"by place": _by_place, "with a deque": _with_a_deque},
    wrong={
        "forgets to pay": Wrong(_forgets_to_pay, says="paid"),
        "idle keys earn": Wrong(_idle_earn, says="earns nothing"),
        "each key in turn": Wrong(_each_in_turn, says="paid"),
        "wants more than enough": Wrong(_more_than_enough, says="Exactly"),
        "goes to the end after its turn": Wrong(_goes_to_the_end, says="stays first"),
        "changes the ring that it was given": Wrong(_changes_the_ring, says="changed its argument"),
    },
    twins=("utils.gateway.fair_queue.FairQueue",),
    returns=(Share,),
)


def _turns(attempt: Callable[..., Turn], rng: random.Random, idle: bool) -> None:
    for _ in range(10):
        names = rng.sample("abcdef", rng.randint(2, 5))
        ring = [Share(name, float(rng.randint(0, 80))) for name in names]
        quantum = float(rng.randint(5, 60))
        for _ in range(12):
            some = rng.sample(names, rng.randint(1, len(names))) if idle else names
            costs = {name: float(rng.randint(1, 150)) for name in some}
            wanted = _turn(ring, costs, quantum)
            got = attempt(list(ring), dict(costs), quantum)
            what = f"next_turn({ring}, {costs}, {quantum})"
            expect_equal((got[0], list(got[1])), wanted, what=what)
            ring = wanted[1]


@next_turn.part("keys that all wait", points=2)
def _(attempt: Callable[..., Turn], rng: random.Random) -> None:
    _turns(attempt, rng, idle=False)


@next_turn.part("keys with nothing to be served", points=2)
def _(attempt: Callable[..., Turn], rng: random.Random) -> None:
    _turns(attempt, rng, idle=True)
