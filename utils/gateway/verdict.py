"""Whose fault a failure is. A status code alone can't tell, so failures are compared with other backends.

A 404 in front of one engine speaks about its set-up: the gateway chose the path and the model's name, and the
client chose neither. A 500 from every engine speaks about the request. And a request that takes too long
speaks against an engine only if the others are quicker.
"""

from __future__ import annotations

import email.utils
import time
from enum import StrEnum

# Of all answers, only these speak about the request's content (RFC 9110, section 15.5).
_OF_THE_REQUEST = frozenset({400, 409, 413, 414, 415, 422, 431})
DEFAULT_BUSY_S = 1.0
LONGEST_BUSY_S = 60.0


class Verdict(StrEnum):
    """The subject that an engine's HTTP status speaks about."""

    ANSWER = "answer"
    REQUEST = "request"  # the client gets it as it is
    BUSY = "busy"  # the engine wants a pause
    SETUP = "setup"  # the engine's configuration: no such model there, a key is needed, a redirect
    ENGINE = "engine"  # it failed, or the request made it fail


def of_status(status: int) -> Verdict:
    """Tell what an engine's status speaks about."""
    if status == 200:
        return Verdict.ANSWER
    if status in _OF_THE_REQUEST:
        return Verdict.REQUEST
    if status in (429, 503):
        return Verdict.BUSY
    return Verdict.ENGINE if status >= 500 else Verdict.SETUP


class Ending(StrEnum):
    """End of a request after its failed attempts."""

    ANSWERED = "answered"  # by another backend
    REFUSED = "refused"  # by another backend, as the client's error
    NOTHING = "nothing"


class Against(StrEnum):
    """Condition under which a failure counts against the backend."""

    ALWAYS = "always"  # nobody listens there
    UNLESS_ALL = (
        "unless all fail"  # if several backends fail on one request, it is the request's fault
    )
    SETUP = "unless all have it"  # the same, but another's refusal shows that it was asked the right way
    IF_SLOWER = "if others were quicker"
    NEVER = "never"  # busy, or the gateway's own shortage


COMPARED = (Against.UNLESS_ALL, Against.SETUP)


def counts(against: Against, ending: Ending, failed: int, others_quicker: bool) -> bool:
    """Tell whether a failed attempt counts against its backend.

    Args:
        against: The kind of failure.
        ending: End of the request.
        failed: Number of backends that failed on this request in a way that is `COMPARED`.
        others_quicker: True if another backend has answered lately, and in less time.
    """
    if against in COMPARED:
        alone = ending is Ending.NOTHING and failed == 1
        refused = against is Against.SETUP and ending is Ending.REFUSED
        return ending is Ending.ANSWERED or alone or refused
    if against is Against.IF_SLOWER:
        return ending is Ending.ANSWERED or others_quicker
    return against is Against.ALWAYS


def busy_for(retry_after: str | None) -> float:
    """Return how long a busy engine gets no requests, from its header `Retry-After`, s."""
    if not retry_after:
        return DEFAULT_BUSY_S
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return DEFAULT_BUSY_S
    return min(max(seconds, 0.0), LONGEST_BUSY_S) if seconds == seconds else DEFAULT_BUSY_S
