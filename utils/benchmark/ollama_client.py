"""A client for Ollama's own API, for the same measurements as over its OpenAI-compatible one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import httpx

from utils.benchmark.client import Client, pieces, raise_for_status
from utils.benchmark.response import ResponseCollector, ResponseError
from utils.benchmark.workload import Request
from utils.engines.ollama_chat import ChatReply, NotTranslatable, native_body
from utils.http.sse import DONE, Event


class OllamaClient(Client):
    """Sends chat requests to `/api/chat`; traces hold what Ollama says about its time.

    `extra_body` of a request may hold `options` and `keep_alive`, which its OpenAI API ignores. Ollama has no
    `ignore_eos`: answers end where the model ends them.
    """

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"{self.base_url}/api/chat"

    def body(self, request: Request) -> Mapping[str, Any]:
        """The request in Ollama's words."""
        return native_body(request.body(self.model, "chat"))

    async def read(
        self, response: httpx.Response, streamed: bool, collector: ResponseCollector
    ) -> None:
        """Reads JSON lines, each as it arrives, as the chunks that they stand for."""
        await raise_for_status(response)
        answer = ChatReply(self.model)
        try:
            if not streamed:
                whole = answer.whole(json.loads(await response.aread()))
                collector.whole(json.dumps(whole).encode(), perf_counter())
                return
            rest = b""
            async for at, piece in pieces(response):
                *lines, rest = (rest + piece).split(b"\n")
                for line in filter(None, lines):
                    _take(collector, answer, json.loads(line), at)
            if rest.strip():
                _take(collector, answer, json.loads(rest), perf_counter())
        except NotTranslatable as error:
            raise ResponseError(f"error in mid-stream: {error}") from error
        except ValueError as error:
            raise ResponseError(f"not JSON: {error}") from error
        collector.end()


def _take(
    collector: ResponseCollector, answer: ChatReply, line: Mapping[str, Any], at: float
) -> None:
    for chunk in answer.chunks(line):
        collector.event(Event(json.dumps(chunk)), at)
    if line.get("done"):
        collector.event(Event(DONE), at)
