"""Settings of Sphinx for `make site`: documents, labs and solutions are the pages, as they are.

`tools/authoring/site.py` sets what differs from build to build: what is executed, and for how long at most.
"""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from myst_nb.core.execute import cache
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.matching import patfilter

project = "LLM deployment and inference engines"
html_title = "Module 3.3: Inference engines"
root_doc = "README"
include_patterns = ["*.md", "models/**README.md", "docker/**.md", "docs/*.md", "labs/*.ipynb"]
include_patterns += ["solutions/README.md", "solutions/lab-*.ipynb"]
exclude_patterns = [".*", "**/.*"]
extensions = ["myst_nb"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"  # MathML instead of a script, because pages need no network
nb_execution_mode = "off"
nb_execution_show_tb = True
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_space = False
myst_dmath_allow_digits = False
myst_heading_anchors = 4
# A learner's code may be a sentence, and a lab's headings may skip a level.
suppress_warnings = ["misc.highlighting_failure", "myst.header"]
# A variable instead of options, because those can't set a list such as nb_execution_excludepatterns.
globals().update(json.loads(os.environ.get("COURSE_SITE", "{}")))

# Otherwise each update of a progress line becomes a line of its own.
cache.single_nb_execution = partial(cache.single_nb_execution, coalesce_streams=True)

# GitHub sets the first in its workflows. Elsewhere there is no such link, because nobody knows the address.
REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")
CODESPACES = f" [Open in Codespaces](https://codespaces.new/{REPOSITORY})." if REPOSITORY else ""
CONTENTS = {
    "Documents": ["QUICKSTART", "STUDY_GUIDE", "PREREQUISITES", "LAB_PREP", "ELI5", "*"],
    "Labs": ["labs/*"],
    "Solved, with outputs": ["solutions/lab-*"],
    "More": ["docs/*", "solutions/README", "docker/*", "docker/*/*", "models/*/README"],
}
MARKER = re.compile(r"^[ \t]*### (BEGIN|END) SOLUTION\n?", re.MULTILINE)
logger = logging.getLogger(__name__)


def prepare(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the table of contents to the home page, and complete the notebooks."""
    if docname == root_doc:
        source[0] += contents(app.env.found_docs)
    elif docname.startswith(("labs/", "solutions/lab-")):
        source[0] = json.dumps(complete(json.loads(source[0]), docname, app))


def contents(pages: set[str]) -> str:
    """Return a hidden toctree for each part of the course that has pages."""
    parts = []
    for caption, patterns in CONTENTS.items():
        found = [pattern for pattern in patterns if patfilter(pages, pattern)]
        if found:
            lines = ["```{toctree}", ":hidden:", ":glob:", f":caption: {caption}", "", *found]
            parts.append("\n".join([*lines, "```"]))
    return "\n\n" + "\n\n".join(parts) + "\n"


def complete(book: dict[str, Any], docname: str, app: Sphinx) -> dict[str, Any]:
    """Take out the markers of solutions, and say where the page's outputs come from."""
    for cell in book["cells"]:
        cell["source"] = MARKER.sub("", "".join(cell["source"]))
    title, *rest = book["cells"]
    folder, name = docname.split("/")
    other = "solutions" if folder == "labs" else "labs"
    link = "The lab, solved" if folder == "labs" else "The lab, unsolved"
    more = f" [{link}](../{other}/{name}.ipynb)." if f"{other}/{name}" in app.env.found_docs else ""
    more += CODESPACES
    if executes(app.config, docname):
        note = f"The outputs are from a real run. Its machine and versions are at the end.{more}"
        first = f"from tools.authoring import executed_page\n\nexecuted_page.begin({name!r})"
        begin, end = _code("begin", first), _code("end", "executed_page.provenance()")
        book["cells"] = [begin, title, _note(note), *rest, end]
    else:
        book["cells"] = [title, _note(f"Nothing on this page was executed.{more}"), *rest]
    book["metadata"] = {"kernelspec": book["metadata"]["kernelspec"]}
    return book


def executes(config: Config, docname: str) -> bool:
    """Return whether MyST-NB executes this page."""
    path = PurePosixPath(f"{docname}.ipynb")
    excluded = any(path.match(pattern) for pattern in config.nb_execution_excludepatterns)
    return config.nb_execution_mode != "off" and not excluded


def _code(name: str, source: str) -> dict[str, Any]:
    cell = {"cell_type": "code", "execution_count": None, "id": f"site-{name}", "outputs": []}
    return {**cell, "metadata": {"tags": ["remove-input"]}, "source": source}


def _note(text: str) -> dict[str, Any]:
    source = f"```{{note}}\n{text}\n```"
    return {"cell_type": "markdown", "id": "site-note", "metadata": {}, "source": source}


class DescribePictures(SphinxTransform):
    """Alternative text for pictures: the plain text that comes with an output's picture."""

    default_priority = 900

    def apply(self, **_: Any) -> None:
        """Describe the outputs' pictures, and warn of a picture without a description."""
        for bundle in self.document.findall(nodes.container):
            if bundle.get("nb_element") != "mime_bundle":
                continue
            kinds = {kind["mime_type"]: kind for kind in bundle}
            if "text/plain" in kinds and "image/png" in kinds:
                for image in kinds["image/png"].findall(nodes.image):
                    image["alt"] = " ".join(kinds["text/plain"].astext().split())
        for image in self.document.findall(nodes.image):
            if (image.get("alt") or "<").startswith("<"):  # "<Figure ...>" describes nothing
                logger.warning(
                    "A picture has no alternative text: %s", image["uri"], location=image.parent
                )


class LinkFolders(SphinxPostTransform):
    """A link to a folder leads to the page of its README.md, or is plain text if there is none."""

    default_priority = 8  # MyST's own resolver has 9

    def run(self, **_: Any) -> None:
        """Turn each link to a folder into one to a document."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            folder = Path(self.env.doc2path(self.env.docname)).parent / link["reftarget"]
            if link["reftype"] != "myst" or not folder.is_dir():
                continue
            page = self.env.path2doc(folder.resolve() / "README.md")
            if page in self.env.found_docs:
                link.attributes |= {"refdomain": "doc", "reftarget": page, "reftargetid": None}
            else:
                link.replace_self(link.children)


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register what is ours."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.add_transform(DescribePictures)
    app.add_post_transform(LinkFolders)
    app.connect("source-read", prepare)
