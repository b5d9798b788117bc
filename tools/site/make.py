"""`make site`: executes what changed, renders all pages, looks for dead links, puts the site in place."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from nbformat import NotebookNode

from tools.authoring.build import drift, read_labs
from tools.authoring.release import commit, find_leaks
from tools.lab.course_error import CourseError
from tools.lab.labs import GENERATED_BY, count
from tools.setup.setup_steps import SITE_ENV
from tools.site.links import faults, read_pages
from tools.site.pages import Pages
from tools.site.store import executed
from utils.benchmark.host import describe_host

THEME = Path(__file__).parent / "theme"
MARK = ".buildinfo"  # Sphinx writes it
TOOLS = ("sphinx", "myst-nb")


def make_site(
    root: Path,
    target: Path,
    *,
    solved: bool = True,
    only: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Writes the site to `target`, in the place of an earlier one; what is unchanged is not executed.

    Args:
        root: the course's folder.
        target: the folder; a new one, or a site.
        solved: with solutions and their outputs; else what learners get, and nothing is executed.
        only: one lab, as `find_lab` takes it; the others' solutions get no page then.
        say: gets a line about each step.

    Raises:
        CourseError: a notebook is stale or fails, a link is dead, a picture has no words, a solution is on
            a learner's site, or `target` holds something else. `target` is as before then.
    """
    if target.exists() and not (target / MARK).is_file():
        raise CourseError(f"{target} is there and holds no site. Name another folder: TO=...")
    if stale := drift(root):
        names = "\n".join(f"    {item.path} {item.reason}" for item in stale)
        raise CourseError(f"Notebooks that are not fresh:\n{names}\nFirst: {GENERATED_BY}")
    work = root / ".site" / ("all" if solved else "learners")
    labs = read_labs(root)
    outputs: dict[str, NotebookNode] = {}
    for lab in read_labs(root, only) if solved else ():
        path = root / "solutions" / f"{lab.source.stem}.ipynb"
        outputs[path.stem] = executed(path, root / ".site" / "executed", root, say).notebook
    pages = Pages(root, work / "source", work / "extra", solved, made_by(root))
    pages.write(labs, outputs)
    if not solved and (leaks := list(find_leaks(pages.folder, labs))):
        raise CourseError("No site: what learners must not have was in it:\n" + "\n".join(leaks))
    render(pages, work, say)
    if found := list(faults(work / "html")):
        raise CourseError("No site: its pages have faults:\n" + "\n".join(found))
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(work / "html", target)
    say(f"{target}: {count(len(read_pages(target)), 'page')}, every link inside leads somewhere")


def render(pages: Pages, work: Path, say: Callable[[str], None] = print) -> None:
    """Turns sources into HTML pages below `work`, with Sphinx in an environment of its own.

    Raises:
        CourseError: Sphinx failed or warned; the message has what it said.
    """
    python = SITE_ENV / "bin" / "python"
    if not python.is_file():
        raise CourseError("The site's tools are missing. Set them up: make setup STEP=site")
    say("rendering")
    for place in ("html", "doctrees"):
        shutil.rmtree(work / place, ignore_errors=True)
    settings = [
        "-c",
        str(THEME),
        "-d",
        str(work / "doctrees"),
        "-D",
        f"html_extra_path={pages.figures}",
    ]
    command = [str(python), "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", *settings]
    answer = subprocess.run(
        [*command, str(pages.folder), str(work / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        said = (answer.stderr or answer.stdout).replace(f"{pages.folder}/", "")
        raise CourseError(f"No site: Sphinx warns, and a warning is an error here:\n{said}")


def made_by(root: Path) -> str:
    """What made a page that was not executed, as a line of Markdown."""
    folders = [str(path) for path in SITE_ENV.glob("lib/python3*/site-packages")]
    found = {d.name: d.version for name in TOOLS for d in distributions(name=name, path=folders)}
    tools = ", ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"*Page made on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from commit {commit(root)}, "
        f"on {describe_host()['cpu']}, Python {platform.python_version()}, {tools}.*"
    )
