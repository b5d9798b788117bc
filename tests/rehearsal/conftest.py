"""The rehearsal's machine, once for all tests of a worker."""

import pytest
from docker_daemon import CannotStart
from stage import Stage


@pytest.fixture(scope="session")
def whole_stage():
    try:
        stage = Stage()
    except CannotStart as reason:
        pytest.skip(f"not run here: no rehearsal: {reason}")
    yield stage
    stage.close()


@pytest.fixture
def stage(whole_stage):
    """The machine without faults; a test leaves no container and no fault behind."""
    whole_stage.hub.started.clear()
    yield whole_stage
    whole_stage.hub.faults.clear()
    left = whole_stage.wait_until_nothing_is_left()
    for name in left:
        whole_stage.client.containers.get(name).remove(force=True, v=True)
    assert left == [], "containers were left"
