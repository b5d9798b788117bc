"""A fleet of engines that are no engines: who runs when, and that all are stopped."""

import os
import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from utils.engines import EngineError, fleet
from utils.engines.fleet import Fleet
from utils.profiles import load_profile

CPU = load_profile("cpu")
VARIANTS = {"a": {}, "b": {"engine": "other"}, "broken": {"engine": "broken"}}


@pytest.fixture
def log(monkeypatch):
    """What happened, in order."""
    happened = []

    def engine(name):
        happened.append(f"+{name}")
        alive = [True]

        def stop():
            if alive.pop():
                alive.append(False)
                happened.append(f"-{name}")
            else:
                alive.append(False)

        return SimpleNamespace(name=name, stop=stop, running=lambda: alive[0])

    def launch(name, profile, *, quiet):
        if name == "broken":
            raise EngineError("out of luck")
        return engine(name)

    monkeypatch.setattr(fleet, "launch", launch)
    return happened


def note(log):
    def work(name, engine, turn):
        log.append(f"{name}{turn}")
        return turn

    return work


def test_processes_run_together_and_take_turns(log):
    with Fleet(CPU, VARIANTS, "first") as engines:
        assert engines.each(note(log), turns=2) == {"a": [0, 1], "b": [0, 1]}
        assert engines.each(note(log), only=["b"]) == {"b": [0]}
        assert engines.reasons == {"broken": "out of luck"}
    assert log[:7] == ["+first", "+other", "a0", "b0", "a1", "b1", "b0"]
    assert sorted(log[7:]) == ["-first", "-other"]


def test_containers_come_one_after_the_other(log):
    with Fleet(replace(CPU, runtime="docker"), VARIANTS, "first") as engines:
        assert log == []
        assert engines.each(note(log), turns=2) == {"a": [0, 1], "b": [0, 1]}
    assert log == ["+first", "a0", "a1", "-first", "+other", "b0", "b1", "-other"]


def test_containers_run_together_where_that_is_asked_for(log):
    with Fleet(replace(CPU, runtime="docker"), VARIANTS, "first", together=True) as engines:
        engines.each(note(log))
    assert log[:4] == ["+first", "+other", "a0", "b0"]
    assert len(log) == 6


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_one_of_them_runs_while_it_is_used_or_says_why_not(log, runtime):
    with Fleet(replace(CPU, runtime=runtime), VARIANTS, "first") as engines:
        with engines.one("a") as engine:
            assert engine.name == "first"
            assert "-first" not in log
        with pytest.raises(EngineError, match="out of luck"), engines.one("broken"):
            pass
    assert "-first" in log


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_all_are_stopped_when_the_work_fails(log, runtime):
    def fail(name, engine, turn):
        raise RuntimeError("no luck either")

    with (
        pytest.raises(RuntimeError, match="no luck either"),
        Fleet(replace(CPU, runtime=runtime), VARIANTS, "first") as engines,
    ):
        engines.each(fail)
    assert log.count("+first") == log.count("-first") == 1
    assert log.count("+other") == log.count("-other")


def test_none_is_left_when_one_fails_for_another_reason(log, monkeypatch):
    launch = fleet.launch

    def odd(name, profile, *, quiet):
        if name == "other":
            raise KeyError("a fault of ours")
        return launch(name, profile, quiet=quiet)

    monkeypatch.setattr(fleet, "launch", odd)
    with pytest.raises(KeyError, match="a fault of ours"):
        Fleet(CPU, VARIANTS, "first")
    assert log == ["+first", "-first"]


def test_none_is_left_when_the_cell_is_interrupted_while_they_start(log, monkeypatch):
    launch = fleet.launch

    def slowly(name, profile, *, quiet):
        if name == "first":
            threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        time.sleep(0.5)
        return launch(name, profile, quiet=quiet)

    monkeypatch.setattr(fleet, "launch", slowly)
    with pytest.raises(KeyboardInterrupt):
        Fleet(CPU, VARIANTS, "first")
    assert sorted(log) == ["+first", "+other", "-first", "-other"]


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_a_stopped_fleet_says_so(log, runtime, capsys):
    engines = Fleet(replace(CPU, runtime=runtime), VARIANTS, "first")
    assert engines.has("a")
    assert len(engines.running) == (2 if runtime == "process" else 0)
    assert engines.has("broken") == (runtime == "docker")
    engines.stop()
    assert engines.running == []
    with pytest.raises(EngineError, match="run the cell that starts them again"):
        engines.each(note(log))
    del engines
    assert log.count("-first") == log.count("+first")


def test_what_died_is_cleaned_up_too(log):
    with Fleet(CPU, {"a": {}}, "first") as engines:
        (engine,) = engines.running
        engine.running = lambda: False
        assert engines.running == []
    assert log == ["+first", "-first"]
