"""Other people's software against the gateway: LangChain's client, and schemathesis on its OpenAPI document.

Both live in an environment of their own (`make peers`).
"""

import asyncio
import json

import pytest
from fake_openai import FakeServer
from gateway_case import MODEL, case
from test_gateway_relay import run

from benchmarks.peers import CLIENTS, free_environment
from utils.gateway.auth import new_key
from utils.profiles import ROOT

LANGCHAIN = ROOT / "tests" / "support" / "langchain_client.py"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,unsupported_method,"
    "allow_header_conformance,response_schema_conformance"
)
pytestmark = pytest.mark.skipif(
    not CLIENTS.done(), reason="not run here: needs .peers/clients (make peers)"
)


async def output_of(*command):
    """What a program of the environment prints; it runs beside the gateway, which is in this event loop."""
    environment = free_environment(PYTHONDONTWRITEBYTECODE="1")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=pipe, stderr=asyncio.subprocess.STDOUT, env=environment
    )
    try:
        text = (await process.communicate())[0].decode()
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, text
    return text


def test_langchains_client_is_at_home():
    async def work():
        key, sha256 = new_key()
        async with case(FakeServer(), keys=[{"name": "k", "sha256": sha256}]) as c:
            python = CLIENTS.target / "bin" / "python"
            text = await output_of(python, LANGCHAIN, c.url, c.fakes[0].url, key, MODEL)
            found = json.loads(text.splitlines()[-1])
        assert found["text"] == found["streamed text"] == "two two two two two"
        assert found["usage"] == found["streamed usage"] == 5 and found["pieces"] >= 5
        assert found["call"][0]["name"] == "weather"
        assert found["streamed call"][0]["args"] == {"city": "Lund"}
        errors = found["errors"]
        for what, kind, code in (
            ("key", "AuthenticationError", "invalid_api_key"),
            ("model", "NotFoundError", "model_not_found"),
            ("field", "BadRequestError", "invalid_body"),
            ("broken", "APIError", "upstream_error"),
            ("engine", "InternalServerError", "upstream_error"),
        ):
            assert kind in errors[what]["kinds"] and errors[what]["code"] == code, errors[what]

    run(work())


def test_schemathesis_finds_no_5xx_and_nothing_undocumented(tmp_path):
    async def work():
        st = CLIENTS.target / "bin" / "st"
        async with case() as c:
            document = f"{c.url}/openapi.json"
            options = ["--checks", CHECKS, "--phases", "coverage,fuzzing", "--max-examples", "10"]
            options += ["--seed", "7", "--no-color"]
            await output_of("env", "-C", tmp_path, st, "run", document, *options)
            answered = c.metric(
                "gateway_requests_total",
                route="/v1/chat/completions",
                model=MODEL,
                backend="b0",
                outcome="ok",
            )
            assert answered, "some bodies are right, and reach an engine"

    asyncio.run(asyncio.wait_for(work(), 240))
