"""Executes a lab's code cells one after the other on a GPU profile, without any engine.

`python tests/support/lab_cells.py LAB [FAILING...]`: the engines named fail to start (`llama_cpp:2` is the
second llama.cpp), and instead of the others `fake_openai.py` answers, which has no metrics. With
`all`, no engine starts, for want of docker. Prints a line of JSON with what the cells raised and printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import traceback
from pathlib import Path

from IPython.core.interactiveshell import InteractiveShell

from tools.authoring.lab_source import read_source
from utils.engines import EngineStartError
from utils.engines.process import ProcessHandle
from utils.engines.runtime import new_log
from utils.profiles import ROOT
from utils.roofline import rates

FAKE = ROOT / "tests" / "support" / "fake_openai.py"
PACE = ("--tokens", "16", "--gap", "0.002")
ENGINE = sys.modules["utils.engines.launch"]


def replace_engines(failing: list[str]) -> None:
    """Start the fake instead of every engine that is not to fail, and nothing real."""
    started: list[str] = []

    def start(spec, options, port=None, progress=None):
        started.append(spec.name)
        if {spec.name, f"{spec.name}:{started.count(spec.name)}"} & set(failing):
            log = new_log(spec.name)
            raise EngineStartError(spec.title, "ended with code 3.", "no luck", "be lucky", log)
        if "all" in failing:
            return real_container(spec, options, port, progress)
        command = [sys.executable, str(FAKE), "--port", str(options.port), *PACE]
        return ProcessHandle(command, {}, new_log(spec.name))

    real_container = ENGINE.start_container
    ENGINE.start_container = start
    ENGINE.start_process = start
    ENGINE.require_gpu = lambda engine, progress: None


def main(lab: str, *failing: str) -> None:
    """Execute the code cells of a lab and print the result."""
    # The fake speaks no Ollama, and without docker the baseline would be the one real engine.
    replace_engines([*failing, "ollama", *(["transformers"] if "all" in failing else [])])
    measure = rates.measure_machine  # the profile's model would take 16 GB of this machine's memory
    rates.measure_machine = lambda **options: measure(**options | {"working_set": 2_000_000})
    shell = InteractiveShell.instance()
    (path,) = (ROOT / "solutions").glob(f"lab-{lab}-*.py")
    errors = []
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for cell in read_source(path).cells:
            if cell.kind != "code":
                continue
            result = shell.run_cell(cell.source, store_history=False)
            if error := result.error_before_exec or result.error_in_exec:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(last.filename).name}:{last.lineno}"
                errors.append(f"line {cell.line}: {type(error).__name__}: {error} ({where})")
    print(json.dumps({"errors": errors, "printed": out.getvalue()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
