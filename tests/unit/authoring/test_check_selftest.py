"""The self-test of checks finds every kind of fault. `make check` runs it on all labs."""

from types import ModuleType

import pytest

from tools.authoring import check_selftest
from tools.lab.judge.hidden_tests import Grading, Wrong
from utils.checks import check, expect_equal


def double_of(x):
    return 2 * x


def double(attempt):
    expect_equal(attempt(3), 6, what="twice 3")


def endless(x):
    while True:
        pass


def hidden_double(attempt, rng):
    number = rng.randint(3, 10**6)
    expect_equal(attempt(number), 2 * number, what=f"twice {number}")


RIGHT = {"a sum": lambda x: x + x, "a float": lambda x: 2.0 * x}


def graded(declared, wrong, *parts, right=RIGHT):
    grading = Grading(declared, wrong, right)
    for examine in parts:
        grading.part("a part", points=1)(examine)
    return grading


def declare(reference=double_of, wrong=None, examine=None, name="double", parts=(hidden_double,)):
    if wrong is None:
        wrong = {"same": lambda x: x, "square": lambda x: x * x, "constant": lambda x: 6}

    def double(attempt):
        expect_equal(attempt(3), 6, what="twice 3")
        expect_equal(attempt(0.5), 1.0, what="twice 0.5")

    declared = check(reference=reference, limit_s=0.2)(examine or double)
    return list(check_selftest.try_check("3.3.9", name, declared, graded(declared, wrong, *parts)))


def faults(trials):
    return [t.fault for t in trials if t.fault]


def test_a_check_that_does_its_duty():
    trials = declare()
    assert faults(trials) == []
    titles = [t.solution for t in trials]
    assert titles[:4] == ["reference", "a sum", "a float", "empty stub"]
    assert titles[7:] == ["stored answers to the check", "stored answers of another seed"]
    verdicts = ["right", "right", "right", "not attempted", "wrong", "wrong", "wrong", "right", ""]
    assert [t.verdict for t in trials] == verdicts
    assert [t.points for t in trials] == ["1/1", "1/1", "1/1", *["0/1"] * 6]


def test_a_check_that_accepts_a_wrong_solution():
    three = {"a": lambda x: x, "b": lambda x: 2 * x + 0, "c": lambda x: 0}
    assert faults(declare(wrong=three)) == ["a wrong solution passes"]


def test_a_reference_that_fails():
    assert "a right solution fails" in faults(declare(reference=lambda x: x))


def test_fewer_than_three_wrong_solutions():
    assert faults(declare(wrong={"same": lambda x: x})) == ["1 wrong solutions, fewer than 3"]


def test_fewer_than_three_right_solutions():
    declared = check(reference=double_of)(double)
    wrong = {"same": lambda x: x, "square": lambda x: x * x, "constant": lambda x: 6}
    grading = graded(declared, wrong, hidden_double, right={"a sum": RIGHT["a sum"]})
    trials = list(check_selftest.try_check("3.3.9", "double", declared, grading))
    assert "2 right solutions, fewer than 3" in faults(trials)


def test_a_check_that_looks_at_nothing():
    def double(attempt):
        pass

    found = faults(declare(examine=double))
    assert "the empty stub counts as an attempt" in found
    assert found.count("a wrong solution passes") == 3


def test_an_exercise_that_nobody_grades():
    declared = check(reference=double_of)(double)
    (only,) = check_selftest.try_check("3.3.9", "double", declared, None)
    assert "solutions/grading does not name it" in only.fault


def test_hidden_parts_that_look_at_nothing():
    found = faults(declare(parts=(lambda attempt, rng: None,)))
    assert found[:4] == ["the empty stub earns points", *["a wrong solution earns all points"] * 3]
    assert found[4] == "a learner who stored the answers to the lab's check earns points"
    assert found[5] == "a learner who stored the answers of another seed earns points"


def test_hidden_parts_on_the_inputs_that_everybody_knows():
    def known(attempt, rng):
        expect_equal(attempt(3), 6, what="twice 3")
        expect_equal(attempt(0.5), 1.0, what="twice 0.5")

    found = faults(declare(parts=(known,)))
    assert found == [
        "a learner who stored the answers to the lab's check earns points",
        "a learner who stored the answers of another seed earns points",
    ]


def test_hidden_parts_that_the_reference_fails():
    def demanding(attempt, rng):
        expect_equal(attempt(3), 7, what="twice 3")

    assert faults(declare(parts=(demanding,))) == ["a right solution does not earn all points"] * 3


def test_stored_answers_of_a_class_are_seen_through():
    class Counter:
        def __init__(self, step):
            self.step, self.total = step, 0

        def add(self, times):
            if times < 0:
                raise ValueError(times)
            self.total += times * self.step
            return self.total

    def counter(attempt):
        one = attempt(2)
        expect_equal(one.add(3), 6, what="2 x 3")
        expect_equal(one.total, 6, what="the total")
        with pytest.raises(ValueError):
            one.add(-1)

    def hidden(attempt, rng):
        step, times = rng.randint(3, 10**6), rng.randint(1, 10**6)
        one = attempt(step)
        one.add(times)
        expect_equal(one.total, step * times, what="the total")

    class Wrongs(Counter):
        def add(self, times):
            return 0

    wrong = {"a": Wrongs, "b": type("B", (Wrongs,), {}), "c": type("C", (Wrongs,), {})}
    right = {name: type(name, (Counter,), {}) for name in "de"}
    declared = check(reference=Counter)(counter)
    grading = graded(declared, wrong, hidden, right=right)
    trials = list(check_selftest.try_check("3.3.9", "counter", declared, grading))
    assert faults(trials) == []
    assert [t.verdict for t in trials[-2:]] == ["right", ""]


@pytest.mark.parametrize(
    ("solution", "cause", "says"),
    [
        (lambda x: x / 0, "exception", "ZeroDivisionError"),
        (lambda y: 2 * y, "signature", "should take (x)"),
        (endless, "time", "did not finish"),
    ],
)
def test_a_refusal_for_an_unrelated_reason(solution, cause, says):
    three = {"a": lambda x: x, "b": lambda x: 0}
    assert cause in faults(declare(wrong={**three, "c": solution}))[0]
    assert faults(declare(wrong={**three, "c": Wrong(solution, says=says)})) == []


def test_a_message_without_the_promised_words():
    wrong = {"a": Wrong(lambda x: x, says="twice 3"), "b": Wrong(lambda x: 6, says="twice 3")}
    found = faults(declare(wrong={**wrong, "c": lambda x: 0}))
    assert found == ["the message does not say 'twice 3'"]


def test_a_wrong_solution_that_is_empty():
    three = {"a": lambda x: x, "b": lambda x: 0, "c": lambda x: ...}
    assert faults(declare(wrong=three)) == ["counts as empty"]


def test_a_check_under_another_name():
    assert faults(declare(name="twice")) == ["named 'double' and 'twice'"]


def test_empty_stubs_of_values_and_classes():
    class Thing:
        def __init__(self, size):
            self.size = size

        def double(self):
            return 2 * self.size

    def thing(attempt):
        expect_equal(attempt(3).double(), 6, what="twice 3")

    class Zero(Thing):
        def double(self):
            return 0

    def hidden(attempt, rng):
        size = rng.randint(4, 10**6)
        expect_equal(attempt(size).double(), 2 * size, what="twice its size")

    wrong = {"a": Zero, "b": type("B", (Zero,), {}), "c": type("C", (Zero,), {})}
    right = {name: type(name, (Thing,), {}) for name in "de"}
    declared = check(reference=Thing)(thing)
    grading = graded(declared, wrong, hidden, right=right)
    assert faults(check_selftest.try_check("3.3.9", "thing", declared, grading)) == []

    def value(answer, rng=None):
        expect_equal(answer, 3, what="it")

    declared = check(reference=3)(value)
    grading = graded(
        declared, {"a": 1, "b": 3.5, "c": True}, value, right={"a float": 3.0, "again": 3}
    )
    assert faults(check_selftest.try_check("3.3.9", "value", declared, grading)) == []


@pytest.fixture
def one_check(monkeypatch):
    """A course with one check, `double`, of lab 3.3.9."""

    def set_up(wrong):
        module = ModuleType("lab_3_3_9")
        module.double = check(reference=double_of)(double)
        monkeypatch.setattr(check_selftest, "modules", lambda: {"3.3.9": module})
        gradings = {"3.3.9": {"double": graded(module.double, wrong, hidden_double)}}
        monkeypatch.setattr(check_selftest, "load_gradings", lambda root: gradings)

    return set_up


def test_the_report_fails_with_a_fault(one_check, capsys, tmp_path):
    one_check({"right": lambda x: 2 * x})
    assert check_selftest.report(tmp_path) == 1
    output = capsys.readouterr().out
    assert "FAULT: a wrong solution passes" in output
    assert "3.3.9 double: checked, but no exercise of the lab" in output
    assert "3.3.9 double: graded, but no exercise of the lab" in output


def test_the_report_shows_messages_on_request(one_check, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(check_selftest, "unmatched", lambda root, gradings: [])
    one_check({"same": lambda x: x, "none": lambda x: None, "zero": lambda x: 0})
    assert check_selftest.report(tmp_path) == 0
    output = capsys.readouterr().out
    assert "1 checks, 9 trials, 0 faults" in output and "twice 3" not in output
    assert check_selftest.report(tmp_path, messages=True) == 0
    assert capsys.readouterr().out.count("twice 3: got") == 3
