"""Addresses of host names, looked up in threads that nobody has to wait for.

asyncio looks names up in its pool of threads, and the end of the event loop waits for that pool. A name
server that doesn't answer therefore delays the end of a program by half a minute. The threads here are
daemons, so neither the loop nor the interpreter waits for them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from contextlib import suppress


def is_address(host: str) -> bool:
    """Tell whether a host is an IP address already."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Names:
    """Look-ups of one owner, with the answers of the last seconds.

    Args:
        timeout_s: Limit for one look-up. The next caller waits for the same look-up if it still runs.
        fresh_s: Time for which an answer is used before the name is looked up again, s.
    """

    def __init__(self, timeout_s: float = 2.0, fresh_s: float = 5.0) -> None:
        self._timeout_s = timeout_s
        self._fresh_s = fresh_s
        self._known: dict[str, tuple[float, list[str]]] = {}
        self._running: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, host: str) -> list[str]:
        """Return the addresses of a host, in the order of the system's resolver.

        If the name server fails, addresses that were found earlier are returned again, because a name
        server that is down says nothing about the hosts that it knew.

        Raises:
            OSError: If the name is unknown, or nothing answered in time (TimeoutError is an OSError).
        """
        if is_address(host):
            return [host]
        at, known = self._known.get(host, (0.0, []))
        if known and time.monotonic() - at < self._fresh_s:
            return known
        running = self._running.get(host)
        if running is None:
            running = self._running[host] = self._start(host)
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await asyncio.shield(running)
        except (OSError, UnicodeError):
            if known:
                return known
            raise
        self._known[host] = (time.monotonic(), found)
        return found

    def _start(self, host: str) -> asyncio.Future[list[str]]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str]] = loop.create_future()
        # Somebody who gave up doesn't read the exception, so it is read here.
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

        def settle(found: list[str] | Exception) -> None:
            self._running.pop(host, None)
            if future.done():
                return
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)

        def work() -> None:
            found: list[str] | Exception
            try:
                rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                found = list(dict.fromkeys(str(row[4][0]) for row in rows))
            except (OSError, UnicodeError) as error:
                found = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, found)

        threading.Thread(target=work, name=f"look-up {host}", daemon=True).start()
        return future
