"""A gateway in front of fake servers, in one event loop: what the gateway's tests share."""

import asyncio
import contextlib

import httpx
import uvicorn
from fake_openai import FakeServer

from utils.gateway.app import create_app
from utils.gateway.http_protocol import GatewayProtocol
from utils.gateway.server import Server
from utils.gateway.settings import load_settings

# Fakes, gateway and client share one event loop: a check that is late says nothing about a fake.
QUICK = {"every_s": 0.05, "timeout_s": 2.0, "circuit_failures": 3, "circuit_open_s": 0.3}
MODEL = "toy"


class Case:
    """`gateway` is the Gateway, `http` an httpx client at its address, `fakes` the servers behind it."""

    def __init__(self, gateway, server, url, fakes, http):
        self.gateway, self.server, self.url, self.fakes, self.http = (
            gateway,
            server,
            url,
            fakes,
            http,
        )

    async def ask(self, text="hello there", **fields):
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def stream(self, text="hello there", **fields):
        """The whole stream as bytes."""
        return (await self.ask(text, stream=True, **fields)).content

    def metric(self, name, **labels):
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0

    async def until(self, condition, patience_s=3.0):
        """Waits for something that has to come true."""
        async with asyncio.timeout(patience_s):
            while not condition():
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def case(*fakes, policy="least_outstanding", backend=None, urls=None, **settings):
    """A gateway in front of fakes. `urls` are the backends' addresses if they differ from the fakes'."""
    fakes = fakes or (FakeServer(),)
    async with contextlib.AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(fake)
        backends = [
            {"name": f"b{i}", "engine": "llama_cpp", "url": url, **(backend or {})}
            for i, url in enumerate(urls or [fake.url for fake in fakes])
        ]
        models = [{"name": MODEL, "policy": policy, "backends": backends}]
        settings = {"health": QUICK, "allow_anonymous": not settings.get("keys"), **settings}
        chosen = load_settings(models=models, port=0, **settings)
        app = create_app(chosen)
        config = uvicorn.Config(
            app, port=0, http=GatewayProtocol, log_level="critical", access_log=False
        )
        server = Server(config, app.state.gateway)
        serving = asyncio.create_task(server._serve())
        while not server.started:
            await asyncio.sleep(0.005)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        http = httpx.AsyncClient(base_url=url, timeout=20.0, trust_env=False)
        try:
            async with http:
                yield Case(app.state.gateway, server, url, fakes, http)
        finally:
            server.should_exit = True
            with contextlib.suppress(asyncio.CancelledError):
                await serving
