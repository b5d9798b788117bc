"""Facts about one request that is being answered, and the way to end it from outside."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from utils.gateway.timing import Timing


@dataclass(slots=True, eq=False)
class RequestContext:
    """State of one request, shared by middleware, relay and watchers.

    Attributes:
        request_id: The client's own, or a new one; engines get it too.
        timing: Beginning and end of its answer.
        request_headers: Headers of the request, with names in lower case. The first of a name counts.
        route: The path, for metrics.
        client: IP address of the client.
        caller, model, backend: Names of the key, the model and the backend that answers.
        headers: Headers that its answer gets, whoever makes it.
        outcome: Its end.
        stage: Event that it waits for: `engine`, `read` (the next piece) or `send` (the client).
        since: Time since when it waits, s.
        prompt_tokens, completion_tokens: As the engine counted them.
        pieces: Pieces of its stream that were relayed; no count of tokens, but a lower bound.
        retries: Number of times it was sent again.
        stream: True if the client asked for a stream.
        cut_by: Why it was ended from outside; "" if it was not.
        finished: Its answer is complete and only has to be taken: nothing but `slow_client` ends it now.
        task: The task to cancel; None once nothing can be cut any more.
        deadline: Time when it has to be done at the latest, s.
        opens_by: Time when the first token of its answer has to be there, s; else another backend is tried.
        abandoned: Why the attempt at a backend was given up; "" if it was not.
        ping: Sends a comment to a client that waits for a stream; None if there is nothing to keep open.
        pinged: Time when it was called last, s.
    """

    request_id: str
    timing: Timing
    request_headers: Mapping[str, str] = field(default_factory=dict)
    route: str = ""
    client: str = ""
    caller: str = ""
    model: str = ""
    backend: str = ""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    outcome: str = "ok"
    stage: str = "engine"
    since: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retries: int = 0
    pieces: int = 0
    stream: bool = False
    cut_by: str = ""
    finished: bool = False
    task: asyncio.Task[object] | None = None
    deadline: float = math.inf
    opens_by: float = math.inf
    abandoned: str = ""
    ping: Callable[[], Awaitable[None]] | None = None
    pinged: float = 0.0

    def cut(self, reason: str) -> None:
        """End it, once: `client_gone`, `idle`, `slow_client`, `deadline` or `draining`."""
        if self.finished and reason != "slow_client":
            return
        if self.task is not None and not self.cut_by:
            self.cut_by = reason
            self.task.cancel()

    def abandon(self, reason: str) -> None:
        """Give up the attempt that waits for a first token: `timeout` or `down`. Another may follow."""
        if self.task is not None and not (self.cut_by or self.abandoned):
            self.abandoned = reason
            self.opens_by = math.inf
            self.task.cancel()
