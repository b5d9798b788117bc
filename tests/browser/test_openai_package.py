"""OpenAI's package for JavaScript in a real browser, on a page of an origin that `cors_origins` names."""

import asyncio
import contextlib
import functools
import http.server
import threading

import pytest
from chromium import PROGRAM, browser
from fake_openai import FakeServer
from gateway_case import MODEL, case

from benchmarks.peers import OPENAI_JS
from utils.gateway.auth import digest

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="not run here: there is no Chromium"),
    pytest.mark.skipif(
        not OPENAI_JS.done(), reason="not run here: needs .peers/openai-js (make peers)"
    ),
]
ASK = """(async () => {
    const { default: OpenAI } = await import("/index.mjs");
    const options = { apiKey: "gw-page", baseURL: "%s/v1", maxRetries: 0, dangerouslyAllowBrowser: true };
    const client = new OpenAI(options);
    const ask = { model: "%s", messages: [{ role: "user", content: "hello" }] };
    const whole = await client.chat.completions.create(ask).withResponse();
    let text = "";
    for await (const chunk of await client.chat.completions.create({ ...ask, stream: true }))
        text += chunk.choices[0]?.delta?.content || "";
    let error = "";
    try { await client.chat.completions.create({ ...ask, model: "none" }); } catch (e) { error = e.code; }
    return { whole: whole.data.choices[0].message.content, text, error,
             left: whole.response.headers.get("x-ratelimit-remaining-requests") };
})()"""


class Files(http.server.SimpleHTTPRequestHandler):
    extensions_map = {".mjs": "text/javascript", "": "text/html"}  # noqa: RUF012 (http.server's own)

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/":
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>A page</title>")
            return
        super().do_GET()


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # the package has 236 files, and a busy machine accepts them late


@contextlib.contextmanager
def site():
    """A page at another origin, with the package's files."""
    handler = functools.partial(Files, directory=OPENAI_JS.target)
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


async def answers(page, origin, gateway):
    await page.open(origin)
    return await page.js(ASK % (gateway, MODEL))


def test_openais_package_works_in_browser_from_named_origin():
    async def work(origin):
        keys = [{"name": "k", "sha256": digest("gw-page")}]
        async with case(FakeServer(), keys=keys, cors_origins=[origin]) as c, browser() as page:
            found = await answers(page, origin, c.url)
        assert found == {
            "whole": "hello hello hello hello hello",
            "text": "hello hello hello hello hello",
            "error": "model_not_found",
            "left": "599",
        }

    with site() as origin:
        asyncio.run(asyncio.wait_for(work(origin), 90))


def test_openais_package_is_refused_from_other_origin():
    async def work(origin):
        keys = [{"name": "k", "sha256": digest("gw-page")}]
        async with case(keys=keys, cors_origins=["https://a.example"]) as c, browser() as page:
            with pytest.raises(AssertionError, match="Connection error"):
                await answers(page, origin, c.url)
            assert c.fakes[0].requests == []

    with site() as origin:
        asyncio.run(asyncio.wait_for(work(origin), 90))
