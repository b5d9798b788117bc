"""The framework of the checks: right, wrong, empty, crashing, endless and cheating answers."""

import asyncio
import contextlib
import functools
import signal
import threading
import time

import pytest

import utils.checks.failures as failures
from utils.checks import CheckFailed, NotAttempted, check, expect_equal, expect_raises

WORDS = ["a", "b", "a"]


def count_of(words, word):
    return sum(w == word for w in words)


@check(reference=count_of, limit_s=0.3)
def count(attempt):
    """Counts a word."""
    expect_equal(attempt(WORDS, "a"), 2, what="'a' in a, b, a", hint="Count every one.")
    expect_equal(attempt([], "a"), 0, what="'a' in nothing")


@check(reference=12)
def number(answer):
    """A value."""
    expect_equal(answer, 12, what="the number")


class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("empty")
        return self.items.pop()


@check(reference=Stack)
def stack(attempt):
    """A class."""
    one = attempt()
    one.push(3)
    expect_equal(one.pop(), 3, what="what was pushed")
    expect_raises(IndexError, one.pop, what="pop of an empty stack")


def test_an_error_names_what_it_was_called_with():
    def broken(words, word):
        words.clear()
        return words[0]

    text = count.judge(broken).message
    assert "your code raised IndexError" in text
    assert "(it was called with (['a', 'b', 'a'], 'a'))" in text, "as given, before it was changed"


def unattempted(words, word):
    raise NotImplementedError("Exercise count: replace this line by your code")


@pytest.fixture(autouse=True)
def not_grading(monkeypatch):
    monkeypatch.delenv("COURSE_GRADING", raising=False)


def test_a_right_answer_is_the_learners_own(capsys):
    def actual(words, word):
        return words.count(word)

    assert count(actual) is actual
    assert capsys.readouterr().out == "✔ count: right.\n"


def test_an_untouched_exercise_hands_back_the_reference(capsys):
    assert count(unattempted) is count_of
    text = capsys.readouterr().out
    line = unattempted.__code__.co_firstlineno + 1
    assert text == (
        f"○ count: not attempted, because line {line} of your cell raises NotImplementedError."
        " The notebook goes on with the course's own.\n"
    )


def test_unfinished_branch_is_not_called_untouched(capsys):
    def half(words, word):
        if words:
            return words.count(word)
        raise NotImplementedError("nothing yet for an empty list")

    assert count.judge(half).verdict == "not finished"
    assert count(half) is count_of
    text = capsys.readouterr().out
    line = half.__code__.co_firstlineno + 3
    assert f"line {line} of your cell still raises NotImplementedError" in text
    assert "Right so far: 'a' in a, b, a." in text


def test_function_that_changes_its_inputs_is_told():
    def sorts(words, word):
        words.sort()
        return words.count(word)

    result = count.judge(sorts)
    assert (result.verdict, result.cause) == ("wrong", "answer")
    assert result.message.startswith("it changed its argument `words` from ['a', 'b', 'a'] to")


def test_two_arguments_that_are_one_object_change_apart():
    @check(reference=lambda p, q: [*p, *q])
    def joined(attempt):
        one = [1]
        expect_equal(attempt(one, one), [1, 1], what="one list twice")

    def grows(p, q):
        p.append(2)
        return [*p, *q]

    assert "changed its argument `p` from [1] to [1, 2]" in joined.judge(grows).message


@pytest.mark.parametrize(
    ("answer", "call"),
    [
        (lambda words, word: len(words), "count(['a', 'b', 'a'], 'a') returned 3"),
        (lambda words, word: words.count(word) or 7, "count([], 'a') returned 7"),
    ],
)
def test_wrong_result_is_shown_with_its_call(answer, call):
    assert count.judge(answer).message.endswith(f"\nYour call: {call}")


def test_call_is_left_out_where_several_may_have_returned_the_value():
    @check(reference=lambda x: x)
    def same(attempt):
        results = [attempt(x) for x in (1, 2, 3)]
        expect_equal(sum(results), 6, what="the sum")

    assert same.judge(lambda x: 1.5).message == "the sum: got 4.5 of type float, expected int 6."


@pytest.mark.parametrize("empty", [None, ...])
def test_an_untouched_value_hands_back_the_reference(empty, capsys):
    assert number(empty) == 12
    assert "○ number: not attempted" in capsys.readouterr().out
    assert count(empty) is count_of


def test_a_stub_that_returns_dots_is_untouched(capsys):
    assert count(lambda words, word: ...) is count_of
    assert "not attempted" in capsys.readouterr().out


def test_a_mutable_reference_is_handed_back_as_a_copy():
    @check(reference=[1, 2])
    def items(answer):
        expect_equal(answer, [1, 2], what="items")

    items(...).append(3)
    assert items(...) == [1, 2]


def test_the_reference_handed_back_is_not_praised_on_a_second_run(capsys):
    again = count(count(unattempted))
    assert again is count_of
    assert "right" not in capsys.readouterr().out


def test_a_wrong_answer_is_told_in_the_exercises_terms_with_a_way_on():
    with pytest.raises(CheckFailed) as caught:
        count(lambda words, word: 1)
    text = str(caught.value)
    assert text.startswith("count: 'a' in a, b, a: got 1, expected 2. Count every one.\n")
    assert "raise NotImplementedError" in text
    assert "reference" in text
    assert caught.value.cause == "answer"
    assert isinstance(caught.value, AssertionError)


def test_a_notebook_shows_no_wall_of_text():
    with pytest.raises(CheckFailed) as caught:
        count(lambda words, word: 1)
    shown = caught.value._render_traceback_()
    assert len(shown) == 3
    assert "✘ count: 'a' in a, b, a: got 1, expected 2" in shown[0]
    assert shown[1] == "Your call: count(['a', 'b', 'a'], 'a') returned 1"


@pytest.mark.parametrize("answer", [unattempted, None, ..., lambda words, word: ...])
def test_grading_refuses_an_untouched_exercise(answer, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_GRADING", "1")
    with pytest.raises(NotAttempted, match="count: not attempted"):
        count(answer)
    assert capsys.readouterr().out == ""


def test_grading_refuses_the_reference_and_a_wrong_answer(monkeypatch):
    monkeypatch.setenv("COURSE_GRADING", "1")
    with pytest.raises(NotAttempted):
        count(count_of)
    with pytest.raises(CheckFailed):
        count(lambda words, word: 1)


def test_a_crash_is_told_with_the_learners_line():
    def actual(words, word):
        found = {}
        return found[word]

    with pytest.raises(CheckFailed) as caught:
        count(actual)
    line = actual.__code__.co_firstlineno + 2
    assert f"KeyError: 'a', in line {line} of your cell: return found[word]" in str(caught.value)
    assert caught.value.cause == "exception"


def test_a_crash_in_a_method_is_told_with_its_line():
    class Broken(Stack):
        def push(self, item):
            self.item.append(item)

    with pytest.raises(CheckFailed, match=r"AttributeError: .* of your cell: self.item.append"):
        stack(Broken)


def test_a_result_the_check_cannot_use_is_told_as_such():
    @check(reference=lambda: [1])
    def first(attempt):
        expect_equal(attempt()[0], 1, what="the first")

    with pytest.raises(CheckFailed, match=r"could not use what your code returned .TypeError"):
        first(lambda: None)


def test_exit_is_a_wrong_answer_and_an_interrupt_is_not():
    with pytest.raises(CheckFailed, match="SystemExit"):
        count(lambda words, word: exit(0))

    def interrupted(words, word):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count(interrupted)


def test_an_endless_loop_is_stopped():
    def endless(words, word):
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.001)

    began = time.monotonic()
    with pytest.raises(CheckFailed, match=r"did not finish in 0\.3 s") as caught:
        count(endless)
    assert time.monotonic() - began < 5
    assert caught.value.cause == "time"


def test_an_outer_timer_survives_the_check():
    handler, (left, interval) = (
        signal.getsignal(signal.SIGALRM),
        signal.getitimer(signal.ITIMER_REAL),
    )
    rung = []
    signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        count(lambda words, word: words.count(word))
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
        time.sleep(0.4)
        assert len(rung) == 1
        count(lambda words, word: words.count(word))
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def test_a_check_works_outside_the_main_thread_and_inside_an_event_loop():
    results = []

    def actual(words, word):
        return words.count(word)

    thread = threading.Thread(target=lambda: results.append(count(actual)))
    thread.start()
    thread.join()
    assert results == [actual]

    async def cell():
        return count(actual)

    assert asyncio.run(cell()) is actual


def test_changing_the_inputs_does_not_fool_the_check():
    def vandal(words, word):
        words[:] = ["a", "a"]
        return 2 if words else 0

    before = list(WORDS)
    with pytest.raises(CheckFailed):
        count(vandal)
    assert before == WORDS


def test_inputs_that_must_change_are_handed_over_themselves():
    @check(reference=list.sort, copy_inputs=False)
    def sort(attempt):
        items = [2, 1]
        attempt(items)
        expect_equal(items, [1, 2], what="the list")

    def actual(self, /, *, key=None, reverse=False):
        self[:] = sorted(self)

    assert sort(actual) is actual


def test_inputs_that_cannot_be_copied_say_so():
    @check(reference=lambda items: sum(items))
    def total(attempt):
        expect_equal(attempt(i for i in range(3)), 3, what="the sum")

    with pytest.raises(CheckFailed, match="copy_inputs=False"):
        total(lambda items: sum(items))


class Anything:
    """Equals everything, and claims to be an int."""

    __class__ = int

    def __eq__(self, other):
        return True

    __hash__ = object.__hash__


@pytest.mark.parametrize(
    "answer",
    [Anything(), [Anything()], type("int", (int,), {})(2), True, 2.0],
    ids=["anything", "list", "subclass", "bool", "float"],
)
def test_an_object_that_equals_everything_fails(answer):
    with pytest.raises(CheckFailed):
        count(lambda words, word: answer)


def test_a_value_that_equals_everything_fails():
    with pytest.raises(CheckFailed):
        number(Anything())


def test_a_function_of_another_shape_is_told():
    for answer, words in [
        (lambda words: 2, r"it takes \(words\), it should take \(words, word\)"),
        (lambda words, word, extra: 2, "should take"),
        (lambda word, words: 2, "should take"),
        (3, "3 is not a function"),
        (Stack, "is not a function"),
    ]:
        with pytest.raises(CheckFailed, match=words) as caught:
            count(answer)
        assert caught.value.cause == "signature"
    with pytest.raises(CheckFailed, match="not a class"):
        stack(lambda: 3)
    with pytest.raises(CheckFailed, match="give its result"):
        number(lambda: 12)


def test_an_added_parameter_with_a_default_and_a_decorator_are_fine():
    def actual(words, word, verbose=False):
        return words.count(word)

    assert count(actual) is actual

    @functools.wraps(actual)
    def wrapped(*args):
        return actual(*args)

    assert count(wrapped) is wrapped


def test_classes_are_checked_whole(capsys):
    class Mine(Stack):
        pass

    assert stack(Mine) is Mine

    class Half(Stack):
        def pop(self):
            raise NotImplementedError

    assert stack(Half) is Stack
    shown = capsys.readouterr().out
    assert "○ stack: not finished, because `pop` still raises NotImplementedError." in shown

    class Silent(Stack):
        def pop(self):
            return self.items.pop() if self.items else None

    with pytest.raises(
        CheckFailed, match=r"pop of an empty stack: returned None, expected IndexErr"
    ):
        stack(Silent)


def test_an_unfinished_stub_does_not_pass_for_an_expected_error(capsys):
    @check(reference=lambda x: 1 / x)
    def inverse(attempt):
        expect_raises(RuntimeError, lambda: attempt(0), what="1/0")

    assert inverse(lambda x: ...) is inverse.reference

    @check(reference=lambda x: 1 / x)
    def swallowed(attempt):
        try:
            attempt(0)
        except Exception:
            return

    assert swallowed(lambda x: ...) is swallowed.reference
    assert capsys.readouterr().out.count("not attempted") == 2


def test_right_answer_unfolds_the_courses_own(monkeypatch):
    shown = []
    monkeypatch.setattr(failures, "_display", lambda: lambda data, raw: shown.append(data))
    count(lambda words, word: words.count(word))
    number(12)
    assert [data["text/plain"] for data in shown] == ["✔ count: right.", "✔ number: right."]
    assert "<summary>Our solution</summary><pre>def count_of(words, word):" in shown[0]["text/html"]
    assert "<details>" not in shown[1]["text/html"], "a value has no code to show"


def test_failing_message_is_a_block_in_the_pages_own_colour(monkeypatch):
    shown = []
    monkeypatch.setattr(failures, "_display", lambda: lambda data, raw: shown.append(data))
    with pytest.raises(CheckFailed) as caught:
        count(lambda words, word: "<b>")
    (block,) = [data["text/html"] for data in shown]
    assert "<b>✘ count: &#x27;a&#x27; in a, b, a: got &#x27;&lt;b&gt;&#x27; of type str" in block
    assert "<div>Your call: count(" in block
    assert "color:" not in block.replace("border-left:4px solid #dc2626", "")
    assert caught.value._render_traceback_() == ["✘ Not right yet. The reason is above this line."]
