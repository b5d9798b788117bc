"""Pulling from a registry: how far it is, and what is said when it does not come."""

import platform
import re
import threading

import pytest
from small_registry import Registry

from utils.engines import EngineError, launch
from utils.engines.container import ensure_image
from utils.engines.runtime import free_port

pytestmark = pytest.mark.engine
DOCKERS_NAME = {"x86_64": "amd64", "aarch64": "arm64"}


@pytest.fixture(scope="module")
def registry():
    served = Registry(DOCKERS_NAME[platform.machine()])
    yield served
    served.close()


def test_a_pull_tells_how_far_it_is_and_the_next_start_needs_none(client, registry):
    image, text = f"{registry.address}/slow:1", []
    ensure_image(client, image, text.append)
    done = [
        float(m[1]) for line in text if (m := re.search(r": ([\d.]+) MB of 6\.0 MB so far", line))
    ]
    assert len(done) >= 3, text
    assert done == sorted(done)
    assert text[-1] == f"unpacking {image}, 6.0 MB so far"
    ensure_image(client, image, lambda line: pytest.fail(line))
    client.images.remove(image)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "the registry has no such tag"),
        ("broken", "check the network"),
        ("foreign", "not built for the processor"),
    ],
)
def test_a_pull_that_fails_says_why_and_what_to_try(client, registry, name, says):
    image = f"{registry.address}/{name}:1"
    with pytest.raises(EngineError, match=f"(?s){says}.*docker pull {image}"):
        ensure_image(client, image, lambda line: None)


def test_a_registry_that_does_not_answer_is_the_network(client):
    with pytest.raises(EngineError, match="check the network"):
        ensure_image(client, f"127.0.0.1:{free_port()}/a:1", lambda line: None)


def test_an_engine_whose_image_is_missing_is_not_started(changed, profile, left, registry):
    changed(image=f"{registry.address}/missing:1")
    with pytest.raises(EngineError, match="could not be pulled"):
        launch("llama_cpp", profile, quiet=True)


def test_an_interrupted_pull_ends_in_the_daemon_too(client, registry):
    def interrupt(line):
        if " of " in line:
            raise KeyboardInterrupt

    registry.broken_off.clear()
    registry.seconds = 20.0
    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        ensure_image(client, f"{registry.address}/slow:1", interrupt)
    registry.seconds = 1.0
    assert registry.broken_off.wait(10), "the daemon went on pulling"
    assert threading.active_count() <= threads + 1
