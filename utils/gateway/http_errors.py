"""Errors in the form that OpenAI's clients understand."""

from __future__ import annotations

import json
import math
from typing import Any


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: Text for people, with the error and the next step.
        kind: OpenAI's `type`, for instance `invalid_request_error`.
        code: OpenAI's `code`, for instance `model_not_found`; for programs.
        outcome: Name under which metrics and logs count the request.
        param: The field that is wrong.
        retry_after_s: Time when to try again, s; None: not said.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        outcome: str = "client_error",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.outcome = outcome
        self.param = param
        self.retry_after_s = retry_after_s

    def fields(self) -> dict[str, Any]:
        """Return the object under the key `error`."""
        return {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }

    def body(self) -> bytes:
        """Return the answer's body."""
        return json.dumps({"error": self.fields()}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return `Retry-After` in whole seconds if it is known; for 401, return the way to authenticate.

        After a failure of engines, `x-should-retry` tells OpenAI's clients not to try again: the gateway has
        done that already, and retries at two layers multiply.
        """
        found = []
        if self.status in (502, 504):
            found.append((b"x-should-retry", b"false"))
        if self.retry_after_s is not None:
            found.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after_s))))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


def upstream_error(message: str, outcome: str = "upstream_error", status: int = 502) -> ApiError:
    """Return the error for a fault of the engine, not of the client."""
    return ApiError(status, message, kind="server_error", code="upstream_error", outcome=outcome)


def unavailable(message: str, code: str, outcome: str, retry_after_s: float) -> ApiError:
    """Return the error for a time when nobody can answer; a later try may help."""
    return ApiError(
        503, message, kind="server_error", code=code, outcome=outcome, retry_after_s=retry_after_s
    )
