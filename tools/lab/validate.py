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
    """Return what is still to do, as the button shows it: the sum, then one entry for each part.

    The answer is empty if everything is done.
    """
    notes = standing.judgement.notes
    titles = {slot.id: slot.title or slot.id for slot in standing.lab.exercises}
    failed = []
    for result in standing.judgement.exercises:
        if result.verdict in ("wrong", "partly right", "not finished"):
            about = [note.learner for note in notes if note.exercise == result.id]
            lines = [f"{result.verdict}: {result.message}", *about]
            failed.append((titles[result.id], "\n".join(lines)))
    done = all(result.verdict == "right" for result in standing.judgement.exercises)
    if done and not standing.unwritten:
        return {}
    entries = [
        {"source": source, "error": html.escape(text), "raw_error": text}
        for source, text in [(_sum(standing), _open(standing)), *failed]
    ]
    return {"failed": entries}


def _sum(standing: Status) -> str:
    """Return a line such as "3 of 7 exercises right (1, 2, 4), 9 of 24 points"."""
    results = standing.judgement.exercises
    right = [str(number) for number, r in enumerate(results, 1) if r.verdict == "right"]
    points = sum(r.points for r in results if r.verdict == "right")
    which = f" ({', '.join(right)})" if right else ""
    return (
        f"{len(right)} of {len(results)} exercises right{which},"
        f" {points} of {sum(r.points for r in results)} points"
    )


def _open(standing: Status) -> str:
    """Return the exercises that nobody has begun, and the written answers that are missing."""
    results = standing.judgement.exercises
    untouched = [
        str(number)
        for number, r in enumerate(results, 1)
        if r.verdict in ("not attempted", "missing")
    ]
    parts = [f"Not attempted yet: {', '.join(untouched)}."] if untouched else []
    parts += [f"The written answer {id_!r} is still empty." for id_ in standing.unwritten]
    return " ".join(parts) or "Every exercise was attempted. See below."


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
