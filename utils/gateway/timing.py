"""When an answer began and ended, from the ASGI messages that pass by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Timing:
    """What is known of one answer; times in seconds of one clock.

    Attributes:
        began: When the request came.
        status: HTTP status; None: the answer has not begun.
        first_byte: When the first byte of the body was sent; None: not yet, or there is no body.
        ended: When the last message was sent; None: not yet.
    """

    began: float
    status: int | None = None
    first_byte: float | None = None
    ended: float | None = None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first byte of the body."""
        return None if self.first_byte is None else self.first_byte - self.began


def on_message(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    """What is known after one more message to the client.

    The head of an answer is no first token: servers send it before the model has said anything.

    Args:
        timing: Before.
        message: `http.response.start` with `status`, or `http.response.body` with `body` (default empty)
            and `more_body` (default False); others change nothing.
        now: Time, s.
    """
    if message["type"] == "http.response.start":
        return replace(timing, status=message["status"])
    if message["type"] != "http.response.body":
        return timing
    if timing.first_byte is None and message.get("body", b""):
        timing = replace(timing, first_byte=now)
    return timing if message.get("more_body", False) else replace(timing, ended=now)
