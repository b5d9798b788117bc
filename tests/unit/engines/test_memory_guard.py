"""Engines are killed, loudly, before a machine with unified memory freezes: a made-up /proc/meminfo."""

import dataclasses
import threading

import pytest

from utils import host_memory
from utils.engines import memory
from utils.engines.memory_guard import MemoryGuard
from utils.gpu import Gpu
from utils.host_memory import DANGER_BYTES, RESERVE_BYTES


class FakeEngine:
    def __init__(self):
        self.killed = threading.Event()

    def running(self):
        return not self.killed.is_set()

    def kill(self):
        self.killed.set()

    def __str__(self):
        return "<vLLM at http://127.0.0.1:1>"


@pytest.fixture
def meminfo(tmp_path, monkeypatch):
    """Set the available memory of this machine, in bytes."""
    file = tmp_path / "meminfo"
    monkeypatch.setattr(host_memory, "MEMINFO", file)

    def write(available):
        whole = tmp_path / "next"
        whole.write_text(f"MemTotal: 125000000 kB\nMemAvailable: {int(available / 1024)} kB\n")
        whole.replace(file)

    return write


def test_engines_are_killed_below_the_limit_and_the_user_is_told(meminfo):
    engines, said = [FakeEngine(), FakeEngine()], []
    guard = MemoryGuard(warn=said.append, poll_s=0.01)
    meminfo(DANGER_BYTES + 1e9)
    for engine in engines:
        guard.watch(engine)
    assert not guard.look()
    assert said == []
    meminfo(DANGER_BYTES - 1e9)
    assert all(engine.killed.wait(10) for engine in engines)
    thread = guard._thread
    if thread is not None:
        thread.join(10)
    (text,) = said
    assert "STOPPED <vLLM at http://127.0.0.1:1>, <vLLM" in text
    assert "only 3.0 GB of memory were available" in text
    assert "below 4 GB this machine may freeze" in text


def test_guard_kills_nothing_where_memory_is_not_told(meminfo):
    guard = MemoryGuard(available=lambda: 0.0, warn=pytest.fail)
    engine = FakeEngine()
    guard.watch(engine)
    assert not guard.look()
    assert engine.running()
    engine.kill()


def test_guard_ends_with_the_engines_and_starts_again(meminfo):
    meminfo(1e11)
    guard = MemoryGuard(warn=pytest.fail, poll_s=0.01)
    for _ in range(2):
        engine = FakeEngine()
        guard.watch(engine)
        thread = guard._thread
        assert thread.is_alive()
        engine.kill()
        thread.join(10)
        assert not thread.is_alive()


def test_limit_is_below_the_reserve_that_plans_keep():
    assert DANGER_BYTES < RESERVE_BYTES


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (None, False),
        (Gpu("card", 8.9, 8e9, False, 8e9), False),
        (Gpu("GB10", 12.1, 1e11, True), True),
    ],
)
def test_only_unified_memory_is_guarded(gpu, expected, monkeypatch):
    monkeypatch.setattr(memory.gpus, "this_gpu", lambda: gpu)
    assert memory.unified() is expected


def test_meminfo_that_cannot_be_read_gives_no_memory(tmp_path):
    assert host_memory.host_memory(tmp_path / "none") == host_memory.HostMemory()
    assert dataclasses.asdict(host_memory.parse_meminfo("MemFree: 2 kB\n"))["free"] == 2048
