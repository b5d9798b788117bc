"""`launch` against a small program that behaves like an engine at its edges."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import fake_spec
import psutil
import pytest
from fake_spec import FAKE

from utils.engines import (
    EngineStartError,
    ModelMissing,
    NotRunHere,
    PortTaken,
    ServeOptions,
    UnknownEngine,
    UnsupportedOption,
    launch,
    registry,
    runtime,
)
from utils.engines.engine_errors import StartCancelled
from utils.engines.launch import RunningEngine
from utils.engines.process import ProcessHandle
from utils.engines.registry import get_spec
from utils.engines.runtime import free_port, last_log_line, tail
from utils.engines.start_progress import StartProgress
from utils.profiles import PROFILES, ROOT

launch_module = sys.modules["utils.engines.launch"]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setenv("COURSE_STOP_GRACE_S", "1")


@pytest.fixture
def profile():
    return dataclasses.replace(
        PROFILES["cpu"], models={"fake": "owner/some-model"}, start_timeout_s=3.0
    )


@pytest.fixture
def fake(monkeypatch):
    return fake_spec.register(monkeypatch, options=frozenset({"eager"}))


def test_program_without_version_has_that_of_setup(fake, profile, monkeypatch):
    silent = dataclasses.replace(fake.local, version="fake 7", tells_version=False)
    monkeypatch.setitem(registry.ENGINES, "fake", dataclasses.replace(fake, local=silent))
    with launch("fake", profile, quiet=True) as engine:
        assert engine.version == "fake 7"


def gone(pid):
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def read_pids(path):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().split()) == 2:
            return [int(p) for p in path.read_text().split()]
        time.sleep(0.05)
    raise AssertionError("the fake engine did not start")


def test_a_running_engine_answers_and_is_gone_afterwards(fake, profile, tmp_path, capsys):
    pids = tmp_path / "pids"
    with launch("fake", profile, extra_arguments=("--pids", str(pids))) as engine:
        assert engine.running()
        assert engine.version == "1.2.3"
        assert engine.model == "some-model"
        children = read_pids(pids)
    assert not engine.running()
    assert all(gone(pid) for pid in children)
    assert "ready after" in capsys.readouterr().out
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(engine.base_url.rpartition(":")[2]))) != 0


def test_engine_stops_on_exception_and_ctrl_c(fake, profile):
    for kind in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(kind), launch("fake", profile, quiet=True) as engine:
            raise kind
        assert not engine.running()
        assert gone(int(engine.identity))


def test_a_killed_engine_is_noticed_and_cleaned_up(fake, profile, tmp_path):
    engine = launch("fake", profile, quiet=True)
    family = psutil.Process(int(engine.identity)).children(recursive=True)
    engine.kill()
    psutil.wait_procs(family, timeout=5)
    deadline = time.monotonic() + 5
    while engine.running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not engine.running()
    assert engine.exit_code() == 128 + signal.SIGKILL
    engine.kill()
    engine.stop()


def test_an_engine_that_ignores_sigterm_is_killed(fake, profile):
    engine = launch("fake", profile, extra_arguments=("--mode", "stubborn"), quiet=True)
    engine.stop()
    assert gone(int(engine.identity))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_engine_outlives_its_kernel(how, tmp_path):
    pids = tmp_path / "pids"
    command = [sys.executable, str(FAKE), "--port", str(free_port()), "--pids", str(pids)]
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from utils.engines.process import ProcessHandle\n"
        f"ProcessHandle({command!r}, {{}}, Path({str(tmp_path / 'log')!r}))\n"
        "time.sleep(600)\n"
    )
    kernel = subprocess.Popen([sys.executable, "-c", code])
    children = read_pids(pids)
    os.kill(kernel.pid, how)
    kernel.wait()
    assert all(gone(pid) for pid in children)


def test_an_engine_that_dies_shows_its_log_and_what_to_try(fake, profile):
    with pytest.raises(EngineStartError) as caught:
        launch("fake", profile, extra_arguments=("--mode", "dies"), quiet=True)
    assert "ended with code 3" in str(caught.value)
    assert "No available memory" in caught.value.tail
    assert "too little memory" in caught.value.hint


def test_an_engine_that_is_never_healthy_is_stopped(fake, profile):
    with pytest.raises(EngineStartError, match="not healthy") as caught:
        launch("fake", profile, extra_arguments=("--mode", "hangs"), quiet=True)
    assert "compiling kernels" in caught.value.tail
    assert "start_timeout_s" in caught.value.hint


def test_cancelled_start_leaves_nothing(fake, profile, tmp_path):
    pids, heard = tmp_path / "pids", []
    stop = threading.Event()

    def say(text):
        heard.append(text)
        stop.set()

    progress = StartProgress("Fake", say=say, stop=stop)
    arguments = ("--mode", "stubborn", "--silent", "--pids", str(pids))
    with pytest.raises(StartCancelled):
        launch("fake", profile, extra_arguments=arguments, progress=progress)
    assert heard[0].startswith("starting, 0 s")
    if pids.exists():  # else it was killed before it began
        left = [int(pid) for pid in pids.read_text().split()]
        deadline = time.monotonic() + 5  # the watchdog ends the family, after the engine itself
        while not all(map(gone, left)):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def test_engine_that_never_served_is_killed_before_it_is_asked(fake, profile, monkeypatch):
    calls = []
    for method in ("kill", "stop"):
        real = getattr(ProcessHandle, method)
        monkeypatch.setattr(
            ProcessHandle, method, lambda self, m=method, f=real: (calls.append(m), f(self))
        )
    impatient = dataclasses.replace(profile, start_timeout_s=0.5)
    with pytest.raises(EngineStartError, match="was not healthy"):
        launch("fake", impatient, extra_arguments=("--silent",), quiet=True)
    assert calls == ["kill", "stop"]


def test_a_port_in_use_is_refused(fake, profile):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortTaken, match="is in use"):
            launch("fake", profile, port=taken.getsockname()[1])


def test_an_unknown_engine_is_refused_with_the_right_names(profile):
    with pytest.raises(UnknownEngine, match=r"'vlm'.*vllm, sglang, tensorrt_llm, llama_cpp"):
        launch("vlm", profile)


def test_options_that_an_engine_has_not_are_refused(fake, profile):
    with pytest.raises(UnsupportedOption, match=r"does not offer.*kv_blocks.*eager"):
        launch("fake", profile, kv_blocks=4)
    with pytest.raises(UnsupportedOption, match="does not know"):
        launch("fake", profile, colour="red")


@pytest.mark.parametrize("name", ["tensorrt_llm", "ollama"])
def test_an_engine_that_cannot_run_here_says_why(name):
    with pytest.raises(NotRunHere, match="not run here: "):
        launch(name, PROFILES["cpu"])


def test_an_engine_that_is_not_set_up_names_the_command(fake, profile, monkeypatch):
    local = dataclasses.replace(fake.local, needs=Path("/nonexistent"))
    monkeypatch.setitem(registry.ENGINES, "fake", dataclasses.replace(fake, local=local))
    with pytest.raises(NotRunHere, match="make setup STEP=fake"):
        launch("fake", profile)


GPU = dataclasses.replace(PROFILES["cpu"], name="cuda-local", device="cuda", shares_gpu=True)


def test_gpu_without_docker_takes_the_cuda_build(fake, monkeypatch):
    cuda = dataclasses.replace(fake.local, command=("cuda",), setup="fake_cuda")
    both = dataclasses.replace(fake, local_cuda=cuda)
    assert both.local_on("cuda") == (cuda, "cuda")
    assert both.local_on("cpu") == (fake.local, "cpu")
    assert fake.local_on("cuda") == (fake.local, "cpu")


def test_engine_without_cuda_build_says_that_it_is_on_the_cpu(fake, profile, capsys):
    local = dataclasses.replace(GPU, models=profile.models, start_timeout_s=10.0)
    with launch("fake", local) as engine:
        assert engine.options.device == "cpu"
    assert "on the CPU, because this build of it has no CUDA" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vllm", "make setup STEP=vllm_cuda"),
        ("sglang", "make setup STEP=sglang_cuda"),
        ("tensorrt_llm", "it needs its container"),
    ],
)
def test_gpu_without_docker_names_what_is_missing(name, says, monkeypatch):
    with pytest.raises(NotRunHere, match=says):
        launch(name, dataclasses.replace(GPU, models={name: "owner/some-model"}))


def test_a_missing_model_is_refused_before_the_start(fake, profile, tmp_path):
    with pytest.raises(ModelMissing, match="There is no model at"):
        launch("fake", profile, model=str(tmp_path / "none.gguf"))


def test_the_progress_line_shows_the_words_of_a_log_not_its_decoration(tmp_path):
    log = tmp_path / "log"
    head = "\x1b[0;36m(APIServer pid=7)\x1b[0;0m \x1b[32mINFO\x1b[0m \x1b[90m11-21 09:23:48\x1b[0m"
    log.write_text(f"first\n{head} [vllm.py:1703] Loading weights took 3 s\n\n")
    assert last_log_line(log) == "Loading weights took 3 s"
    assert tail(log, 1).startswith("\x1b")


def test_stop_ends_an_engine_whose_watchdog_was_killed(fake, profile, tmp_path):
    pids = tmp_path / "pids"
    engine = launch("fake", profile, extra_arguments=("--pids", str(pids)), quiet=True)
    children = read_pids(pids)
    os.kill(int(engine.identity), signal.SIGKILL)
    time.sleep(0.2)
    engine.stop()
    assert all(gone(pid) for pid in children)


def test_a_profile_may_be_given_by_name_and_a_port_must_be_one(fake, profile):
    with pytest.raises(NotRunHere):
        launch("tensorrt_llm", "cpu")
    for port in (0, 99999, "8000"):
        with pytest.raises(UnsupportedOption, match="a port"):
            launch("fake", profile, port=port)


def test_file_for_container_is_below_the_course(tmp_path, monkeypatch):
    monkeypatch.setattr(launch_module, "LOGS", tmp_path / ".run")
    (tmp_path / "settings.yml").write_text("dtype: fp8")
    copied = launch_module.below_course(tmp_path / "settings.yml")
    assert copied.parent == tmp_path / ".run"
    assert copied.read_text() == "dtype: fp8"
    assert launch_module.below_course(ROOT / "README.md") == ROOT / "README.md"


def test_logs_go_elsewhere_when_the_folder_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "LOGS", tmp_path / "file" / ".run")
    (tmp_path / "file").write_text("in the way")
    assert runtime.new_log("x").parent == Path(tempfile.gettempdir())


def test_only_old_logs_are_forgotten(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "LOGS", tmp_path)
    monkeypatch.setattr(runtime, "KEPT_LOGS", 2)
    for i in range(5):
        (tmp_path / f"x-{i}.log").write_text("")
    os.utime(tmp_path / "x-0.log", (0, 0))
    runtime.new_log("x")
    assert sorted(p.name for p in tmp_path.glob("*.log")) == [f"x-{i}.log" for i in (1, 2, 3, 4)]


@pytest.mark.parametrize(("device", "handicaps"), [("cpu", 1), ("cuda", 0)])
def test_sglang_has_its_handicap_on_a_cpu_only(device, handicaps, tmp_path):
    spec = get_spec("sglang")
    sizes = {"context_length": 64, "max_sequences": 1, "kv_cache_gib": 1.0}
    options = ServeOptions(
        model="m",
        served_name="m",
        host="127.0.0.1",
        port=1,
        device=device,
        dtype="float32",
        **sizes,
    )
    handle = SimpleNamespace(command=["sglang"], log_path=tmp_path / "log", stop=lambda: None)
    engine = RunningEngine(spec, options, 1, handle)
    assert len(engine.handicaps) == handicaps
    engine.stop()
