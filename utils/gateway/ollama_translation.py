"""Ollama behind the gateway: what its OpenAI API ignores goes over its own, and comes back as OpenAI's.

Only requests that name `options` or `keep_alive` take that way; their answers hold `timings` besides. All
others go to `/v1/chat/completions` as they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import msgspec

from utils.engines.ollama_chat import ONLY_NATIVE, ChatReply, NotTranslatable, native_body
from utils.http import sse_events

NATIVE_PATH = "/api/chat"
_SIGNS = tuple(f'"{field}"'.encode() for field in ONLY_NATIVE)
_LONGEST = 16 << 20


def native_request(body: bytes) -> bytes | None:
    """The body for `/api/chat`; None: `/v1/chat/completions` can answer this.

    Raises:
        NotTranslatable: Ollama's own API cannot express it.
    """
    if not any(sign in body for sign in _SIGNS):
        return None
    fields = msgspec.json.decode(body)
    if not any(fields.get(field) is not None for field in ONLY_NATIVE):
        return None
    try:
        return msgspec.json.encode(native_body(fields))
    except NotTranslatable:
        raise
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise NotTranslatable(f"Ollama's own API cannot express this: {error}") from None


def refusal(error: NotTranslatable) -> httpx.Response:
    """The answer to a request that cannot be translated, as the engine would have given it."""
    message = {"error": {"message": str(error), "type": "invalid_request_error"}}
    body = msgspec.json.encode(message)
    return httpx.Response(
        400, headers={"content-type": "application/json"}, stream=httpx.ByteStream(body)
    )


def translated(response: httpx.Response, model: str) -> httpx.Response:
    """An answer of `/api/chat` as one of `/v1/chat/completions`; its connection is closed with it.

    A stream of JSON lines becomes one of events; an answer in one piece stays one, errors too.
    """
    assert isinstance(response.stream, httpx.AsyncByteStream)
    streamed = "ndjson" in response.headers.get("content-type", "") and response.status_code == 200
    kind = "text/event-stream" if streamed else "application/json"
    body = (_Events if streamed else _Whole)(response.stream, model)
    return httpx.Response(response.status_code, headers={"content-type": kind}, stream=body)


class _Events(httpx.AsyncByteStream):
    """JSON lines in, events out."""

    def __init__(self, source: httpx.AsyncByteStream, model: str) -> None:
        self._source = source
        self._answer = ChatReply(model)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        async for piece in self._source:
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > _LONGEST:
                raise httpx.ReadError("a line without an end")
            if found := b"".join(self._event(line) for line in lines if line.strip()):
                yield found

    def _event(self, line: bytes) -> bytes:
        try:
            said = msgspec.json.decode(line)
            chunks = self._answer.chunks(said)
        except NotTranslatable as error:
            failed = {"message": str(error), "type": "upstream_error"}
            return sse_events.error_event(failed) + sse_events.encode(sse_events.DONE.decode())
        except msgspec.DecodeError as error:
            raise httpx.RemoteProtocolError("a line that is no JSON") from error
        events = b"".join(
            sse_events.encode(msgspec.json.encode(chunk).decode()) for chunk in chunks
        )
        return events + (sse_events.encode(sse_events.DONE.decode()) if said.get("done") else b"")

    async def aclose(self) -> None:
        await self._source.aclose()


class _Whole(httpx.AsyncByteStream):
    """One JSON object in, one out."""

    def __init__(self, source: httpx.AsyncByteStream, model: str) -> None:
        self._source = source
        self._answer = ChatReply(model)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = b"".join([piece async for piece in self._source])
        try:
            yield msgspec.json.encode(self._answer.whole(msgspec.json.decode(body)))
        except NotTranslatable as error:
            yield msgspec.json.encode({"error": {"message": str(error), "type": "upstream_error"}})
        except msgspec.DecodeError as error:
            raise httpx.RemoteProtocolError("an answer that is no JSON") from error

    async def aclose(self) -> None:
        await self._source.aclose()
