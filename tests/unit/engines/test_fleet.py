"""A fleet of engines that are no engines: who runs when, and that all are stopped."""

import os
import signal
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest

from utils.engines import EngineError, fleet, get_spec, skip_on_failure
from utils.engines.fleet import Fleet
from utils.model_sizes import ConfigError
from utils.profiles import load_profile
from utils.telemetry import ScrapeError

CPU = load_profile("cpu")
SHARED = replace(CPU, runtime="docker", shares_gpu=True)
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

        return SimpleNamespace(
            name=name, stop=stop, running=lambda: alive[0], log_path=f"{name}.log"
        )

    def launch(name, profile, *, progress):
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
    with Fleet(SHARED, VARIANTS, "first") as engines:
        assert log == []
        assert engines.each(note(log), turns=2) == {"a": [0, 1], "b": [0, 1]}
    assert log == ["+first", "a0", "a1", "-first", "+other", "b0", "b1", "-other"]


def test_containers_run_together_where_that_is_asked_for(log):
    with Fleet(SHARED, VARIANTS, "first", together=True) as engines:
        engines.each(note(log))
    assert log[:4] == ["+first", "+other", "a0", "b0"]
    assert len(log) == 6


@pytest.mark.parametrize("profile", [CPU, SHARED], ids=["side by side", "one by one"])
def test_one_of_them_runs_while_it_is_used_or_says_why_not(log, profile):
    with Fleet(profile, VARIANTS, "first") as engines:
        with engines.one("a") as engine:
            assert engine.name == "first"
            assert "-first" not in log
        with pytest.raises(EngineError, match="out of luck"), engines.one("broken"):
            pass
    assert "-first" in log


@pytest.mark.parametrize("profile", [CPU, SHARED], ids=["side by side", "one by one"])
def test_all_are_stopped_when_the_work_fails(log, profile):
    def fail(name, engine, turn):
        raise RuntimeError("no luck either")

    with (
        pytest.raises(RuntimeError, match="no luck either"),
        Fleet(profile, VARIANTS, "first") as engines,
    ):
        engines.each(fail)
    assert log.count("+first") == log.count("-first") == 1
    assert log.count("+other") == log.count("-other")


def test_none_is_left_when_one_fails_for_another_reason(log, monkeypatch):
    launch = fleet.launch

    def odd(name, profile, *, progress):
        if name == "other":
            raise KeyError("a fault of ours")
        return launch(name, profile, progress=progress)

    monkeypatch.setattr(fleet, "launch", odd)
    with pytest.raises(KeyError, match="a fault of ours"):
        Fleet(CPU, VARIANTS, "first")
    assert log == ["+first", "-first"]


def test_none_is_left_when_the_cell_is_interrupted_while_they_start(log, monkeypatch):
    launch = fleet.launch

    def slowly(name, profile, *, progress):
        if name == "first":
            threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        time.sleep(0.5)
        return launch(name, profile, progress=progress)

    monkeypatch.setattr(fleet, "launch", slowly)
    with pytest.raises(KeyboardInterrupt):
        Fleet(CPU, VARIANTS, "first")
    assert sorted(log) == ["+first", "+other", "-first", "-other"]


def test_stopped_fleet_says_so(log, capsys):
    engines = Fleet(CPU, VARIANTS, "first")
    assert engines.has("a")
    assert len(engines.running) == 2
    assert not engines.has("broken")
    engines.stop()
    assert engines.running == []
    assert not engines.has("a")
    assert "run the cell that starts them again" in capsys.readouterr().out
    with pytest.raises(EngineError, match="run the cell that starts them again"):
        engines.each(note(log))
    del engines
    assert log.count("-first") == log.count("+first")


def test_has_names_reason_when_docker_is_down(log, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")
    with Fleet(SHARED, {"vLLM": {}}) as engines:
        assert not engines.has("vLLM")
        assert "Docker did not answer" in capsys.readouterr().out
        assert engines.each(note(log)) == {}
        with pytest.raises(EngineError, match="Docker did not answer"), engines.one("vLLM"):
            pass
    assert log == [], "nothing is started after docker has said no"


def test_has_asks_for_image_before_engine_has_its_turn(log, monkeypatch):
    asked = []
    monkeypatch.setattr(fleet, "connect", lambda: "client")
    monkeypatch.setattr(fleet, "ensure_image", lambda client, image, *_: asked.append(image))
    with Fleet(SHARED, {"a": {}, "b": {"engine": "sglang"}}) as engines:
        assert engines.has("a")
        assert engines.has("b")
    assert asked == [get_spec(name).container.image for name in ("vllm", "sglang")]
    assert log == []


def test_has_notices_engine_that_died(log, capsys):
    with Fleet(CPU, {"a": {}}, "first") as engines:
        engines.running[0].running = lambda: False
        assert not engines.has("a")
    assert "it ended after it had started" in capsys.readouterr().out


@pytest.mark.parametrize("profile", [CPU, SHARED], ids=["side by side", "one by one"])
@pytest.mark.parametrize("error", [EngineError, httpx.ReadTimeout, ConfigError, ScrapeError])
def test_engine_that_fails_at_work_leaves_the_others(log, profile, error):
    def work(name, engine, turn):
        if name == "a" and turn == 1:
            raise error("a is gone")
        return turn

    with Fleet(profile, VARIANTS, "first") as engines:
        assert engines.each(work, turns=3) == {"b": [0, 1, 2]}
        assert engines.reasons == {"a": "a is gone", "broken": "out of luck"}
        assert engines.each(note(log), only=["a"]) == {}


def test_skip_on_failure_covers_start_and_work(log, capsys):
    reasons = {}
    with Fleet(CPU, VARIANTS, "first") as engines:
        with skip_on_failure("broken", reasons), engines.one("broken"):
            raise AssertionError("must be skipped")
        with skip_on_failure("a", reasons), engines.one("a"):
            raise httpx.ReadTimeout("no answer")
        with pytest.raises(ZeroDivisionError), skip_on_failure("b", reasons):
            _ = 1 / 0
    assert reasons == {"broken": "out of luck", "a": "no answer"}
    assert "a: not run here: no answer" in capsys.readouterr().out


def interrupt(event):
    """Send SIGINT to this process when `event` is set."""

    def send():
        event.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("profile", [CPU, SHARED], ids=["side by side", "one by one"])
@pytest.mark.parametrize("when", [1, 3])
def test_interrupt_cancels_starts_that_never_end(monkeypatch, profile, when):
    waiting, began, ended = threading.Event(), [], []

    def never_healthy(name, profile, *, progress):
        began.append(name)
        try:
            while True:
                if len(began) >= when:
                    waiting.set()
                progress.sleep(0.05)
        finally:
            ended.append(name)

    monkeypatch.setattr(fleet, "launch", never_healthy)
    interrupt(waiting)
    with pytest.raises(KeyboardInterrupt):
        Fleet(profile, {"a": {}, "b": {}, "c": {}}, together=True)
    assert len(ended) == len(began) >= when


def test_interrupt_does_not_wait_for_start_that_cannot_hear(monkeypatch):
    monkeypatch.setattr(fleet, "CANCEL_S", 0.1)
    waiting, release, stopped = threading.Event(), threading.Event(), threading.Event()

    def deaf(name, profile, *, progress):
        waiting.set()
        release.wait(20)
        return SimpleNamespace(stop=stopped.set)

    monkeypatch.setattr(fleet, "launch", deaf)
    interrupt(waiting)
    with pytest.raises(KeyboardInterrupt):
        Fleet(CPU, {"a": {}})
    assert not release.is_set()
    release.set()
    assert stopped.wait(5), "an engine that comes after the interrupt is stopped"


def test_stop_cancels_background_start(monkeypatch):
    waiting = threading.Event()

    def never_healthy(name, profile, *, progress):
        while True:
            waiting.set()
            progress.sleep(0.05)

    monkeypatch.setattr(fleet, "launch", never_healthy)
    made = []
    monkeypatch.setattr(fleet, "remember", lambda engines, run: made.append(engines))
    starting = fleet.start_later(CPU, {"a": {}})
    assert waiting.wait(5)
    made[0].stop()
    assert starting.result().running == []
    assert not starting.result().has("a")


def test_gpu_processes_come_one_by_one(log):
    with Fleet(replace(CPU, device="cuda", shares_gpu=True), VARIANTS, "first") as engines:
        assert engines.has("a")
        engines.each(note(log))
    assert log == ["+first", "a0", "-first", "+other", "b0", "-other"]


def test_start_later_takes_together(log):
    pair = fleet.start_later(SHARED, {"left": {}, "right": {}}, engine="x", together=True).result()
    assert len(pair.running) == 2
    pair.stop()


def test_fleet_cleans_up_dead_engine(log):
    with Fleet(CPU, {"a": {}}, "first") as engines:
        (engine,) = engines.running
        engine.running = lambda: False
        assert engines.running == []
    assert log == ["+first", "-first"]
