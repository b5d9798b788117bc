"""A circuit breaker as a state machine: a backend that keeps failing is left alone for a while.

    closed ──(threshold failures in a row)──▶ open ──(open_s passed)──▶ half open ──(probe succeeds)──▶ closed
                                               ▲                            │
                                               └──────(probe fails)─────────┘

Source: M. Nygard, "Release It!", chapter "Circuit Breaker".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"
STATES = (CLOSED, HALF_OPEN, OPEN)  # by how bad it is: the number that the metric shows


@dataclass(frozen=True)
class Circuit:
    """The state of one backend's breaker.

    Attributes:
        threshold: Failures in a row that open it.
        open_s: Time for which it stays open before a probe may go, s.
        state: `closed`, `open` or `half_open` (a probe is on its way).
        failures: Failures in a row, while closed.
        opened_at: Time when it opened last, s.
    """

    threshold: int = 3
    open_s: float = 5.0
    state: str = CLOSED
    failures: int = 0
    opened_at: float = 0.0


def admits(circuit: Circuit, now: float) -> bool:
    """Return whether a request may be sent: closed, or open for long enough that one may try."""
    if circuit.state == OPEN:
        return now - circuit.opened_at >= circuit.open_s
    return circuit.state == CLOSED


def step(circuit: Circuit, event: str, now: float) -> Circuit:
    """Return the state after an event.

    Args:
        circuit: Before.
        event: `sent` (a request that `admits` allowed), `success` or `failure` (how a request ended), or
            `cancelled` (its client went away: that says nothing about the backend).
        now: Time, s.

    Returns:
        The state after. A result that arrives while the circuit is open changes nothing: its request was
        sent before it opened.

    Raises:
        ValueError: No such event.
    """
    if event not in ("sent", "success", "failure", "cancelled"):
        raise ValueError(f"no such event: {event!r}")
    if event == "sent":
        return replace(circuit, state=HALF_OPEN) if circuit.state == OPEN else circuit
    if circuit.state == OPEN:
        return circuit
    if event == "success":
        return replace(circuit, state=CLOSED, failures=0)
    if event == "cancelled":
        # The probe told nothing: open again, but without a new wait.
        return replace(circuit, state=OPEN) if circuit.state == HALF_OPEN else circuit
    failures = circuit.failures + 1
    if circuit.state == HALF_OPEN or failures >= circuit.threshold:
        return replace(circuit, state=OPEN, failures=0, opened_at=now)
    return replace(circuit, failures=failures)
