"""Every check of every lab can fail: tried on right, empty and wrong solutions (rule 7)."""

from types import ModuleType

import pytest

from utils.checks import Wrong, check, expect_equal
from utils.course import trial
from utils.course.build import ROOT


def double_of(x):
    return 2 * x


def double(attempt):
    expect_equal(attempt(3), 6, what="twice 3")


def endless(x):
    while True:
        pass


def declare(reference=double_of, wrong=None, examine=None, name="double"):
    if wrong is None:
        wrong = {"same": lambda x: x, "square": lambda x: x * x, "constant": lambda x: 6}

    def double(attempt):
        expect_equal(attempt(3), 6, what="twice 3")
        expect_equal(attempt(0.5), 1.0, what="twice 0.5")

    made = check(reference=reference, wrong=wrong, limit_s=0.2)(examine or double)
    return list(trial.try_check("3.3.9", name, made))


def faults(trials):
    return [t.fault for t in trials if t.fault]


def test_a_check_that_does_its_duty():
    trials = declare()
    assert faults(trials) == []
    assert [t.solution for t in trials[:2]] == ["reference", "empty stub"]
    assert [t.verdict for t in trials] == ["right", "not attempted", "wrong", "wrong", "wrong"]


def test_a_check_that_accepts_a_wrong_solution():
    three = {"a": lambda x: x, "b": lambda x: 2 * x + 0, "c": lambda x: 0}
    assert faults(declare(wrong=three)) == ["a wrong solution passes"]


def test_a_reference_that_fails():
    assert "the reference fails" in faults(declare(reference=lambda x: x))


def test_fewer_than_three_wrong_solutions():
    assert faults(declare(wrong={"same": lambda x: x})) == ["1 wrong solutions, fewer than 3"]


def test_a_check_that_looks_at_nothing():
    def double(attempt):
        pass

    found = faults(declare(examine=double))
    assert "the empty stub counts as an attempt" in found
    assert found.count("a wrong solution passes") == 3


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

    wrong = {"a": Zero, "b": type("B", (Zero,), {}), "c": type("C", (Zero,), {})}
    made = check(reference=Thing, wrong=wrong)(thing)
    assert faults(trial.try_check("3.3.9", "thing", made)) == []

    def value(answer):
        expect_equal(answer, 3, what="it")

    made = check(reference=3, wrong={"a": 1, "b": 3.0, "c": True})(value)
    assert faults(trial.try_check("3.3.9", "value", made)) == []


def test_the_report_fails_with_a_fault(monkeypatch, capsys, tmp_path):
    module = ModuleType("lab_3_3_9")
    module.double = check(reference=double_of, wrong={"right": lambda x: 2 * x})(double)
    monkeypatch.setattr(trial, "modules", lambda: {"3.3.9": module})
    assert trial.report(tmp_path) == 1
    said = capsys.readouterr().out
    assert "FAULT: a wrong solution passes" in said
    assert "3.3.9 double: checked, but no exercise of the lab" in said


def test_the_report_shows_messages_on_request(monkeypatch, capsys, tmp_path):
    module = ModuleType("lab_3_3_9")
    monkeypatch.setattr(trial, "modules", lambda: {"3.3.9": module})
    monkeypatch.setattr(trial, "unmatched", lambda root: [])
    three = {"same": lambda x: x, "none": lambda x: None, "zero": lambda x: 0}
    module.double = check(reference=double_of, wrong=three)(double)
    assert trial.report(tmp_path) == 0
    said = capsys.readouterr().out
    assert "1 checks, 5 trials, 0 faults" in said and "twice 3" not in said
    assert trial.report(tmp_path, messages=True) == 0
    assert capsys.readouterr().out.count("twice 3: got") == 3


@pytest.mark.parametrize("lab", sorted(trial.modules()))
def test_every_check_of_the_course(lab):
    trials = list(trial.try_module(lab, trial.modules()[lab]))
    assert trials
    assert [f"{t.exercise}, {t.solution}: {t.fault}" for t in trials if t.fault] == []


def test_every_exercise_of_the_course_is_checked():
    assert list(trial.unmatched(ROOT)) == []
