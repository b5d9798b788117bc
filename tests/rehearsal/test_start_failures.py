"""Starts that fail as on a learner's machine show the engine's or docker's words, and leave nothing."""

import os
import pwd
import signal
import socket
import stat
import threading

import pytest
from stage import LEARNER

from utils.engines import ENGINES

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]
TRY = """
from utils.engines import EngineError, launch
try:
    launch({arguments})
except EngineError as error:
    print("told:", error)
"""
# Real ends of logs: the engine, its log, and the hint.
LOGS = {
    "vllm": (
        "ValueError: Free memory on device cuda:0 (58.19/121.69 GiB) on startup is less than desired GPU "
        "memory utilization (0.7, 85.18 GiB). Decrease GPU memory utilization or reduce GPU memory used by "
        "other processes.",
        "stop other users of the GPU",
    ),
    "sglang": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
        "too little memory",
    ),
    "llama_cpp": (
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 18432.00 MiB on device 0: cudaMalloc "
        "failed: out of memory\nllama_init_from_model: failed to initialize the context: failed to allocate "
        "buffer for kv cache",
        "slots times context do not fit",
    ),
}
LOADING = {"": {"never_healthy": True}}
CELLS = {
    "launch": "launch('vllm')",
    "each": "Fleet(load_profile(), {'plain': {}}).each(lambda name, engine, turn: 1)",
    "together": ("fleet = Fleet(load_profile(), {'a': few, 'b': few, 'c': few}, together=True)"),
}


def told(stage, arguments, **options):
    code, text = stage.python(TRY.format(arguments=arguments), "spark", **options)
    assert "Traceback" not in text
    assert code == 0, text
    return text.partition("told:")[2]


@pytest.mark.parametrize("engine", LOGS)
def test_engine_that_ends_shows_its_log_and_hint(stage, engine):
    log, hint = LOGS[engine]
    stage.hub.faults[engine] = {"log": log, "code": 1}
    text = told(stage, repr(engine))
    assert "ended with code 1" in text
    assert all(line in text for line in log.splitlines())
    assert hint in text


def test_missing_image_names_command(stage):
    image = ENGINES["sglang"].container.image
    kept = stage.client.images.get(image)
    kept.tag("rehearsal", "kept")
    stage.client.images.remove(image)
    try:
        text = told(stage, "'sglang'")
    finally:
        repository, _, tag = image.rpartition(":")
        kept.tag(repository, tag)
        stage.client.images.remove("rehearsal:kept")
    assert "could not be pulled" in text
    assert f"docker pull {image}" in text


def test_docker_that_is_down_names_command(stage):
    text = told(stage, "'vllm'", DOCKER_HOST="unix:///nowhere.sock")
    assert "sudo systemctl start docker" in text


def test_user_who_may_not_use_docker_is_told_the_group(stage):
    assert "usermod -aG docker" in told(stage, "'vllm'", groups=())


def test_engine_that_is_never_healthy_is_stopped(stage):
    stage.hub.faults |= LOADING
    options = "dataclasses.replace(load_profile(), start_timeout_s=3.0)"
    code = f"import dataclasses\nfrom utils.profiles import load_profile\n{TRY}"
    code, text = stage.python(code.format(arguments=f"'vllm', {options}"), "spark")
    assert code == 0, text
    assert "was not healthy after 3 s" in text
    assert "Loading safetensors checkpoint shards" in text


def test_taken_port_is_named(stage):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"Port {port} is in use" in told(stage, f"'vllm', port={port}")


def test_folder_of_root_is_named_with_its_owner(stage):
    """Finding: an engine runs as root, so the hub folder that it makes is root's."""
    stage.fresh_home()
    hub = stage.home / ".cache" / "huggingface" / "hub"
    hub.mkdir(parents=True)
    os.chown(stage.home / ".cache", LEARNER, LEARNER)
    os.chown(hub.parent, LEARNER, LEARNER)
    code = "from utils.model_sizes import ConfigError, read_config\ntry:\n    read_config('Qwen/Qwen3-8B')\n"
    code += "except ConfigError as error:\n    print('told:', error)"
    try:
        _, text = stage.python(code, "spark")
    finally:
        stage.fresh_home()
    answer = text.partition("told:")[2]
    assert str(hub) in answer
    assert "root" in answer
    assert "network" not in answer


def test_folders_belong_to_the_learner_after_an_engine(stage):
    stage.fresh_home()
    code, text = stage.python(
        "from utils.engines import launch\nlaunch('llama_cpp', quiet=True).stop()\n"
        "from utils.model_sizes import read_config\nprint(read_config('Qwen/Qwen3-8B')['hidden_size'])",
        "spark",
    )
    assert code == 0, text
    hub = stage.home / ".cache" / "huggingface" / "hub"
    owners = {path.lstat().st_uid for path in [hub, *hub.rglob("*")]}
    assert owners == {LEARNER}


@pytest.fixture
def begin(stage):
    """Function that starts a cell whose engines load for ever, and returns its process when one runs."""
    started = []

    def start(cell):
        stage.hub.faults |= LOADING
        head = (
            "from utils.engines import launch\nfrom utils.engines.fleet import Fleet\n"
            "from utils.profiles import load_profile\n"
            "few = {'engine': 'llama_cpp', 'max_sequences': 2}\n"
        )
        python = str(stage.course / ".venv/bin/python")
        process = stage.start([python, "-c", head + CELLS[cell]], "spark")
        started.append(process)
        pause = threading.Event()
        while not stage.hub.started:
            assert process.poll() is None, process.stdout.read()
            pause.wait(0.1)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("cell", CELLS)
def test_interrupt_while_engines_start_ends_cell_in_seconds(stage, begin, cell):
    process = begin(cell)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=5)
    assert "KeyboardInterrupt" in text
    assert stage.wait_until_nothing_is_left(6.0) == []


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_kernel_that_is_killed_leaves_nothing(stage, begin, cell, number):
    process = begin(cell)
    process.send_signal(number)
    process.communicate(timeout=10)
    assert stage.wait_until_nothing_is_left(6.0) == []


def test_learner_is_not_root(stage):
    code, text = stage.run(["id", "-u"], "spark")
    assert (code, text.strip()) == (0, str(LEARNER))
    assert LEARNER not in {user.pw_uid for user in pwd.getpwall()}
    assert stat.S_IMODE(stage.course.stat().st_mode) & 0o700 == 0o700
