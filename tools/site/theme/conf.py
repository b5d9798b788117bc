"""Sphinx's settings for the course's site: notebooks as they are, MathML instead of a script, no network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

project = "LLM deployment and inference engines"
html_title = "Module 3.3: Inference engines"
extensions = ["myst_nb"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"
nb_execution_mode = "off"  # tools/site/store.py executed them
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_space = False
myst_dmath_allow_digits = False
myst_heading_anchors = 4
# A learner's code may be a sentence; a lab's headings may skip a level.
suppress_warnings = ["misc.highlighting_failure", "myst.header"]


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Registers the rendering of formulas."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
