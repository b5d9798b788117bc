"""The notebooks that other processes build from a source have the same bytes."""

import shutil
import subprocess
import sys

from tools.authoring.build import build
from utils.profiles import ROOT

SAMPLE = ROOT / "tests" / "notebooks" / "sample" / "lab-3.3.99-sample.py"


def test_the_bytes_do_not_depend_on_the_process(tmp_path):
    (tmp_path / "solutions").mkdir()
    shutil.copy(SAMPLE, tmp_path / "solutions")
    build(tmp_path)
    script = (
        "from pathlib import Path; import sys; from tools.authoring.build import drift;"
        "sys.exit(len(drift(Path(sys.argv[1]))))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            check=True,
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        )
