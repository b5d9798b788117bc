"""Beginning and end of an answer, from the ASGI messages that pass by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from utils.http.answers import has_text


@dataclass(frozen=True)
class Timing:
    """Timing of one answer so far, in seconds of one clock.

    Attributes:
        began: Time when the request came.
        status: HTTP status; None: the answer has not begun.
        first_token: Time when the first body with text was sent (answer, reasoning or tool call), or None.
        ended: Time when the last message was sent; None: not yet.
    """

    began: float
    status: int | None = None
    first_token: float | None = None
    ended: float | None = None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token, or None if there was none."""
        return None if self.first_token is None else self.first_token - self.began


def on_message(timing: Timing, message: Mapping[str, Any], now: float) -> Timing:
    """Return the timing after one more message to the client.

    Neither the head of an answer nor a comment such as `: ping` is a token, because servers send both
    before the model has said anything. A chunk that holds only the role is none either.

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
    if timing.first_token is None and has_text(message.get("body", b"")):
        timing = replace(timing, first_token=now)
    return timing if message.get("more_body", False) else replace(timing, ended=now)
