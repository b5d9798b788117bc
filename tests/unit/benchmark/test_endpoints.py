"""Endpoints that are not an engine of ours: TLS, other base URLs, keys, redirects and proxies."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest
from benchmark_adversary import Adversary, Exchange, Script, usage

from utils.benchmark import Client, Request, RequestTrace


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that is its own authority, and its key in one file."""
    folder = tmp_path_factory.mktemp("tls")
    both = folder / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    both.write_text((folder / "key.pem").read_text() + (folder / "certificate.pem").read_text())
    return both


def tls_server(script: Script, certificate: Path) -> Adversary:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return Adversary(script, context)


def ask(url: str, count: int = 1, **options: object) -> list[RequestTrace]:
    async def main() -> list[RequestTrace]:
        async with Client(url, "m", **options) as client:  # type: ignore[arg-type]
            return [await client.send(Request("hi", max_tokens=8)) for _ in range(count)]

    return asyncio.run(main())


async def good(exchange: Exchange) -> None:
    await exchange.answer("a", "b", usage=usage(3, 2))


def test_private_authority_is_trusted_when_the_environment_names_it(certificate, monkeypatch):
    with tls_server(good, certificate) as server:
        refused = ask(server.base_url)[0]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusted = ask(server.base_url)[0]
    assert "certificate isn't trusted" in str(refused.error)
    assert "SSL_CERT_FILE" in str(refused.error)
    assert trusted.error is None
    assert trusted.text == "ab"
    assert trusted.ttft() > 0


def test_dropped_connection_is_resent_over_tls_as_over_http(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def breaks_its_promise(exchange: Exchange) -> None:
        if exchange.on_connection:
            exchange.close()
        await good(exchange)

    with tls_server(breaks_its_promise, certificate) as server:
        traces = ask(server.base_url, 4)
    assert [trace.error for trace in traces] == [None] * 4
    assert [trace.resends for trace in traces] == [0, 1, 0, 0]


def test_https_to_an_http_server_says_so_at_once():
    with Adversary(good) as server:
        trace = ask(server.base_url.replace("http://", "https://"))[0]
    assert "Use an http:// address" in str(trace.error) or "Is it an http://" in str(trace.error)


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/v1beta/openai", "/v1beta/openai/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
        ("/api/v3/chat/completions", "/api/v3/chat/completions"),
        ("/openai?api-version=2", "/openai/chat/completions?api-version=2"),
    ],
)
def test_base_url_with_another_path_is_used_as_it_is(base, path):
    with Adversary(good) as server:
        assert ask(server.base_url + base)[0].error is None
        assert server.requests[0].path == path


def test_redirect_is_named_and_not_followed():
    async def moved(exchange: Exchange) -> None:
        await exchange.raw(
            b"HTTP/1.1 308 Permanent Redirect\r\nLocation: /v2/chat/completions?key=SECRET\r\n"
            b"Content-Length: 0\r\n\r\n"
        )

    with Adversary(moved) as server:
        error = str(ask(server.base_url)[0].error)
        assert f"redirects to {server.base_url}/v2/chat/completions. Use that address" in error
        assert len(server.requests) == 1
    assert "SECRET" not in error


def test_key_from_a_file_loses_its_line_break():
    with Adversary(good) as server:
        assert ask(server.base_url, api_key="abc\n")[0].error is None
        assert server.requests[0].headers["authorization"] == "bearer abc"


@pytest.mark.parametrize("key", ["ab\r\nX-Evil: 1", "a\0b", "schlüssel"])
def test_key_that_would_break_the_request_is_refused(key):
    with pytest.raises(ValueError, match="API key") as caught:
        Client("http://127.0.0.1:9", "m", api_key=key)
    assert key not in str(caught.value)


def test_header_with_a_line_break_never_reaches_the_wire():
    async def main(url: str) -> str:
        client = Client(url, "m")
        client._headers["X-Note"] = "a\r\nX-Evil: 1"
        async with client:
            return str((await client.send(Request("hi"))).error)

    with Adversary(good) as server:
        error = asyncio.run(main(server.base_url))
        assert not server.requests
    assert "header X-Note" in error
    assert "Evil" not in error


def test_password_and_query_of_an_address_are_not_shown():
    client = Client("http://user:secret@127.0.0.1:9/v1?key=SECRET", "m")
    assert client.base_url == "http://127.0.0.1:9"


def test_proxy_is_used_only_when_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with Adversary(good) as proxy, Adversary(good) as server:
        assert ask(server.base_url)[0].error is None
        assert not proxy.requests
        assert ask(server.base_url, proxy=proxy.base_url)[0].error is None
        assert proxy.requests[0].path == f"{server.base_url}/v1/chat/completions"
