"""Engines on a GPU get their memory planned: a fake GPU, and a program that behaves like an engine."""

import dataclasses
import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import fake_spec
import pytest

from utils import gpu as gpus
from utils import host_memory
from utils.engines import get_spec, gpu_proof, launch, memory
from utils.engines.engine_errors import EngineStartError
from utils.engines.fleet import Fleet
from utils.engines.memory import Ledger, NotEnoughMemory
from utils.engines.spec import ServeOptions
from utils.gpu import Gpu
from utils.memory_plan import Need
from utils.profiles import PROFILES

SMALL = Gpu("a small GPU", 8.9, 24.5e9, False, 24e9)
SPARK = Gpu("NVIDIA GB10", 12.1, 128e9, True, 60e9)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setenv("COURSE_STOP_GRACE_S", "1")
    monkeypatch.setattr(memory, "LEDGER", Ledger())
    monkeypatch.setattr(memory, "_last_stop", -1e9)
    monkeypatch.setattr(gpu_proof, "gpu_processes", lambda: None)


def has_gpu(monkeypatch, *states):
    """Let nvidia-smi report these states one after the other, the last one for ever."""
    states = itertools.chain(states[:-1], itertools.repeat(states[-1]))
    monkeypatch.setattr(gpus, "this_gpu", lambda: next(states))


@pytest.fixture
def fake(monkeypatch):
    """`llama_cpp` whose program is the fake engine: its name decides how its memory is planned."""
    changes = {"name": "llama_cpp", "title": "llama.cpp", "local_cuda": fake_spec.PROGRAM}
    return fake_spec.register(monkeypatch, **changes)


PROFILE = dataclasses.replace(PROFILES["cuda"], start_timeout_s=10.0)


def test_engine_that_does_not_fit_is_refused_before_anything_starts(fake, monkeypatch):
    has_gpu(monkeypatch, dataclasses.replace(SMALL, free_bytes=22e9))
    module = sys.modules["utils.engines.launch"]  # hidden by the function of the same name
    monkeypatch.setattr(module, "start_process", lambda *a: pytest.fail("started"))
    with pytest.raises(NotEnoughMemory, match=r"needs 23\.. GB .*Lower max_sequences") as refused:
        launch("llama_cpp", dataclasses.replace(PROFILE, models={"llama_cpp": "q/Qwen3-8B:bf16"}))
    assert "a small GPU's 24.5 GB" in str(refused.value)


def test_engine_that_fits_starts_with_the_slots_of_the_load(fake, monkeypatch):
    has_gpu(monkeypatch, dataclasses.replace(SMALL, free_bytes=30e9))
    models = {"llama_cpp": "q/Qwen3-8B:bf16"}
    with launch("llama_cpp", dataclasses.replace(PROFILE, models=models), quiet=True) as engine:
        assert engine.options.max_sequences == 32
        assert engine.options.context_length == 1280


def test_engine_on_a_cpu_asks_no_gpu(fake, monkeypatch):
    monkeypatch.setattr(gpus, "this_gpu", lambda: pytest.fail("asked for a GPU"))
    profile = dataclasses.replace(PROFILES["cpu"], models={"llama_cpp": "q/Qwen3-8B:bf16"})
    with launch("llama_cpp", profile, quiet=True) as engine:
        assert engine.options.kv_cache_bytes is None
        assert engine.options.max_sequences == PROFILES["cpu"].max_sequences


def test_engine_starts_unplanned_without_nvidia_smi(fake, monkeypatch):
    has_gpu(monkeypatch, None)
    with launch("llama_cpp", PROFILE, quiet=True) as engine:
        assert engine.options.kv_cache_bytes is None


def test_fleet_that_starts_together_is_planned_as_a_whole(fake, monkeypatch):
    has_gpu(monkeypatch, SMALL)  # free memory that doesn't change while engines load
    one = {"engine": "llama_cpp", "max_sequences": 4, "context_length": 1024}
    models = {"llama_cpp": "bartowski/Qwen_Qwen3-8B-GGUF:Q8_0"}
    profile = dataclasses.replace(PROFILE, models=models)
    with Fleet(profile, dict.fromkeys("abc", one), together=True) as fleet:
        assert len(fleet.running) == 2
        (reason,) = fleet.reasons.values()
        assert "needs 10.2 GB" in reason
        assert "but 3.2 GB" in reason


def test_failed_start_gives_its_memory_back(fake, monkeypatch):
    has_gpu(monkeypatch, SMALL)
    profile = dataclasses.replace(PROFILE, models={"llama_cpp": "q/Qwen3-8B:q8_0"})
    with pytest.raises(EngineStartError):
        launch("llama_cpp", profile, quiet=True, extra_arguments=("--mode", "dies"))
    assert memory.LEDGER._starting == 0
    launch("llama_cpp", profile, quiet=True).stop()


def test_ledger_counts_engines_that_started_in_the_same_wave():
    ledger = Ledger()
    assert ledger.take(10, room=25) == 25
    assert (
        ledger.take(10, room=15) == 15
    )  # the first has loaded meanwhile, and is not counted twice
    assert ledger.take(10, room=5) == 5  # refused: nothing is promised
    ledger.settle(10, started=True)
    assert ledger.take(5, room=5) == 5
    ledger.settle(10, started=False)
    assert ledger.take(10, room=0) == 10
    for wanted in (5, 10):
        ledger.settle(wanted, started=True)
    assert ledger.take(30, room=40) == 40  # nothing starts: what is free now counts


def test_engines_on_a_gpu_start_one_after_the_other(monkeypatch):
    has_gpu(monkeypatch, SMALL)
    inside, most = [], []
    leave = threading.Event()

    def start(number):
        with memory.planned(get_spec("llama_cpp"), options("q/Qwen3-0.6B:q8_0"), {}, print):
            inside.append(number)
            most.append(len(inside))
            leave.wait(0.05)
            inside.remove(number)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(start, range(3)))
    assert most == [1, 1, 1]


def test_cancelled_start_leaves_the_queue(monkeypatch):
    has_gpu(monkeypatch, SMALL)

    def check():
        raise KeyboardInterrupt

    assert memory._turn.acquire(timeout=1)
    try:
        with pytest.raises(KeyboardInterrupt), planned("q/Qwen3-0.6B:q8_0", check=check):
            pytest.fail("started")
    finally:
        memory._turn.release()
    assert memory.LEDGER._starting == 0


def options(model, **changes):
    made = ServeOptions(
        model=model,
        served_name="m",
        host="127.0.0.1",
        port=1,
        device="cuda",
        dtype="bfloat16",
        context_length=2048,
        max_sequences=16,
        kv_cache_gib=2.0,
    )
    return dataclasses.replace(made, **changes)


def planned(model, engine="llama_cpp", choices=None, say=print, check=lambda: None, **changes):
    return memory.planned(get_spec(engine), options(model, **changes), choices or {}, say, check)


def test_stopped_engines_memory_is_waited_for_on_unified_memory(monkeypatch):
    low = dataclasses.replace(SPARK, free_bytes=20e9)
    has_gpu(monkeypatch, low, low, low, SPARK)
    monkeypatch.setattr(memory, "POLL_S", 0)
    memory.note_stop()
    said = []
    with planned("Qwen/Qwen3-8B", "vllm", say=said.append) as sized:
        assert sized.kv_cache_bytes == 2 * 1024**3
    assert said == ["waits for memory that a stopped engine still holds: 10 of 20 GB are free"] * 2


def test_wait_for_memory_is_bounded(monkeypatch):
    has_gpu(monkeypatch, dataclasses.replace(SPARK, free_bytes=20e9))
    clock = itertools.count(step=50)
    monkeypatch.setattr(memory.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(memory, "POLL_S", 0)
    memory.note_stop()
    said = []
    with pytest.raises(NotEnoughMemory), planned("Qwen/Qwen3-8B", "vllm", say=said.append):
        pytest.fail("started")
    assert len(said) == 2  # after 50 and 100 s, but not after 150


@pytest.mark.parametrize(
    ("gpu", "stopped"),
    [(dataclasses.replace(SPARK, free_bytes=20e9), False), (SMALL, True)],
)
def test_memory_is_not_waited_for(gpu, stopped, monkeypatch):
    has_gpu(monkeypatch, dataclasses.replace(gpu, free_bytes=12e9))
    if stopped:
        memory.note_stop()
    with pytest.raises(NotEnoughMemory), planned("Qwen/Qwen3-8B", "vllm", say=pytest.fail):
        pytest.fail("started")


def test_vllm_gets_the_exact_size_of_its_cache(monkeypatch):
    has_gpu(monkeypatch, SMALL)
    with planned("Qwen/Qwen3-4B", "vllm") as sized:
        command = get_spec("vllm").arguments(sized)
    assert command[command.index("--kv-cache-memory-bytes") + 1] == str(2 * 1024**3)
    share = float(command[command.index("--gpu-memory-utilization") + 1])
    assert share * SMALL.memory_bytes <= SMALL.free_bytes


def test_sglang_gets_tokens_and_a_share_of_what_is_free_at_its_turn(monkeypatch):
    busy = dataclasses.replace(SMALL, free_bytes=13e9)
    has_gpu(monkeypatch, SMALL, SMALL, busy)
    with planned("Qwen/Qwen3-4B", "sglang") as sized:
        command = get_spec("sglang").arguments(sized)
    assert command[command.index("--max-total-tokens") + 1] == str(2 * 1024**3 // 147456)
    assert command[command.index("--mem-fraction-static") + 1] == "0.84"


def test_share_that_is_asked_for_decides_the_cache(monkeypatch):
    has_gpu(monkeypatch, SMALL)
    share = {"gpu_memory_utilization": 0.6}
    with planned("Qwen/Qwen3-4B", "vllm", share, gpu_memory_utilization=0.6) as sized:
        assert sized.gpu_memory_utilization == 0.6
        whole = memory.need_of(get_spec("vllm"), sized, share, SMALL)
        assert whole.total == pytest.approx(0.6 * SMALL.memory_bytes)
        assert sized.kv_cache_bytes == int(whole.kv_cache)


def test_engine_that_loads_while_memory_runs_out_is_killed(fake, monkeypatch, tmp_path, capfd):
    has_gpu(monkeypatch, SPARK)
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 125000000 kB\nMemAvailable: 3000000 kB\n")
    profile = dataclasses.replace(PROFILE, start_timeout_s=60.0)
    with pytest.raises(EngineStartError, match="ended with code"):
        launch("llama_cpp", profile, quiet=True, extra_arguments=("--mode", "hangs"))
    assert "STOPPED <llama.cpp" in capfd.readouterr().err


def test_unified_memory_keeps_a_reserve():
    room = dataclasses.replace(SPARK, free_bytes=60e9).room
    assert room == 60e9 - host_memory.RESERVE_BYTES
    assert dataclasses.replace(SPARK, free_bytes=1e9).room == 0
    assert SMALL.room == 24e9 - gpus.MARGIN_BYTES
    assert Need("vllm", 1, 2, 3).total == 6
