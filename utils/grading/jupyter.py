"""JupyterLab's Validate button on a lab: nbgrader's, with the course's own way to run a notebook.

nbgrader would run every cell, engines and all, and take the reference for an answer where nothing was
attempted. Here the exercises are run and judged alone. A Jupyter server extension; `make lab` puts it
in the place of nbgrader's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonschema import ValidationError
from jupyter_server.utils import url_path_join
from nbformat import NotebookNode
from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, NbGraderPreprocessor
from nbgrader.server_extensions.validate_assignment.handlers import (
    NbGraderVersionHandler,
    ValidateAssignmentHandler,
)
from nbgrader.validator import Validator
from tornado import web
from traitlets import List

from utils.grading.local import judge_here
from utils.grading.shown import nodes, verdict_outputs


class JudgeExercises(NbGraderPreprocessor):  # type: ignore[misc]
    """Fills in the outputs of the checks."""

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """See nbconvert."""
        _, judgement = judge_here(nb)
        by_id = {f"check-{result.id}": result for result in judgement.exercises}
        for cell in nb.cells:
            result = by_id.get(cell.metadata.get("nbgrader", {}).get("grade_id"))
            if result is not None and cell.cell_type == "code":
                cell.outputs = nodes(verdict_outputs(result))
        return nb, resources


class LabValidator(Validator):  # type: ignore[misc]
    """nbgrader's validator, but for how the notebook is run."""

    preprocessors = List([CheckCellMetadata, ClearOutput, JudgeExercises])


class ValidateLabHandler(ValidateAssignmentHandler):  # type: ignore[misc]
    """Answers the button."""

    def validate_notebook(self, path: str) -> dict[str, Any]:
        """See nbgrader: {"success": ..., "value": ...}; a notebook that is no lab says so."""
        target = (Path(self.root_dir) / path).resolve()
        if not target.is_relative_to(Path(self.root_dir).resolve()):
            raise web.HTTPError(403, "Access denied: path outside allowed directory")
        try:
            return {"success": True, "value": LabValidator().validate(str(target))}
        except (ValueError, RuntimeError, ValidationError) as error:
            return {"success": False, "value": str(error)}


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "utils.grading.jupyter"}]


def _load_jupyter_server_extension(server: Any) -> None:
    base = server.web_app.settings["base_url"]
    server.web_app.settings["root_dir"] = server.root_dir  # where nbgrader's handler looks
    server.web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, "/assignments/validate"), ValidateLabHandler),
            (url_path_join(base, "/nbgrader_version"), NbGraderVersionHandler),
        ],
    )
