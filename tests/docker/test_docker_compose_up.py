"""`docker compose up` of what docker/compose.yaml says, with the image made here in place of the engine's."""

import subprocess
import time

import docker.types
import httpx
import pytest
import yaml
from minimal_image import PLAIN

from tools.authoring import compose
from utils.engines.runtime import free_port

pytestmark = pytest.mark.engine
SERVICES = yaml.safe_load(compose.COMPOSE.read_text())["services"]
SECOND = 10**9


@pytest.fixture
def up(daemon, image, tmp_path):
    """Runs `docker compose` on the file, with changes to one service."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("not run here: docker has no compose plugin")
    changes = tmp_path / "changes.yaml"
    command = ["docker", "compose", "-f", str(compose.COMPOSE), "-f", str(changes)]

    def run(service, **changed):
        wanted = {"image": image, "healthcheck": {"interval": "1s"}} | changed
        changes.write_text(yaml.safe_dump({"services": {service: wanted}}))
        start = [*command, "up", "--detach", "--wait", "--wait-timeout", "60", service]
        return subprocess.run(start, capture_output=True, text=True, timeout=90)

    yield run
    subprocess.run([*command, "down", "--volumes"], capture_output=True, timeout=60, check=True)


def test_a_service_comes_up_healthy_answers_and_goes_down(up, client):
    port = free_port()
    done = up("llama-a", ports=[f"127.0.0.1:{port}:8080"])
    assert done.returncode == 0, done.stderr
    (container,) = client.containers.list()
    assert container.attrs["State"]["Health"]["Status"] == "healthy"
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] >= 1


def health(container):
    container.reload()
    return container.attrs["State"]["Health"]["Status"]


@pytest.mark.parametrize(("serves", "status"), [(True, "healthy"), (False, "unhealthy")])
def test_the_engines_health_check_inside_its_container(client, image, serves, status):
    """Docker runs it: curl in the image, against the engine, or against nothing."""
    service = SERVICES["llama-a"]
    built = client.containers.create(
        image if serves else PLAIN,
        service["command"] if serves else ["/usr/bin/sleep", "60"],
        volumes={str(compose.ROOT / "models" / "tiny"): {"bind": "/models", "mode": "ro"}},
        healthcheck=docker.types.Healthcheck(
            test=service["healthcheck"]["test"],
            interval=SECOND // 4,
            retries=2 if not serves else 40,
        ),
        init=True,
    )
    try:
        built.start()
        deadline = time.monotonic() + 30
        while (text := health(built)) != status:
            assert text == "starting"
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
    finally:
        built.remove(force=True, v=True)
