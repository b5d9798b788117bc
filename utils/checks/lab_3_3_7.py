"""Checks of lab 3.3.7, the production API."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from utils.checks import check, expect_close, expect_equal, expect_raises, expect_type
from utils.gateway import balance, bucket, circuit, drain, fair_queue, timing
from utils.gateway.bucket import Bucket
from utils.gateway.circuit import Circuit
from utils.gateway.fair_queue import Share
from utils.gateway.timing import Timing
from utils.http import sse

Ring = list[tuple[int, str]]
Feed = Callable[[bytes, bytes], tuple[list[str], bytes]]


@check(reference=sse.encode)
def encode(attempt: Callable[..., bytes]) -> None:
    """Examine the learner's `encode(data, event)`."""
    got = attempt("hi")
    expect_type(
        got, bytes, what="encode('hi')", hint="A network carries bytes: .encode() the text."
    )
    hint = "An event ends with an empty line: two line breaks."
    expect_equal(got, b"data: hi\n\n", what="encode('hi')", hint=hint)
    hint = "Every line of the text needs `data: ` of its own, or the rest is lost."
    expect_equal(attempt("a\nb"), b"data: a\ndata: b\n\n", what="encode('a\\nb')", hint=hint)
    hint = "A CR or CRLF in the text is a line break too."
    expect_equal(attempt("a\r\nb"), b"data: a\ndata: b\n\n", what="encode('a\\r\\nb')", hint=hint)
    hint = "An empty text is still one empty `data: ` line."
    expect_equal(attempt(""), b"data: \n\n", what="encode('')", hint=hint)
    hint = "The field `event: NAME` comes first; without a name there is none."
    expect_equal(attempt("x", "e"), b"event: e\ndata: x\n\n", what="encode('x', 'e')", hint=hint)
    expect_equal(attempt("å"), "data: å\n\n".encode(), what="encode('å')", hint="In UTF-8.")
    hint = "A line break in the name would start another field: ValueError."
    expect_raises(ValueError, lambda: attempt("x", "e\ndata: y"), what="a name with \\n", hint=hint)


def fed(attempt: Feed, pieces: list[bytes]) -> list[str]:
    """Return all events that the learner's `feed` finds in pieces, with the rest handed on."""
    found: list[str] = []
    buffer = b""
    for piece in pieces:
        answer = attempt(buffer, piece)
        expect_type(answer, tuple, what="what feed returns", hint="(events, what is left).")
        expect_equal(len(answer), 2, what="items of what feed returns", hint="(events, rest).")
        events, buffer = answer
        expect_type(buffer, bytes, what="what is left", hint="Bytes: half a character is no text.")
        expect_type(events, list, what="the events", hint="A list of texts, empty if none ended.")
        found += events
    return found


@check(reference=sse.feed)
def feed(attempt: Feed) -> None:
    """Examine the learner's `feed(buffer, piece)`."""

    def same(pieces: list[bytes], expected: list[str], hint: str) -> None:
        expect_equal(fed(attempt, pieces), expected, what=f"events of {pieces}", hint=hint)

    same([b"data: a\n\n"], ["a"], "One whole event.")
    same([b"data: a\n\ndata: b\n\n"], ["a", "b"], "Two events may come in one piece.")
    same([b"data: a", b"b\n", b"\n"], ["ab"], "Keep what is not complete; it goes on.")
    same([b"data: a\n"], [], "An event ends with an empty line, not with its first line.")
    same([b": ping\n\ndata: a\n\n"], ["a"], "A line that begins with a colon is a comment.")
    same([b"event: x\ndata: a\nid: 7\n\n"], ["a"], "Other fields are not the data.")
    same([b"data: a\ndata: b\n\n"], ["a\nb"], "Several data lines are one text, joined by \\n.")
    same([b"data: a\r\n\r\n"], ["a"], "Lines may end with CRLF.")
    same([b"data: a\r", b"\n\r", b"\ndata: b\n\n"], ["a", "b"], "A CRLF may be cut in two.")
    same([b"data: a\r", b"\ndata: b\r\n\r\n"], ["a\nb"], "A CRLF may be cut in two.")
    same([b"data:a\n\n"], ["a"], "The space behind `data:` may be missing.")
    same([b"data:  a\n\n"], [" a"], "Only one space behind `data:` goes.")
    half = "data: å\n\n".encode()
    same([half[:7], half[7:]], ["å"], "A character may be cut in two: decode whole lines only.")


@check(reference=timing.on_message)
def on_message(attempt: Callable[..., Timing]) -> None:
    """Examine the learner's `on_message(timing, message, now)`."""

    def body(data: bytes, more: bool) -> Mapping[str, Any]:
        return {"type": "http.response.body", "body": data, "more_body": more}

    def chunk(**delta: str) -> bytes:
        return f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode()

    began = Timing(began=1.0)
    head = attempt(began, {"type": "http.response.start", "status": 200, "headers": []}, 1.5)
    expect_type(head, Timing, what="what it returns", hint="replace(timing, ...) makes a new one.")
    expect_equal(head.status, 200, what="status after the head", hint="It stands in the message.")
    hint = "The head is sent before the model has said anything: no first byte."
    expect_equal(head.first_token, None, what="first_token after the head", hint=hint)
    empty = attempt(head, body(b"", True), 2.0)
    hint = "An empty body has no token."
    expect_equal(empty.first_token, None, what="first_token after an empty piece", hint=hint)
    comment = attempt(empty, body(b": ping\n\n", True), 2.2)
    hint = "A comment keeps a connection open. The model has said nothing: ask has_text(body)."
    expect_equal(comment.first_token, None, what="first_token after a comment", hint=hint)
    role = attempt(comment, body(chunk(role="assistant"), True), 2.4)
    hint = "The first chunk of a chat often holds only the role, which isn't text."
    expect_equal(role.first_token, None, what="first_token after a chunk with a role", hint=hint)
    first = attempt(role, body(chunk(content="x"), True), 3.0)
    hint = "It is the time of the first message whose body has text."
    expect_equal(first.first_token, 3.0, what="first_token", hint=hint)
    hint = "Reasoning is text too: has_text knows it."
    thought = attempt(role, body(chunk(reasoning_content="hm"), True), 3.0)
    expect_equal(thought.first_token, 3.0, what="first_token of a model that thinks", hint=hint)
    second = attempt(first, body(chunk(content="y"), True), 4.0)
    expect_equal(second.first_token, 3.0, what="first_token later", hint="It does not move.")
    expect_equal(second.ended, None, what="ended while there is more", hint="more_body is True.")
    last = attempt(second, body(b"data: [DONE]\n\n", False), 5.0)
    expect_equal(last.ended, 5.0, what="ended", hint="When more_body is False.")
    hint = "`body` and `more_body` may be missing: then empty, and no more."
    bare = attempt(first, {"type": "http.response.body"}, 6.0)
    expect_equal(bare, Timing(1.0, 200, 3.0, 6.0), what="after a bare last message", hint=hint)
    whole = attempt(head, body(b'{"choices": [{"message": {"content": "all"}}]}', False), 7.0)
    hint = "A single message can be the first and the last."
    expect_equal((whole.first_token, whole.ended), (7.0, 7.0), what="one body", hint=hint)
    other = attempt(first, {"type": "http.response.trailers"}, 8.0)
    expect_equal(other, first, what="another type of message", hint="It changes nothing.")


@check(reference=bucket.take)
def take(attempt: Callable[..., tuple[Bucket, float]]) -> None:
    """Examine the learner's `take(bucket, cost, now)`."""

    def after(before: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
        got = attempt(before, cost, now)
        expect_type(got, tuple, what="what take returns", hint="(bucket, seconds to wait).")
        expect_type(got[0], Bucket, what="the first of what take returns", hint="A Bucket.")
        return got

    full = Bucket(rate=2.0, capacity=10.0, level=10.0, at=0.0)
    left, wait = after(full, 4.0, 0.0)
    expect_close(left.level, 6.0, what="level after 4 of 10", hint="Taken is taken.")
    expect_close(wait, 0.0, what="wait when there is enough", hint="0.0: admitted.")
    low = Bucket(2.0, 10.0, 1.0, 0.0)
    left, wait = after(low, 4.0, 0.5)
    hint = "In 0.5 s 1 flowed in, so 2 are there and 2 are missing: at 2 a second that is 1 s."
    expect_close(wait, 1.0, what="wait for 4 with 1 + 1 in the bucket", hint=hint)
    expect_close(left.level, 2.0, what="level when refused", hint="Who is refused takes nothing.")
    expect_close(left.at, 0.5, what="at when refused", hint="What flowed in is counted: at = now.")
    left, wait = after(low, 0.0, 100.0)
    expect_close(left.level, 10.0, what="level after 100 s", hint="It holds no more than capacity.")
    left, wait = after(Bucket(2.0, 10.0, 5.0, 50.0), 0.0, 40.0)
    hint = "A clock that went back lets nothing flow in, and takes nothing out."
    expect_close(left.level, 5.0, what="level when now lies before at", hint=hint)
    expect_close(left.at, 50.0, what="at when now lies before at", hint=hint)
    left, wait = after(full, 25.0, 0.0)
    hint = "More than a full bucket holds is admitted when it is full, and leaves a debt."
    expect_close(wait, 0.0, what="wait for 25 of 10, full", hint=hint)
    expect_close(left.level, -15.0, what="level after 25 of 10", hint=hint)
    left, wait = after(Bucket(2.0, 10.0, 4.0, 0.0), 25.0, 0.0)
    hint = "It needs a full bucket: 6 are missing, at 2 a second."
    expect_close(wait, 3.0, what="wait for 25 with 4 of 10", hint=hint)


@check(reference=balance.least_outstanding)
def least_outstanding(attempt: Callable[..., str]) -> None:
    """Examine the learner's `least_outstanding(outstanding, turn)`."""
    got = attempt({"a": 3, "b": 1, "c": 2}, 0)
    expect_equal(got, "b", what="of a: 3, b: 1, c: 2", hint="The fewest in flight.")
    idle = {"a": 0, "b": 0, "c": 0}
    chosen = [attempt(idle, turn) for turn in range(6)]
    hint = "Equals take turns, by `turn`; else the first gets every request of an idle pool."
    expect_equal(chosen, ["a", "b", "c"] * 2, what="six turns of an idle pool", hint=hint)
    subset = [attempt({"a": 5, "b": 1, "c": 1}, turn) for turn in range(4)]
    hint = "Only those with the fewest take turns."
    expect_equal(subset, ["b", "c", "b", "c"], what="four turns with a: 5, b: 1, c: 1", hint=hint)


RING: Ring = [(10, "a"), (20, "b"), (30, "c"), (40, "a"), (50, "b")]


@check(reference=balance.bounded_hash)
def bounded_hash(attempt: Callable[..., str]) -> None:
    """Examine the learner's `bounded_hash(ring, outstanding, place, slack)`."""
    idle = {"a": 0, "b": 0, "c": 0}

    def chosen(place: int, outstanding: Mapping[str, int], slack: float) -> str:
        return attempt(RING, outstanding, place, slack)

    hint = "The first entry at or behind the place."
    expect_equal(chosen(15, idle, 2.0), "b", what="place 15", hint=hint)
    expect_equal(chosen(30, idle, 2.0), "c", what="place 30", hint="An entry at the place counts.")
    expect_equal(
        chosen(55, idle, 2.0), "a", what="place 55", hint="Behind the last comes the first."
    )
    hint = "A backend that is not in `outstanding` may not be chosen: go on."
    expect_equal(chosen(15, {"a": 0, "c": 0}, 2.0), "c", what="place 15 without b", hint=hint)
    full = {"a": 0, "b": 4, "c": 1}
    hint = "The limit is ceil(1.0 * (5 + 1) / 3) = 2: b has 4, so it goes on to c."
    expect_equal(chosen(15, full, 1.0), "c", what="place 15 with b full", hint=hint)
    hint = "The limit is ceil(2.0 * (5 + 1) / 3) = 4: b has 4, which is no room."
    expect_equal(chosen(15, full, 2.0), "c", what="place 15, slack 2", hint=hint)
    hint = "The limit is ceil(2.5 * (5 + 1) / 3) = 5: b has room, though it has the most."
    expect_equal(chosen(15, full, 2.5), "b", what="place 15, slack 2.5", hint=hint)
    hint = "Count this request as well: without the + 1 nobody of an idle pool has room."
    expect_equal(chosen(45, idle, 1.0), "b", what="an idle pool, slack 1", hint=hint)
    hint = "The mean is over the backends in `outstanding`, not over all of the ring."
    two = chosen(15, {"b": 2, "c": 2}, 1.0)
    expect_equal(two, "b", what="b: 2, c: 2, slack 1: limit ceil(5 / 2) = 3", hint=hint)


@check(reference=circuit.step)
def step(attempt: Callable[..., Circuit]) -> None:
    """Examine the learner's `step(circuit, event, now)`."""

    def after(before: Circuit, *events: tuple[str, float]) -> Circuit:
        for event, now in events:
            before = attempt(before, event, now)
            expect_type(before, Circuit, what=f"the state after {event!r}", hint="A Circuit.")
        return before

    new = Circuit(threshold=3, open_s=5.0)
    two = after(new, ("failure", 1.0), ("failure", 2.0))
    expect_equal((two.state, two.failures), ("closed", 2), what="two failures", hint="Count them.")
    hint = "The third in a row opens it; opened_at is now, the count begins again."
    three = after(two, ("failure", 3.0))
    expect_equal(three, Circuit(3, 5.0, "open", 0, 3.0), what="three failures", hint=hint)
    again = after(two, ("success", 3.0), ("failure", 4.0), ("failure", 5.0))
    hint = "Failures in a row: a success sets the count to 0."
    expect_equal((again.state, again.failures), ("closed", 2), what="a success between", hint=hint)
    for event in ("success", "failure", "cancelled"):
        hint = (
            "While it is open, results come from requests that were sent before: nothing changes."
        )
        expect_equal(after(three, (event, 4.0)), three, what=f"a late {event!r}", hint=hint)
    probing = after(three, ("sent", 9.0))
    hint = "A request that is sent while open is the probe: half_open."
    expect_equal(probing.state, "half_open", what="'sent' while open", hint=hint)
    expect_equal(after(new, ("sent", 1.0)), new, what="'sent' while closed", hint="No change.")
    closed = after(probing, ("success", 10.0))
    hint = "A probe that succeeds closes it."
    expect_equal((closed.state, closed.failures), ("closed", 0), what="a good probe", hint=hint)
    opened = after(probing, ("failure", 10.0))
    hint = "One failure of the probe is enough; the wait begins anew, at now."
    expect_equal((opened.state, opened.opened_at), ("open", 10.0), what="a bad probe", hint=hint)
    left = after(probing, ("cancelled", 10.0))
    hint = "A probe whose client left told nothing: open as before, with the old opened_at."
    expect_equal((left.state, left.opened_at), ("open", 3.0), what="a cancelled probe", hint=hint)
    same = after(two, ("cancelled", 3.0))
    hint = "A client that leaves says nothing about the backend: the count stays."
    expect_equal(same, two, what="'cancelled' while closed", hint=hint)
    expect_raises(ValueError, lambda: attempt(new, "perhaps", 1.0), what="an unknown event")


@check(reference=drain.phase)
def phase(attempt: Callable[..., str]) -> None:
    """Examine the learner's `phase(since_s, in_flight, notice_s, limit_s)`."""

    def same(since: float | None, flying: int, expected: str, hint: str) -> None:
        what = f"{since} s since SIGTERM, {flying} in flight, notice 2 s, limit 30 s"
        expect_equal(attempt(since, flying, 2.0, 30.0), expected, what=what, hint=hint)

    same(None, 3, "serving", "There was no SIGTERM.")
    same(0.0, 3, "leaving", "0.0 is no None: SIGTERM has just come.")
    same(1.9, 0, "leaving", "Load balancers still send requests: idle or not, it serves.")
    same(2.0, 3, "finishing", "No new requests; those in flight go on.")
    same(2.0, 0, "done", "Nothing to wait for.")
    same(30.0, 1, "cutting", "They had their time: 30 s are over.")
    same(31.0, 0, "done", "Nobody is left to cut.")


@check(reference=fair_queue.next_turn)
def next_turn(attempt: Callable[..., tuple[str, list[Share]]]) -> None:
    """Examine the learner's `next_turn(ring, costs, quantum)`."""

    def turn(ring: list[Share], costs: Mapping[str, float]) -> tuple[str, list[Share]]:
        got = attempt(ring, costs, 50.0)
        expect_type(got, tuple, what="what next_turn returns", hint="(key, ring).")
        expect_equal(len(got), 2, what="items of what next_turn returns", hint="(key, ring).")
        return got[0], list(got[1])

    both = {"a": 60.0, "b": 60.0}
    key, ring = turn([Share("a", 100.0), Share("b", 0.0)], both)
    hint = "The first of the ring has earned enough: it is served."
    expect_equal(key, "a", what="key, a has 100 and needs 60", hint=hint)
    hint = "It has paid 60, and stays first: it may have enough for another request."
    expect_equal(ring, [Share("a", 40.0), Share("b", 0.0)], what="the ring after that", hint=hint)
    key, ring = turn(ring, both)
    hint = "a has 40: it earns 50 and goes to the end. So does b. Then a has 90."
    expect_equal(key, "a", what="key, a has 40 and b has 0", hint=hint)
    expect_equal(ring, [Share("a", 30.0), Share("b", 50.0)], what="the ring after that", hint=hint)
    key, ring = turn([Share("a", 60.0), Share("b", 0.0)], both)
    expect_equal(key, "a", what="key, a has 60 and needs 60", hint="Exactly enough is enough.")
    hint = "Exactly enough is enough: nobody has to earn first."
    expect_equal(ring, [Share("a", 0.0), Share("b", 0.0)], what="the ring after that", hint=hint)
    key, ring = turn([Share("a", 10.0), Share("b", 0.0)], {"b": 20.0})
    expect_equal(key, "b", what="key, a has nothing to be served", hint="a is not in `costs`.")
    hint = "A key that is not in `costs` goes to the end and earns nothing: idle keys save nothing."
    expect_equal(sorted(ring, key=lambda s: s.key)[0], Share("a", 10.0), what="a", hint=hint)
    tokens = {"a": 0.0, "b": 0.0}
    costs, ring = {"a": 10.0, "b": 200.0}, [Share("a"), Share("b")]
    for _ in range(210):
        key, ring = turn(ring, costs)
        tokens[key] += costs[key]
    hint = "Keys share tokens, not turns: one request of b costs as much as twenty of a."
    near = abs(tokens["a"] - tokens["b"]) <= 450
    expect_equal(near, True, what=f"a and b are served alike, with tokens {tokens}", hint=hint)
