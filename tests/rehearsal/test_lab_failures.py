"""Labs whose engines don't start go on to their end, and tell the reason in the engine's words."""

import pytest
from test_start_failures import LOGS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(700)]
LABS = {
    "3.3.1": "lab-3.3.1-engine-benchmark",
    "3.3.2": "lab-3.3.2-sglang-deployment",
    "3.3.7": "lab-3.3.7-production-api",
}


def shown(ran):
    assert ran["faults"] == []
    return "\n".join(cell["text"] for cell in ran["cells"].values())


def test_lab_goes_on_with_two_engines_when_the_third_fails(stage):
    log, hint = LOGS["llama_cpp"]
    stage.hub.faults["llama_cpp"] = {"after": 2, "log": log, "code": 1}
    text = shown(stage.notebook(LABS["3.3.7"], "spark"))
    assert log.splitlines()[0] in text
    assert hint in text


@pytest.mark.parametrize("lab", LABS)
def test_lab_ends_without_docker(stage, lab):
    text = shown(stage.notebook(LABS[lab], "spark", DOCKER_HOST="unix:///nowhere.sock"))
    assert "sudo systemctl start docker" in text
    assert "not run here" in text
