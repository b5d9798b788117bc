"""Code that runs in the kernel of a notebook that becomes a page of the site (docs/site/conf.py)."""

from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime
from typing import Any

from IPython.display import Markdown
from matplotlib.figure import Figure

from utils.benchmark.host import describe_host
from utils.engines.registry import ENGINES
from utils.profiles import ROOT, load_profile, wants_quick_load

_began = time.monotonic()


def begin(name: str) -> None:
    """Give the notebook empty records of its own, and describe its figures in words.

    Args:
        name: Name of the notebook, without its suffix.
    """
    records = ROOT / ".site" / "records" / name
    shutil.rmtree(records, ignore_errors=True)
    os.environ["COURSE_RECORDS"] = str(records)
    kind: Any = (
        Figure  # a method, because IPython drops a formatter when it chooses the figures' format
    )
    kind._repr_pretty_ = lambda self, printer, cycle: printer.text(describe(self))


def describe(figure: Figure) -> str:
    """Return a figure's label if the course set one, else the words that are written in it."""
    if label := str(figure.get_label()):
        return label
    parts = [figure.get_suptitle()]
    for axes in figure.axes:
        names = {"x": axes.get_xlabel(), "y": axes.get_ylabel()}
        facts = [axes.get_title(), *(f"{axis}: {name}" for axis, name in names.items() if name)]
        if legend := axes.get_legend():
            facts.append("shown: " + ", ".join(text.get_text() for text in legend.get_texts()))
        parts.append("; ".join(fact for fact in facts if fact))
    return " ".join(["Plot.", *(f"{part}." for part in parts if part)])


def provenance() -> Any:
    """Return the machine, the versions, the date and the profile that produced the page's outputs."""
    host, profile = describe_host(), load_profile()
    versions = []
    for spec in ENGINES.values():
        if profile.runtime == "docker" and spec.container:
            versions.append(spec.container.image)
        elif profile.runtime != "docker" and spec.local:
            versions.append(f"{spec.title} {spec.local.version}")
    load = "quick load, **too small to conclude from**" if wants_quick_load() else "full load"
    return Markdown(
        f"Executed on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC in {time.monotonic() - _began:.0f} s, on "
        f"{', '.join([host['cpu'], *host['gpu']])}, {host['cores_usable']} cores, "
        f"{host['memory_bytes'] / 2**30:.0f} GiB, {host['os']}. "
        f"Profile `{profile.name}` in {profile.dtype}, {load}. "
        f"Python {host['python']}, {', '.join(versions)}."
    )  # type: ignore[no-untyped-call]
