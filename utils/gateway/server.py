"""Runs the gateway, and ends it without cutting anybody off."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from utils.gateway import drain
from utils.gateway.app import Gateway, create_app
from utils.gateway.http_protocol import GatewayProtocol
from utils.gateway.logs import say, set_up
from utils.gateway.private_api import create_private_app
from utils.gateway.settings import GatewaySettings, SettingsError

_POLL_S = 0.05
_AFTER_CUT_S = 2.0
_SAME_SIGNAL_S = 1.0  # one to the process and one to its group are one request to stop
_BACKLOG = 2048
_MOST_FILES = 1 << 20


class Server(uvicorn.Server):
    """uvicorn, with a notice before it stops to listen (`drain.phase`). A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self.gateway = gateway
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.private: uvicorn.Server | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        self._loop = asyncio.get_running_loop()
        await self._open_private_port()
        await super().startup(sockets)
        with suppress(ValueError, RuntimeError, NotImplementedError):  # only the main thread may
            self._loop.add_signal_handler(signal.SIGHUP, self.handle_hangup)
        gc.collect()
        gc.freeze()  # what lives as long as the server is not looked through again and again
        if self.started:
            port = self.servers[0].sockets[0].getsockname()[1]
            say("listening", host=self.config.host, port=port)

    async def _open_private_port(self) -> None:
        private = self.gateway.settings.private
        if private.port is None:
            return
        api = self.config.app
        assert isinstance(api, FastAPI)
        config = uvicorn.Config(
            create_private_app(self.gateway, api),
            host=private.host,
            port=private.port,
            access_log=False,
            log_level="critical",
            lifespan="off",
            server_header=False,
        )
        config.load()
        self.private = uvicorn.Server(config)
        self.private.lifespan = config.lifespan_class(config)
        await self.private.startup()
        port = self.private.servers[0].sockets[0].getsockname()[1]
        say("private port", host=private.host, port=port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the connections, and the private port last: its metrics tell how the drain goes."""
        await super().shutdown(sockets)
        if self.private is not None:
            await self.private.shutdown()

    def handle_hangup(self) -> None:
        """Load the settings again at SIGHUP. Wrong ones change nothing."""
        try:
            self.gateway.reload()
        except SettingsError as error:
            say("not reloaded", logging.ERROR, error=str(error))

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


def raise_file_limit() -> int:
    """Raise the limit of open files as far as this process may, and return it.

    The usual soft limit is 1024. A stream needs two descriptors, so it is enough for 500 of them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, _MOST_FILES) if hard != resource.RLIM_INFINITY else _MOST_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def run(settings: GatewaySettings, load: Callable[[], GatewaySettings] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: The settings to begin with.
        load: Loads them again at SIGHUP.
    """
    set_up(settings.log_level)
    say("files", limit=raise_file_limit())
    app = create_app(settings)
    app.state.gateway.load = load
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
