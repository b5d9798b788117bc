"""A kernel that is interrupted or killed leaves no container, no watchdog and no port in use."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from minimal_image import IMAGE, PLAIN

from utils.engines.container import LABEL
from utils.profiles import ROOT

pytestmark = pytest.mark.engine
LOADING = (PLAIN, "/usr/bin/sh", "-c", "sleep 60")  # never healthy


@pytest.fixture
def kernel(image):
    started = []

    def start(*arguments):
        command = [sys.executable, str(Path(__file__).with_name("docker_kernel.py")), *arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout.readline() == "starting\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(condition, timeout_s=20):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def running(client):
    return client.containers.list(filters={"label": LABEL})


def watchdogs(kernel):
    return psutil.Process(kernel.pid).children()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("state", ["serving", "loading"])
def test_nothing_is_left(kernel, client, left, state, number):
    process = kernel(IMAGE) if state == "serving" else kernel(*LOADING)
    if state == "serving":
        assert process.stdout.readline().strip() == running(client)[0].id
    else:
        until(lambda: running(client))
    watchers = watchdogs(process)
    assert watchers
    process.send_signal(number)
    process.wait(timeout=20)
    until(lambda: not left())
    until(lambda: not any(w.is_running() and w.status() != "zombie" for w in watchers))


def test_a_kernel_that_is_killed_while_docker_makes_the_container(kernel, client, left):
    """At once after its watchdog is there: before, during or after the container's creation."""
    process = kernel(*LOADING)
    until(lambda: watchdogs(process))
    watchers = watchdogs(process)
    process.kill()
    process.wait()
    time.sleep(1)
    until(lambda: not left())
    for watcher in watchers:
        watcher.terminate()  # it may go on looking for half a minute
