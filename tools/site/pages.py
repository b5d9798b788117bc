"""The sources that Sphinx reads: documents, labs and solutions, with links that lead to pages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell, new_notebook

from tools.authoring.exercises import Lab
from tools.authoring.notebook import render
from tools.authoring.release import for_learners
from tools.authoring.solution_markers import BEGIN, END
from tools.lab.course_error import CourseError
from tools.site.figures import to_files

_LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?P<to>[^()\s]+)(?P<rest>[^()]*)\)")
_OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:")
_FENCE = re.compile(r"^\s*(`{3,}|~{3,})")
_WIDGET = "application/vnd.jupyter.widget-view+json"
_BEYOND = ("models/**/README.md", "docker/**/*.md")  # documents besides those at the top
_INSIDE = ("solutions/README.md", "solutions/AUTHORS.md")  # for whoever sees solutions
HOME = Path("README.md")


@dataclass
class Pages:
    """A folder of sources being filled.

    Attributes:
        root: the course's folder.
        folder: the sources; emptied first.
        figures: where pictures go.
        solved: whether solutions are among the pages; else it is what learners get.
        made: the line at the end of pages that were not executed.
        broken: links that lead nowhere, each with its page.
    """

    root: Path
    folder: Path
    figures: Path
    solved: bool
    made: str
    broken: list[str] = field(default_factory=list)

    def write(self, labs: Iterable[Lab], executed: Mapping[str, NotebookNode]) -> None:
        """Writes all of them.

        Args:
            labs: the labs.
            executed: solved notebooks with their outputs, by stem, those that get a page.

        Raises:
            CourseError: a link leads nowhere; names each.
        """
        for place in (self.folder, self.figures):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        names = [lab.source.stem for lab in labs]
        documents = self._documents()
        self._pages = {*documents, *(Path("labs", f"{name}.ipynb") for name in names)}
        self._pages |= {Path("solutions", f"{name}.ipynb") for name in executed}
        for path in documents:
            self._document(path)
        for lab in labs:
            self._lab(lab, solved=lab.source.stem in executed)
        for name, notebook in executed.items():
            self._solution(name, notebook)
        with (self.folder / staged(HOME)).open("a", encoding="utf-8") as home:
            home.write(contents(documents, names, list(executed)))
        if self.broken:
            raise CourseError("Links that lead nowhere:\n" + "\n".join(self.broken))

    def _documents(self) -> list[Path]:
        """README.md, what it links to in that order, then the others."""
        patterns = ["*.md", *_BEYOND, *(_INSIDE if self.solved else ())]
        found = sorted(path for pattern in patterns for path in self.root.glob(pattern))
        known = [path.relative_to(self.root) for path in found]
        linked = [Path(match["to"].partition("#")[0]) for match in _LINK.finditer(self._text(HOME))]
        order = {path: place for place, path in reversed(list(enumerate([HOME, *linked])))}
        return sorted(known, key=lambda path: order.get(path, len(order)))

    def _text(self, path: Path) -> str:
        text = (self.root / path).read_text(encoding="utf-8")
        return text if self.solved else for_learners(text)

    def _document(self, path: Path) -> None:
        text = self.linked(self._text(path), path) + f"\n\n---\n\n{self.made}\n"
        target = self.folder / staged(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def _lab(self, lab: Lab, *, solved: bool) -> None:
        name = f"{lab.source.stem}.ipynb"
        notebook = nbformat.reads(render(lab, solved=False), as_version=4)
        more = f" [Solved, with what it printed](../solutions/{name})." if solved else ""
        words = f"As learners get it: nothing on this page was executed.{more}"
        note = f"```{{note}}\n{words}\n```"
        self._notebook(notebook, Path("labs", name), note, self.made)

    def _solution(self, name: str, notebook: NotebookNode) -> None:
        facts = notebook.metadata["produced_by"]
        note = f"```{{admonition}} What produced this page\n{produced(facts)}\n\n"
        note += f"[The lab, unsolved](../labs/{name}.ipynb).\n```"
        to_files(notebook, self.figures / "figures", "../figures")
        self._notebook(notebook, Path("solutions", f"{name}.ipynb"), note, self.made)

    def _notebook(self, notebook: NotebookNode, path: Path, note: str, end: str) -> None:
        """Writes a page: the first cell, what it is, the others; only what a page shows is kept."""
        cells = [*notebook.cells[:1], new_markdown_cell(note), *notebook.cells[1:]]
        cells.append(new_markdown_cell(f"---\n\n{end}"))
        for cell in cells:
            cell.source = without_marks(cell.source)
            if cell.cell_type == "markdown":
                cell.source = self.linked(cell.source, path)
            else:
                cell.outputs = list(_lasting(cell.outputs))
            cell.metadata = {"tags": cell.metadata.get("tags", [])}
        kernel = {"kernelspec": notebook.metadata["kernelspec"]}
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells, metadata=kernel), self.folder / path)

    def linked(self, text: str, path: Path) -> str:
        """`text` of the page `path` with every link to a page, to a file beside the pages, or gone."""
        done: list[str] = []
        lines: list[str] = []  # of the paragraph that is read: a link may go over the end of a line
        fence = ""

        def paragraph() -> None:
            if lines:
                done.append(self._paragraph("\n".join(lines), path))
                lines.clear()

        for line in text.splitlines():
            if mark := _FENCE.match(line):
                fence = "" if fence and mark[1].startswith(fence) else fence or mark[1]
            if fence or mark or not line.strip():
                paragraph()
                done.append(line)
            else:
                lines.append(line)
        paragraph()
        return "\n".join(done) + "\n"

    def _paragraph(self, text: str, path: Path) -> str:
        """Lines outside of code blocks; what stands between back quotes is no link."""
        parts = re.split(r"(`+[^`]*`+)(?!\])", text) if "](" in text else [text]
        return "".join(
            part if i % 2 else _LINK.sub(lambda found: self._link(found, path), part)
            for i, part in enumerate(parts)
        )

    def _link(self, link: re.Match[str], path: Path) -> str:
        to, _, anchor = link["to"].partition("#")
        if not to or _OUTSIDE.match(to):
            return link[0]
        target = (self.root / path.parent / to).resolve()
        if not target.is_relative_to(self.root) or not target.exists():
            self.broken.append(f"{path}: {link['text']} leads to {link['to']}, which is not there")
            return link[0]
        inside = target.relative_to(self.root)
        if target.is_dir():
            inside = inside / "README.md"
            if inside not in self._pages:
                return link["text"][1:-1]
        elif inside not in self._pages:
            beside = self.folder / inside
            beside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(target, beside)
        up = "../" * len(path.parent.parts)
        return f"{link['text']}({up}{staged(inside)}{'#' if anchor else ''}{anchor}{link['rest']})"


def staged(path: Path) -> str:
    """A page's source file: README.md at the top is the site's first page."""
    return "index.md" if path == HOME else path.as_posix()


def contents(documents: list[Path], labs: list[str], solutions: list[str]) -> str:
    """The site's table of contents, as toctree directives."""
    top = [path for path in documents if len(path.parts) == 1 and path != HOME]
    parts = {
        "Documents": [path.stem for path in top],
        "Labs": [f"labs/{name}" for name in labs],
        "Solved, with outputs": [f"solutions/{name}" for name in solutions],
        "More": [path.with_suffix("").as_posix() for path in documents if len(path.parts) > 1],
    }
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"
        for caption, pages in parts.items()
        if pages
    )


def produced(facts: Mapping[str, Any]) -> str:
    """What produced a page's outputs, as a sentence or two of Markdown."""
    host = facts["host"]
    memory = f"{host['memory_bytes'] / 2**30:.0f} GiB"
    gpu = f", {', '.join(host['gpu'])}" if host["gpu"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    small = " (**too small to conclude from**)" if facts["load"] == "quick" else ""
    return (
        f"Executed on {facts['date']}, in {facts['seconds']:.0f} s, on {host['cpu']}, "
        f"{host['cores_usable']} cores, {memory}{gpu}, {host['os']}. Profile `{facts['profile']}` in "
        f"{facts['dtype']}, {facts['load']} load{small}. Python {host['python']}, {versions}. "
        f"Commit `{facts['commit']}`."
    )


def without_marks(source: str) -> str:
    """A cell without the lines that tell where its solution begins and ends."""
    lines = source.splitlines()
    return "\n".join(line for line in lines if line.strip() not in (BEGIN, END))


def _lasting(outputs: Iterable[NotebookNode]) -> Iterator[NotebookNode]:
    """Outputs without progress bars, which end with the program that moves them."""
    for output in outputs:
        if _WIDGET in output.get("data", {}):
            continue
        if output.output_type == "stream" and "\r" in output.text:
            continue
        yield output
