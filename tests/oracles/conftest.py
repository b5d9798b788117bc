"""The packages of Medusa's and EAGLE's authors, in a folder of their own that only these tests see."""

import importlib
import subprocess
import sys

import pytest

from tools.setup.setup_steps import REQUIREMENTS


@pytest.fixture(scope="session")
def oracles(tmp_path_factory):
    """Installs them; gives a function that imports one of their modules."""
    folder = tmp_path_factory.mktemp("oracles")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-deps"]
    pinned = ["--require-hashes", "-r", str(REQUIREMENTS / "oracles.hash.txt")]
    subprocess.run([*command, "--target", str(folder), *pinned], check=True, timeout=240)
    sys.path.append(str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.split(".")[0] in ("medusa", "eagle")]:
            del sys.modules[name]
