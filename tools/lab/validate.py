"""JupyterLab's Validate button on a lab: nbgrader's button, answered by the course.

nbgrader would run every cell, engines and all, and take the reference for an answer where nothing was
attempted. Here the exercises are run and judged alone, in a process of their own. A Jupyter server
extension; `make lab` puts it in the place of nbgrader's.
"""

from __future__ import annotations

import asyncio
import html
import json
from pathlib import Path
from typing import Any

from jupyter_server.utils import url_path_join
from nbgrader.server_extensions.validate_assignment.handlers import (
    NbGraderVersionHandler,
    ValidateAssignmentHandler,
)
from tornado import web

from tools.lab.self_check import Status, evaluate


class ValidateLabHandler(ValidateAssignmentHandler):  # type: ignore[misc]
    """Answers the button; the server goes on with other things meanwhile."""

    @web.authenticated
    async def post(self) -> None:
        """{"path": notebook} -> {"success": ..., "value": ...}, as nbgrader's button reads it."""
        path = self.get_argument("path", None) or (self.get_json_body() or {}).get("path", "")
        root = Path(self.root_dir).resolve()
        target = (root / path).resolve()
        if not target.is_relative_to(root):
            raise web.HTTPError(403, "Access denied: path outside the course")
        try:
            loop = asyncio.get_running_loop()
            standing = await loop.run_in_executor(None, lambda: evaluate(target.read_bytes()))
            answer = {"success": True, "value": failures(standing)}
        except (OSError, ValueError, RuntimeError) as error:
            answer = {"success": False, "value": str(error)}
        self.finish(json.dumps(answer))


def failures(standing: Status) -> dict[str, Any]:
    """What is still to do, as the button shows it; nothing where all is done."""
    checks = {slot.id: slot.check for slot in standing.lab.exercises}
    notes = standing.judgement.notes
    failed = []
    for result in standing.judgement.exercises:
        if result.verdict != "right":
            about = [note.learner for note in notes if note.exercise == result.id]
            lines = [f"{result.verdict}: {result.message}", *about]
            failed.append((checks[result.id], "\n".join(lines)))
    for id_ in standing.unwritten:
        failed.append((f"written answer: {id_}", "nothing is written yet"))
    entries = [
        {"source": source, "error": html.escape(text), "raw_error": text} for source, text in failed
    ]
    return {"failed": entries} if entries else {}


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "tools.lab.validate"}]


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
