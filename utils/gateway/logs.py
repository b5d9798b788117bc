"""Logs: one JSON object a line. No key and no prompt is ever in them: only names, numbers and outcomes."""

from __future__ import annotations

import atexit
import json
import logging
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any, TextIO

LOG = logging.getLogger("gateway")
_MOST_LINES = 10_000
_FLUSH_S = 1.0


class JsonLines(logging.Formatter):
    """Log record as one JSON object; `extra={"fields": {...}}` adds fields next to the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
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


class QueuedLines(logging.Handler):
    """Handler that never blocks: a thread of its own writes the lines.

    If nobody reads the log, for example a full pipe, lines beyond `_MOST_LINES` are dropped and counted. The
    thread is a daemon, because a write that hangs must not hold up the end of the program.

    Attributes:
        dropped: Number of lines that were dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.dropped = 0
        self._stream = stream
        self._lines: deque[logging.LogRecord] = deque()
        self._told = 0  # of the dropped
        self._some = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record, or drop it."""
        if len(self._lines) >= _MOST_LINES:
            self.dropped += 1
            return
        self._lines.append(record)
        if not self._some.is_set():
            self._idle.clear()
            self._some.set()

    def flush(self) -> None:
        """Wait until everything is written, but not for long."""
        self._idle.wait(_FLUSH_S)

    def _write_for_ever(self) -> None:
        while True:
            self._some.wait()
            self._some.clear()
            lines: list[str] = []
            with suppress(IndexError):
                while len(lines) < _MOST_LINES:
                    lines.append(self.format(self._lines.popleft()))
            if self.dropped > self._told:
                count, self._told = self.dropped - self._told, self.dropped
                lines.append(
                    json.dumps({"level": "error", "event": "lines dropped", "count": count})
                )
            with suppress(OSError, ValueError):  # closed: there is nobody to tell
                self._stream.write("".join(line + "\n" for line in lines))
                self._stream.flush()
            if not self._lines:
                self._idle.set()
                if self._lines:  # one came just now
                    self._some.set()


def set_up(level: str) -> None:
    """Send the gateway's log to standard error as JSON lines."""
    handler = QueuedLines(sys.stderr)
    handler.setFormatter(JsonLines())
    atexit.register(handler.flush)
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.setLevel(level.upper())


def dropped_lines() -> int:
    """Return the number of log lines that were dropped, because nobody read the log."""
    return sum(handler.dropped for handler in LOG.handlers if isinstance(handler, QueuedLines))


def say(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write one line."""
    if LOG.isEnabledFor(level):
        # `LOG.log` would also look for its caller on the stack, which no line shows.
        record = LOG.makeRecord(LOG.name, level, "", 0, event, (), None, extra={"fields": fields})
        LOG.handle(record)
