"""For every test: Ctrl-C means what it means in a terminal. For those who want one, a release."""

import signal

import pytest

# A shell starts background jobs with SIGINT ignored, and Python leaves it so. Tests that interrupt themselves
# would then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def signals_stay_open():
    """Fail a test that leaves signals blocked: programs that later tests start could not be ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    after = signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert after == before, f"the test left signals blocked: {after - before}"


@pytest.fixture(scope="module")  # JupyterLab saves what is typed into it
def released(tmp_path_factory):
    """A release, with the engines that are set up here."""
    from tools.authoring.release import write_release
    from utils.profiles import ROOT

    folder = tmp_path_factory.mktemp("released") / "course"
    write_release(ROOT, folder)
    (folder / ".engines").symlink_to(ROOT / ".engines")
    return folder
