"""`make site`: the course as a static site, rendered by Sphinx and MyST-NB (docs/site/conf.py).

Executed notebooks are kept in `.site/cache` by jupyter-cache, which looks at the notebook's code. If a module
changes, delete that folder to execute them again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.authoring.build import drift, read_labs
from tools.authoring.release import commit, write_release
from tools.lab.course_error import CourseError
from tools.lab.labs import GENERATED_BY, KERNEL, KERNEL_TITLE
from tools.setup.setup_steps import SITE_ENV
from utils.profiles import ROOT, load_profile, wants_quick_load

CONFIGURATION = ROOT / "docs" / "site"
MARK = ".buildinfo"  # Sphinx writes it into every site


def make_site(
    root: Path, target: Path, *, solved: bool = True, execute: bool = True, only: str | None = None
) -> None:
    """Write the site to `target`, in the place of an earlier one.

    Args:
        root: Folder of the course.
        target: Folder of the site.
        solved: True if the site has the solutions. Otherwise it is made from a release.
        execute: True if the solutions, or else the learners' labs, are executed.
        only: The lab to execute, as `find_lab` takes it. The other labs' solutions get no page.

    Raises:
        CourseError: `target` contains something else, a notebook is stale or fails, a link is dead, or a
            picture has no alternative text. `target` is unchanged then.
    """
    if target.exists() and not (target / MARK).is_file():
        raise CourseError(f"{target} exists but isn't a site. Choose another folder with TO=...")
    chosen = [lab.source.stem for lab in read_labs(root, only)]
    others = [lab.source.stem for lab in read_labs(root) if lab.source.stem not in chosen]
    work = root / ".site"
    options: dict[str, Any] = {"nb_execution_mode": "cache" if execute else "off"}
    if solved:
        if stale := "\n".join(f"    {item.path} {item.reason}" for item in drift(root)):
            raise CourseError(f"These notebooks are stale:\n{stale}\nFirst run {GENERATED_BY}")
        source = root
        options["nb_execution_excludepatterns"] = ["labs/*.ipynb"]
        hidden = [f"solutions/{name}.ipynb" for name in others]
        options["exclude_patterns"] = [".*", "**/.*", *hidden]
    else:
        source = work / "release"
        shutil.rmtree(source, ignore_errors=True)
        write_release(root, source)  # it searches the files for solutions
        options["nb_execution_excludepatterns"] = [f"labs/{name}.ipynb" for name in others]
    html = render(source, work, options, {"COURSE_GRADING": "1" if solved else ""})
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(html, target)
    print(f"{target}: {len(list(target.rglob('*.html')))} pages. Open {target / 'index.html'}")


def render(source: Path, work: Path, options: dict[str, Any], variables: dict[str, str]) -> Path:
    """Return the folder of HTML pages that Sphinx makes from `source`.

    Args:
        source: Folder of the documents and notebooks.
        work: Folder for the pages, the cache and the kernel's description.
        options: Settings of Sphinx besides those in docs/site/conf.py.
        variables: Environment variables of the kernels besides this process's own.

    Raises:
        CourseError: Sphinx failed, or warned of something.
    """
    python = SITE_ENV / "bin" / "python"
    if not python.is_file():
        raise CourseError("The site's tools aren't installed. Install them: make setup STEP=site")
    html, profile = work / "html", load_profile()
    shutil.rmtree(html, ignore_errors=True)
    write_kernel(work / "kernel", variables)
    load = "quick" if wants_quick_load() else "full"
    options |= {
        "html_last_updated_fmt": f"%Y-%m-%d, commit {commit(ROOT)}",
        "nb_execution_cache_path": str(work / "cache" / f"{profile.name}-{load}"),
        "nb_execution_timeout": int(3 * profile.time_budget_s),
    }
    folders = ["-c", str(CONFIGURATION), "-d", str(work / "doctrees"), str(source), str(html)]
    # All pages are read again each time, because Sphinx doesn't repeat an earlier build's warnings.
    command = [str(python), "-m", "sphinx", "-E", "-W", "-b", "html", *folders]
    settings = {"COURSE_SITE": json.dumps(options), "JUPYTER_PATH": str(work / "kernel")}
    if subprocess.run(command, env={**os.environ, **settings}, check=False).returncode:
        raise CourseError("The site wasn't written, because of the warnings above.")
    for page in html.rglob("*.html"):  # nobody needs to know the author's folders
        text = page.read_text(encoding="utf-8").replace(f"{source}/", "").replace(f"{ROOT}/", "")
        page.write_text(text, encoding="utf-8")
    shutil.copy2(html / "README.html", html / "index.html")
    return html


def write_kernel(folder: Path, variables: dict[str, str]) -> None:
    """Describe the course's kernel, because Sphinx runs in an environment of its own.

    Args:
        folder: Folder for JUPYTER_PATH.
        variables: Environment variables of the kernel.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": KERNEL_TITLE,
        "language": "python",
        "env": {"PYTHONPATH": path, "TQDM_DISABLE": "1", **variables},
    }
    file = folder / "kernels" / KERNEL / "kernel.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(spec, indent=1), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.authoring.site", description=__doc__)
    parser.add_argument("target", type=Path, help="folder of the site")
    parser.add_argument("--no-solutions", action="store_true", help="show what learners get")
    parser.add_argument(
        "--execute", action="store_true", help="with --no-solutions: execute the labs"
    )
    parser.add_argument("--lab", help="the lab to execute: 3, 3.3.3 or a file name")
    args = parser.parse_args(argv)
    solved = not args.no_solutions
    try:
        execute = solved or args.execute
        make_site(ROOT, args.target.resolve(), solved=solved, execute=execute, only=args.lab)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nStopped. The same command continues with the notebooks executed so far.",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
