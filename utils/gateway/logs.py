"""Logs: one JSON object a line. No key and no prompt is ever in them: only names, numbers and outcomes."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

LOG = logging.getLogger("gateway")


class JsonLines(logging.Formatter):
    """A record as one JSON object; what `extra={"fields": {...}}` holds stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            # The kind and the place; the message could hold a prompt.
            trace = record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            fields["error"] = record.exc_info[0].__name__
            if trace is not None:
                fields["at"] = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        return json.dumps(fields, ensure_ascii=False)


def set_up(level: str) -> None:
    """Sends the gateway's log to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.setLevel(level.upper())


def say(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Writes one line."""
    LOG.log(level, event, extra={"fields": fields})
