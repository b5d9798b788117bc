"""Run a notebook as a learner of the rehearsal: `learner_run.py NOTEBOOK OUT SECONDS_PER_CELL`.

OUT gets JSON: the seconds, the faults, and of each code cell its seconds and its printed text.
"""

import json
import os
import sys
from pathlib import Path

from notebook_run import run_notebook

GPU = """import pretend_gpu

pretending = pretend_gpu.pretend_gpu()
pretending.__enter__()
"""


def main(notebook, out, limit):
    """Run it, with PyTorch on a pretended GPU if REHEARSAL_TORCH is "cuda"."""
    startup = Path.home() / ".ipython" / "profile_default" / "startup" / "00-gpu.py"
    startup.unlink(missing_ok=True)
    if os.environ.get("REHEARSAL_TORCH") == "cuda":
        startup.parent.mkdir(parents=True, exist_ok=True)
        startup.write_text(GPU)
    ran = run_notebook(notebook, {}, limit)
    cells = {
        id_: {"seconds": ran.took(id_), "text": ran.printed(id_), "source": cell.source}
        for id_, cell in ran.cells.items()
        if cell.cell_type == "code" and "shell.execute_reply" in cell.metadata.get("execution", {})
    }
    found = {"seconds": ran.seconds, "error": ran.error, "cells": cells}
    # The words of the exercises' checks are the same on every profile, and tests/notebooks reads them.
    found["faults"] = [text for text in ran.faults(solved=False) if not text.startswith("check-")]
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
