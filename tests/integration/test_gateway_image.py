"""With the packages that `docker/gateway.Dockerfile` installs, and no others, the gateway starts."""

import re
import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from utils.profiles import ROOT

# As if the distributions named in argv were not installed.
HIDE = """
import sys
from importlib import metadata
hidden = set(sys.argv[1].split())
tops = {top for top, owners in metadata.packages_distributions().items() if set(owners) <= hidden}
class Finder:
    def find_spec(name, path, target=None):
        if name.split(".")[0] in tops:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder)
real = metadata.distribution
def distribution(name):
    if name in hidden:
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.distribution = distribution
sys.argv = ["gateway", "check", "--config", "docker/gateway.yaml"]
import utils.gateway.server
import utils.gateway.__main__ as gateway
gateway.main()
"""


def with_dependencies(names):
    """These distributions, and all that they need."""
    found, todo = set(), [canonicalize_name(name) for name in names]
    while todo:
        if (name := todo.pop()) in found:
            continue
        found.add(name)
        needs = map(Requirement, metadata.requires(name) or [])
        todo += [canonicalize_name(n.name) for n in needs if not n.marker or n.marker.evaluate()]
    return found


def test_the_image_has_what_the_gateway_imports():
    text = (ROOT / "docker" / "gateway.Dockerfile").read_text()
    names = re.search(r"course\.txt \\\n(.*)", text)[1].split()
    assert {"fastapi", "uvicorn"} <= set(names)
    kept = with_dependencies(names)
    hidden = [dist.name for dist in metadata.distributions()]
    hidden = [
        n for n in hidden if n != "inference-engines-course" and canonicalize_name(n) not in kept
    ]
    assert {"torch", "transformers"} <= set(hidden)
    command = [sys.executable, "-c", HIDE, " ".join(hidden)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert "fine" in answer.stdout
