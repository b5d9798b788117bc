"""Draining: the phases of a server from SIGTERM to its end, so that nobody is cut off."""

from __future__ import annotations

SERVING, LEAVING, FINISHING, CUTTING, DONE = "serving", "leaving", "finishing", "cutting", "done"


def phase(since_s: float | None, in_flight: int, notice_s: float, limit_s: float) -> str:
    """Return the phase to be in now.

    Args:
        since_s: Seconds since SIGTERM; None: there was none.
        in_flight: Requests that are being answered.
        notice_s: Time for which the server is "not ready" but still serves, until load balancers notice.
        limit_s: Longest time of requests in flight after SIGTERM.

    Returns:
        `serving`; `leaving`: not ready, but new requests are still served; `finishing`: no new requests,
        those in flight go on; `cutting`: they took too long, and end with an error; `done`: exit now.
    """
    if since_s is None:
        return SERVING
    if since_s < notice_s:
        return LEAVING
    if in_flight == 0:
        return DONE
    return FINISHING if since_s < limit_s else CUTTING
