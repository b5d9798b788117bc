"""One request being answered: what is known of it, and how it is ended from outside."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from utils.gateway.timing import Timing


@dataclass(slots=True, eq=False)
class RequestContext:
    """State of one request, shared by middleware, relay and watchers.

    Attributes:
        request_id: The client's own, or a new one; engines get it too.
        timing: When its answer began and ended.
        route: The path, for metrics.
        client: IP address of the client.
        caller, model, backend: Who asked what, and who answered; names only.
        headers: Headers that its answer gets, whoever makes it.
        outcome: What became of it.
        stage: What it waits for: `engine`, `read` (the next piece) or `send` (the client).
        since: Since when, s.
        prompt_tokens, completion_tokens: As the engine counted them.
        pieces: Pieces of its stream that were relayed; no count of tokens, but a lower bound.
        retries: How often it was sent again.
        stream: Whether the client asked for a stream.
        cut_by: Why it was ended from outside; "" if it was not.
        finished: Its answer is complete and only has to be taken: nothing but `slow_client` ends it now.
        task: The task to cancel; None once nothing can be cut any more.
    """

    request_id: str
    timing: Timing
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

    def cut(self, reason: str) -> None:
        """Ends it, once: `client_gone`, `idle`, `slow_client`, `deadline` or `draining`."""
        if self.finished and reason != "slow_client":
            return
        if self.task is not None and not self.cut_by:
            self.cut_by = reason
            self.task.cancel()
