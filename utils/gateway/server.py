"""Runs the gateway, and ends it without cutting anybody off."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import time
from contextlib import suppress
from types import FrameType

import uvicorn

from utils.gateway import drain
from utils.gateway.app import Gateway, create_app
from utils.gateway.http_protocol import GatewayProtocol
from utils.gateway.logs import say, set_up
from utils.gateway.settings import GatewaySettings

_POLL_S = 0.05
_AFTER_CUT_S = 2.0
_SAME_SIGNAL_S = 1.0  # one to the process and one to its group are one request to stop
_BACKLOG = 2048


class Server(uvicorn.Server):
    """uvicorn, with a notice before it stops to listen (`drain.phase`). A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self.gateway = gateway
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says where."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what lives as long as the server is not looked through again and again
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            say("listening", host=self.config.host, port=port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT."""
        began = self.gateway.drain_began
        if self._loop is None or (began is not None and time.monotonic() - began > _SAME_SIGNAL_S):
            self.should_exit = self.force_exit = True
        if self._loop is None or began is not None:
            return
        self.gateway.begin_drain()
        self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        while self.gateway.phase == drain.LEAVING:
            await asyncio.sleep(_POLL_S)
        self.should_exit = True  # the socket closes; requests in flight go on


def run(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or SIGINT."""
    set_up(settings.log_level)
    app = create_app(settings)
    limits = settings.drain
    config = uvicorn.Config(
        app,
        http=GatewayProtocol,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_level="critical",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=int(limits.limit_s + _AFTER_CUT_S),
        timeout_keep_alive=75,
        server_header=False,
        date_header=False,
        lifespan="on",
    )
    server = Server(config, app.state.gateway)
    with suppress(KeyboardInterrupt):
        server.run()
    say("stopped")


assert signal.SIGTERM in uvicorn.server.HANDLED_SIGNALS
