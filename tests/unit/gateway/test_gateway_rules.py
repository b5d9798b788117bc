"""The gateway's small rules: bucket, circuit, balance, drain, timing, events; by property where it helps."""

import collections
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.gateway import balance, bucket, circuit, drain
from utils.gateway.timing import Timing, on_message
from utils.http import sse
from utils.http.sse import SSEParser

quick = settings(max_examples=40, deadline=None)
times = st.lists(st.floats(0, 10), min_size=1, max_size=40)


@quick
@given(times, st.lists(st.floats(0, 5), min_size=40, max_size=40))
def test_a_bucket_never_lets_through_more_than_its_rate_and_one_burst(gaps, costs):
    b, now, admitted = bucket.full(rate=2.0, capacity=5.0, now=0.0), 0.0, 0.0
    for gap, cost in zip(gaps, costs, strict=False):
        now += gap
        b, wait = bucket.take(b, cost, now)
        admitted += cost if wait == 0 else 0
        assert b.level + 1e-9 >= 0 and b.level <= b.capacity
        assert admitted <= 5.0 + 2.0 * now + 1e-6


@quick
@given(st.floats(0.1, 9), st.floats(0, 20), st.floats(0, 30))
def test_a_bucket_says_how_long_to_wait(rate, cost, later):
    b, _ = bucket.take(bucket.full(rate, 10.0, 0.0), 9.0, 0.0)
    after, wait = bucket.take(b, cost, 0.0)
    if wait:
        assert after.level == b.level
        assert bucket.take(b, cost, wait * 1.000001 + 1e-9)[1] == 0.0
        assert bucket.take(b, cost, wait * 0.99)[1] > 0.0


def test_a_cost_above_the_capacity_is_a_debt():
    b, wait = bucket.take(bucket.full(1.0, 10.0, 0.0), 25.0, 0.0)
    assert wait == 0.0 and b.level == -15.0
    assert bucket.take(b, 1.0, 0.0)[1] == 16.0
    assert bucket.refund(b, 20.0).level == 5.0 and bucket.refund(b, 99.0).level == 10.0


def test_a_clock_that_goes_back_fills_nothing():
    b, _ = bucket.take(bucket.full(1.0, 10.0, 100.0), 10.0, 100.0)
    b, _ = bucket.take(b, 0.0, 50.0)
    assert b.level == 0.0 and b.at == 100.0


moves = st.lists(
    st.tuples(st.sampled_from(["ask", "success", "failure", "cancelled"]), st.floats(0, 4)),
    max_size=60,
)


@quick
@given(moves)
def test_a_circuit_keeps_its_promises(steps):
    c, now = circuit.Circuit(threshold=3, open_s=5.0), 0.0
    in_a_row = 0
    for event, gap in steps:
        now += gap
        before = c
        if event == "ask":
            if circuit.admits(c, now):
                assert c.state != circuit.OPEN or now - c.opened_at >= 5.0
                c = circuit.step(c, "sent", now)
                assert c.state in (circuit.CLOSED, circuit.HALF_OPEN)
                if c.state == circuit.HALF_OPEN:
                    assert not circuit.admits(c, now), "one probe at a time"
            continue
        c = circuit.step(c, event, now)
        if before.state == circuit.OPEN:
            assert c == before, "late results change nothing"
        elif before.state == circuit.HALF_OPEN:
            expected = {"success": "closed", "failure": "open", "cancelled": "open"}
            assert c.state == expected[event]
            in_a_row = 0
        elif event == "failure":
            in_a_row += 1
            assert (c.state == circuit.OPEN) == (in_a_row >= 3)
            in_a_row = 0 if c.state == circuit.OPEN else in_a_row
        elif event == "success":
            in_a_row = 0
            assert c.state == circuit.CLOSED
        assert c.state != circuit.OPEN or circuit.admits(c, c.opened_at + 5.001)


def test_a_circuit_knows_its_events():
    with pytest.raises(ValueError, match="maybe"):
        circuit.step(circuit.Circuit(), "maybe", 0.0)


loads = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9), min_size=1)


@quick
@given(loads, st.integers(0, 100), st.randoms())
def test_choices_are_as_good_as_they_say(outstanding, turn, rng):
    least = balance.least_outstanding(outstanding, turn)
    assert outstanding[least] == min(outstanding.values())
    two = balance.power_of_two(outstanding, rng)
    assert two in outstanding
    counts = sorted(outstanding.values())
    if len(counts) > 1 and counts[-1] > counts[-2]:
        assert outstanding[two] < counts[-1], (
            "the one fullest loses against whomever it is drawn with"
        )


def test_equals_take_turns():
    idle = {"a": 0, "b": 0, "c": 0}
    assert {balance.least_outstanding(idle, turn) for turn in range(3)} == set(idle)


def test_fuller_of_two_backends_is_never_chosen():
    rng = random.Random(1)
    assert all(balance.power_of_two({"a": 3, "b": 1}, rng) == "b" for _ in range(50))


@quick
@given(loads, st.text(max_size=5), st.floats(1, 3))
def test_a_bounded_hash_keeps_its_bound(outstanding, key, slack):
    ring = balance.make_ring("abcdef")
    name = balance.bounded_hash(ring, outstanding, balance.point(key), slack)
    limit = slack * (sum(outstanding.values()) + 1) / len(outstanding)
    assert outstanding[name] < limit + 1


def test_a_key_keeps_its_backend_when_another_leaves():
    ring, names = balance.make_ring("abcd"), dict.fromkeys("abcd", 0)
    keys = [str(i) for i in range(400)]
    before = {key: balance.bounded_hash(ring, names, balance.point(key), 9.0) for key in keys}
    rest = {name: 0 for name in "abc"}
    moved = [
        k for k in keys if balance.bounded_hash(ring, rest, balance.point(k), 9.0) != before[k]
    ]
    assert {before[key] for key in moved} == {"d"}, "only the keys of the one that left"
    assert max(collections.Counter(before.values()).values()) < 200


def test_nobody_to_choose_is_an_error():
    with pytest.raises(ValueError, match="may be chosen"):
        balance.bounded_hash(balance.make_ring("a"), {"b": 0}, 7, 1.0)


def test_draining_goes_through_its_phases():
    def at(since, flying):
        return drain.phase(since, flying, 2.0, 30.0)

    assert at(None, 5) == "serving"
    assert at(1.9, 0) == "leaving", "load balancers have not noticed yet"
    assert at(2.0, 3) == "finishing" and at(2.0, 0) == "done"
    assert at(30.0, 1) == "cutting" and at(31.0, 0) == "done"


def test_timing_waits_for_first_text():
    t = Timing(began=1.0)
    t = on_message(t, {"type": "http.response.start", "status": 200}, 2.0)
    t = on_message(t, {"type": "http.response.body", "body": b"", "more_body": True}, 3.0)
    for early in (b": wait\n\n", b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'):
        t = on_message(t, {"type": "http.response.body", "body": early, "more_body": True}, 3.0)
    assert t.first_token is None
    assert t.status == 200
    text = b'data: {"choices": [{"delta": {"reasoning": "hm"}}]}\n\n'
    t = on_message(t, {"type": "http.response.body", "body": text, "more_body": True}, 4.0)
    t = on_message(t, {"type": "http.response.body", "body": text, "more_body": True}, 5.0)
    assert t.ttft == 3.0 and t.ended is None
    assert on_message(t, {"type": "http.response.body"}, 6.0).ended == 6.0
    assert on_message(t, {"type": "http.response.debug"}, 6.0) == t


lines = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r"), max_size=20)


@quick
@given(st.lists(lines, max_size=6), st.sampled_from([b"\n", b"\r\n"]), st.data())
def test_events_survive_any_cut(datas, end, data):
    stream = b": hello\n\n" + b"".join(sse.encode(text, event="e") for text in datas)
    stream = stream.replace(b"\n", end)
    found, buffer, at = [], b"", 0
    parser, events = SSEParser(), []
    while at < len(stream):
        size = data.draw(st.integers(1, 12))
        complete, buffer = sse.feed(buffer, stream[at : at + size])
        found += complete
        events += parser.feed(stream[at : at + size])
        at += size
    assert found == datas
    assert [event.data for event in events] == datas
    # A CR may have ended the last event, and the LF of the same CRLF comes after it.
    assert buffer.strip(b"\n") == b""
    if datas:
        assert (b"".join(event.raw for event in events) + parser.rest).strip() == stream.strip()


def test_parser_looks_once_at_event_of_megabytes(monkeypatch):
    joined = []
    event = b"data: " + b"x" * (8 << 20) + b"\r\n\r\n"
    parser, size = SSEParser(), 1 << 14
    line = SSEParser._line
    monkeypatch.setattr(SSEParser, "_line", lambda s, got: joined.append(len(got)) or line(s, got))
    found = [parser.feed(event[at : at + size]) for at in range(0, len(event), size)]
    assert found[-1][0].raw == event
    assert not any(found[:-1])
    assert sum(joined) < 1.01 * len(event)


def test_a_name_of_an_event_cannot_smuggle_a_field():
    with pytest.raises(ValueError):
        sse.encode("x", event="a\ndata: b")
