"""Values cross between grader and learner's process exactly, or not at all."""

import contextlib
import json
import math
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.lab.judge.rpc_codec import MAX_BYTES, Codec, WireError, from_bytes, to_bytes
from utils.checks.expect import expect_equal
from utils.kvcache.blocks import BlockPool, BlockTable
from utils.kvcache.scheduler import Job, SchedulerLimits, Sequence


class Handles:
    def __init__(self):
        self.things = []

    def give(self, thing):
        self.things.append(thing)
        return {"h": len(self.things) - 1}

    def take(self, described):
        return self.things[described["h"]]


def pair():
    """Codecs of one call on the two sides: the grader's, and the learner's."""
    handles = Handles()
    return Codec(handles, set(), agree=True), Codec(handles, set(), agree=False)


def across(message):
    """What JSON makes of it on the way."""
    return from_bytes(to_bytes({"v": message})[4:])["v"]


def there(value):
    ours, expected = pair()
    return expected.decode(across(ours.encode(value)))


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
scalars |= st.complex_numbers() | st.just(...)
keys = st.integers() | st.text() | st.tuples(st.integers(), st.booleans())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(keys, inner)
        | st.tuples(inner, inner)
        | st.lists(inner).map(deque)
        | st.sets(st.integers(), max_size=1)  # of more, the order may differ
        | st.frozensets(st.text(), max_size=1)
    ),
    max_leaves=20,
)


@given(values)
@settings(max_examples=200, deadline=None)
def test_plain_values_arrive_as_they_were_types_included(value):
    got = there(value)
    assert type(got) is type(value)
    assert repr(got) == repr(value)


@pytest.mark.parametrize("value", [True, 1, 1.0, np.float64(1), np.int32(1), np.bool_(True), "1"])
def test_ones_are_told_apart(value):
    got = there([value])[0]
    assert type(got) is type(value) and got == value


def test_numbers_that_json_does_not_have():
    got = there([math.nan, math.inf, -math.inf, 10**5000, -0.0])
    assert math.isnan(got[0]) and got[1:4] == [math.inf, -math.inf, 10**5000]
    assert math.copysign(1, got[4]) == -1


def test_arrays_keep_dtype_shape_and_values():
    for array in (np.arange(6, dtype=np.int16).reshape(2, 3), np.zeros((0, 4)), np.array([1 + 2j])):
        got = there(array)
        assert got.dtype == array.dtype and got.shape == array.shape
        assert np.array_equal(got, array)


def test_half_a_character_does_not_break_what_comes_after():
    got = there("\ud800x")
    assert got == "\\ud800x"
    got.encode()


@pytest.mark.parametrize("text", ['{"n": "\ud800"}', '{"n": "\\ud800"}', '{"n": 1}'])
def test_a_message_is_utf_8_whatever_json_would_take(text):
    with pytest.raises(WireError, match="no JSON"):
        from_bytes(text.encode("utf-16-le", "surrogatepass"))
    assert "\ud800" not in from_bytes(text.encode("utf-8", "backslashreplace")).values()
    deep = b'{"\\ud800":' * 900 + b"1" + b"}" * 900
    with contextlib.suppress(WireError):
        from_bytes(deep)


def test_lists_with_shared_items_count_as_written_out():
    nest = [0]
    for _ in range(10):
        nest = [nest, nest]
    assert there(nest) == nest
    for _ in range(20):
        nest = [nest, nest]
    with pytest.raises(WireError, match="more than 4000000 items"):
        there(nest)


def test_one_object_twice_is_one_object_twice():
    shared = [1]
    got = there({"a": shared, "b": shared})
    assert got["a"] is got["b"]
    loop = []
    loop.append(loop)
    got = there(loop)
    assert got[0] is got


def call(function, *args):
    """Call by copy-restore: what the grader's own objects look like afterwards, and the result."""
    ours, expected = pair()
    arguments = expected.decode(across(ours.encode(list(args))))
    result = function(*arguments)
    return ours.decode(across(expected.encode([result, arguments])))[0]


def test_change_in_place_crosses_to_grader():
    queue, running, counts, seen, array = deque([3, 4]), [1], {"a": 1}, {1}, np.zeros(3)

    def function(queue, running, counts, seen, array):
        running.append(queue.popleft())
        counts["b"] = running
        seen.add(7)
        array[1] = 5
        return running

    result = call(function, queue, running, counts, seen, array)
    assert (queue, running, counts, seen) == (deque([4]), [1, 3], {"a": 1, "b": [1, 3]}, {1, 7})
    assert result is running and counts["b"] is running
    assert array.tolist() == [0, 5, 0]


def test_objects_of_the_course_keep_their_identity_and_work_there():
    pool = BlockPool(4, 2)
    first, second = (Sequence(Job(i, 0, 3, 5), BlockTable(pool)) for i in range(2))
    waiting, running = deque([first, second]), []

    def admit(waiting, running, limits):
        running.append(waiting.popleft())
        running[0].take(3)
        return {running[0].job.job_id: limits.token_budget}

    assert call(admit, waiting, running, SchedulerLimits(8)) == {0: 8}
    assert list(waiting) == [second] and running == [first]
    assert first.table.blocks == [0, 1] and first.table.pool is pool is second.table.pool
    assert list(pool.free) == [2, 3] and pool.references == [1, 1, 0, 0]


def test_immutable_value_is_not_changed_from_afar():
    limits, job = SchedulerLimits(8), Job(1, 0.0, 3, 5)

    def tamper(limits, job):
        vars(limits)["token_budget"] = 10**9
        vars(job)["prompt_tokens"] = 1

    call(tamper, limits, job)
    assert limits == SchedulerLimits(8) and job == Job(1, 0.0, 3, 5)


def test_classes_nobody_agreed_to_stay_there():
    class Mine:
        pass

    ours, expected = pair()
    thing = Mine()
    assert (
        ours.decode(across(expected.encode(thing))) is thing
    )  # as a handle: the test's own Handles
    forged = {"t": "object", "n": 0, "c": "utils.kvcache.blocks:BlockPool", "k": [], "v": []}
    with pytest.raises(WireError, match="nobody agreed"):
        ours.decode(forged)
    for name in ("subprocess:Popen", "utils.engines.launch:RunningEngine"):
        with pytest.raises(WireError, match="nobody agreed"):
            ours.decode({**forged, "c": name})


def test_a_subclass_of_a_plain_type_is_not_plain():
    class Sly(float):
        __eq__ = object.__eq__
        __hash__ = object.__hash__

    ours, expected = pair()
    assert expected.encode(Sly(1))["t"] == "handle"
    assert expected.encode(type("list", (list,), {})())["t"] == "handle"
    with pytest.raises(Exception, match=r"got 1\.0 of type Sly"):
        expect_equal(ours.decode(expected.encode(Sly(1))), 1.0, what="it")


def test_too_deep_and_too_much_are_refused():
    nest = []
    for _ in range(100):
        nest = [nest]
    with pytest.raises(WireError, match="too deeply"):
        there(nest)
    with pytest.raises(WireError, match="too large"):
        to_bytes({"v": "x" * MAX_BYTES})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["t", "n", "v", "k", "c", "d", "s", "b", "m", "h"]), inner, max_size=6
        )
    ),
    max_leaves=15,
)
KINDS = """
    int float dots complex bytes tuple frozenset scalar enum handle same array list dict set deque
    object other
"""
kinds = st.sampled_from(KINDS.split())


@given(kinds, json_values, json_values, json_values)
@settings(max_examples=500, deadline=None)
def test_a_forged_message_is_refused_and_nothing_else_happens(kind, one, two, three):
    ours, _ = pair()
    known = [1, 2]
    ours.encode([known, SchedulerLimits(3)])
    node = {"t": kind, "n": one, "v": two, "k": three, "c": one, "d": two, "s": one, "b": two}
    try:
        ours.decode(across({**node, "m": three, "h": one}))
    except WireError:
        return


@given(st.binary(max_size=50))
def test_bytes_that_are_no_message(data):
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        with pytest.raises(WireError):
            from_bytes(data)
