"""The examples for nginx and Caddy, with a certificate, in front of a real gateway: streams in pieces."""

import asyncio
import contextlib
import getpass
import shutil
import ssl
import subprocess

import httpx
import pytest
from fake_openai import FakeServer
from gateway_case import MODEL, case

from utils.engines.runtime import free_port
from utils.profiles import ROOT

PROXY = ROOT / "docker" / "proxy"
NAME = "llm.example"
NGINX, CADDY = shutil.which("nginx"), shutil.which("caddy")


def run(work):
    asyncio.run(asyncio.wait_for(work, 60))


def certificate(folder):
    """A certificate for `NAME`, signed by itself."""
    key, cert = folder / "privkey.pem", folder / "fullchain.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", f"/CN={NAME}"]
    subprocess.run(
        [*command, "-addext", f"subjectAltName=DNS:{NAME}"], check=True, capture_output=True
    )
    return cert, key


def replaced(text, *changes):
    for right, other in changes:
        assert right in text, right
        text = text.replace(right, other)
    return text


def nginx(folder, upstream, port):
    cert, key = certificate(folder)
    paths = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = replaced(
        (PROXY / "nginx.conf").read_text(),
        ("127.0.0.1:8080", upstream),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/nginx/tls/fullchain.pem", str(cert)),
        ("/etc/nginx/tls/privkey.pem", str(key)),
        ("worker_processes auto;", f"user {getpass.getuser()}; daemon off; pid {folder}/pid;"),
        ("http {", f"http {{ access_log off; {paths}"),
    )
    (folder / "nginx.conf").write_text(text)
    return [NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"]


def caddy(folder, upstream, port):
    cert, key = certificate(folder)
    options = "{\n\tadmin off\n\tauto_https disable_redirects\n\thttp_port 0\n}\n"
    text = replaced(
        (PROXY / "Caddyfile").read_text(),
        ("127.0.0.1:8080", upstream),
        (f"\n{NAME} {{", f"\n{NAME}:{port} {{\n\tbind 127.0.0.1\n\ttls {cert} {key}"),
    )
    (folder / "Caddyfile").write_text(options + text)
    return [CADDY, "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"]


@contextlib.asynccontextmanager
async def in_front(make, folder, url):
    """A proxy in front of a gateway: a client whose requests go to `NAME` through it."""
    port = free_port()
    command = list(map(str, make(folder, url.removeprefix("http://"), port)))
    process = await asyncio.create_subprocess_exec(
        *command,
        stderr=asyncio.subprocess.PIPE,
        env={"HOME": str(folder)},
    )
    trust = ssl.create_default_context(cafile=str(folder / "fullchain.pem"))
    options = {"verify": trust, "trust_env": False, "timeout": 20.0}
    try:
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", **options) as client:
            client.headers["host"] = NAME
            async with asyncio.timeout(20):
                while not await _answers(client):
                    assert process.returncode is None, (await process.stderr.read()).decode()
                    await asyncio.sleep(0.05)
            yield client
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.communicate()


NAMED = {"sni_hostname": NAME}


async def _answers(client):
    with contextlib.suppress(httpx.HTTPError):
        return (await client.get("/health/live", extensions=NAMED)).status_code == 200
    return False


def reason(program):
    return f"not run here: no {program} (Debian, Ubuntu: apt install {program})"


PROXIES = [
    pytest.param(
        make,
        marks=pytest.mark.skipif(found is None, reason=reason(program)),
        id=program,
    )
    for make, program, found in ((nginx, "nginx", NGINX), (caddy, "caddy", CADDY))
]


class HalfServer(FakeServer):
    """A fake that sends half of its stream, and the rest when `rest` is set."""

    def __init__(self):
        super().__init__(tokens=4)
        self.rest = asyncio.Event()
        self._pieces = 0

    async def _send(self, writer, text):
        self._pieces += 1
        if self._pieces == 3:
            await self.rest.wait()
        await super()._send(writer, text)


@pytest.mark.parametrize("make", PROXIES)
def test_proxy_passes_stream_piece_by_piece(make, tmp_path):
    async def work():
        fake = HalfServer()
        async with (
            case(fake, hosts=[NAME]) as c,
            in_front(make, tmp_path, c.url) as client,
        ):
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
            ask = client.stream("POST", "/v1/chat/completions", json=body, extensions=NAMED)
            async with ask as answer:
                assert answer.status_code == 200
                lines = answer.aiter_lines()
                assert "hi" in await anext(lines), "it comes although the engine has not ended"
                fake.rest.set()
                rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"

    run(work())


@pytest.mark.parametrize("make", PROXIES)
def test_proxy_passes_long_bodies_and_names_request(make, tmp_path):
    async def work():
        async with (
            case(hosts=[NAME]) as c,
            in_front(make, tmp_path, c.url) as client,
        ):
            body = {"model": MODEL, "messages": [{"role": "user", "content": "A" * 8_000_000}]}
            answer = await client.post("/v1/chat/completions", json=body, extensions=NAMED)
            assert answer.status_code == 200, answer.text
            sent = c.fakes[0].headers[-1]["x-request-id"]
            assert sent == answer.headers["x-request-id"].lower()
            assert len(sent) >= 32

    run(work())
