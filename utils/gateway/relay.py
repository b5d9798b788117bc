"""Sends a request to an engine and its answer to the client, with second chances.

Until the first token is here, a failed attempt is repeated on another backend. After it, a failure ends the
stream with an error event: an answer is never begun twice, and never ends silently.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from utils.gateway import verdict
from utils.gateway.backend import Backend
from utils.gateway.http_errors import ApiError, unavailable, upstream_error
from utils.gateway.pool import Pool
from utils.gateway.request_context import RequestContext
from utils.gateway.schemas import OPTIONAL, PATHS, Api, ParsedRequest
from utils.gateway.settings import GatewaySettings
from utils.gateway.verdict import Against, Ending, Verdict
from utils.http import sse
from utils.http.answers import data_has_text, error_text
from utils.http.transport import DroppedBeforeResponse, OwnShortage, TimedStream

Send = Any  # ASGI's
Read = Callable[[], Awaitable[bytes]]  # the next piece of an answer; b"" at its end
_LARGEST_ANSWER = 64 << 20
_LARGEST_EVENT = 16 << 20
_USAGE = (b'"usage":{', b'"usage": {')
_FINISH = (b'"finish_reason":"', b'"finish_reason": "')
# Asked for by `return_progress` (llama.cpp): such a client wants them before the first token.
_PROGRESS = b'"prompt_progress"'
# The last event of a stream of the Responses API and of the Messages API; theirs have no [DONE].
_LAST_KINDS = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "message_stop"}
)
_NO_SUCH_API = (404, 405, 501)  # llama.cpp says 501 for embeddings if it was started without them
_ONE_PIECE = ("", "identity")  # content encodings that change nothing
EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    input_tokens: int = 0  # the Responses and Messages APIs' names
    output_tokens: int = 0


class _Nested(msgspec.Struct):
    usage: _Usage | None = None


class _Counted(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[msgspec.Raw] = []
    response: _Nested | None = None
    message: _Nested | None = None
    error: msgspec.Raw | None = None


class UpstreamError(Exception):
    """Failure of an attempt before the first token of its answer.

    Args:
        reason: Word for metrics: `connect`, `timeout`, `cut`, `http_500` and so on.
        error: Answer for the client if there is no other chance.
        against: Condition under which it counts against the backend.
    """

    def __init__(self, reason: str, error: ApiError, against: Against = Against.UNLESS_ALL) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error
        self.against = against


@dataclass(frozen=True)
class FailedAttempt:
    """An attempt that failed, kept until it is clear whose fault it was.

    Attributes:
        backend: Where.
        number: The request's number there.
        waited_s: Time that it was waited for.
        against: Condition under which it counts against the backend.
    """

    backend: Backend
    number: int
    waited_s: float
    against: Against


class UpstreamResponse:
    """Answer of an engine: whole, or the events up to the first token."""

    def __init__(
        self,
        response: TimedStream,
        body: bytes = b"",
        parser: sse.SSEParser | None = None,
        events: Sequence[sse.Event] = (),
        has_token: bool = False,
        read: Read | None = None,
    ) -> None:
        self.status = response.status
        self.content_type = response.header(b"content-type").encode("latin-1")
        self.read = read or response.read
        self.body = body
        self.parser = parser
        self.events = events
        self.has_token = has_token
        self.response = response

    async def close(self) -> None:
        """Give the connection back; one whose answer is not complete is closed, so the engine stops."""
        await self.response.aclose()

    def finish(self) -> None:
        """Give the connection back after `[DONE]`, although the end of the body may be on its way."""
        self.response.finish()


class Relay:
    """Answers one request."""

    def __init__(
        self, parsed: ParsedRequest, pool: Pool, settings: GatewaySettings, context: RequestContext
    ) -> None:
        self.parsed = parsed
        self.pool = pool
        self.settings = settings
        self.context = context
        self.head_sent = False
        self.headers = {
            "content-type": "application/json",
            "accept": "text/event-stream" if parsed.stream else "application/json",
            "accept-encoding": "identity",
            "x-request-id": context.request_id,
        }
        self._failures: list[FailedAttempt] = []
        self._sent = 0
        self._told_error = self._told_finish = self._told_done = self._opening = False
        self._last: sse.Event | None = None  # held back: the usage block may have to go into it
        answer = parsed.estimate - parsed.prompt_estimate
        limits = settings.timeouts
        prompt_s = parsed.prompt_estimate / limits.prefill_tokens_per_s
        answer_s = answer / limits.decode_tokens_per_s
        self._first_s = limits.first_byte_s + prompt_s + (0.0 if parsed.stream else answer_s)
        context.deadline = context.timing.began + limits.deadline_s + prompt_s + answer_s

    async def run(self, send: Send, engine: str | None, trace: dict[str, str]) -> None:
        """Choose a backend, send the request, and relay the answer.

        Args:
            send: ASGI's send.
            engine: Only backends of this engine; None: of any.
            trace: Headers of a distributed trace, handed on.

        Raises:
            ApiError: The client gets it as the answer, or as the event that ends its stream.
            asyncio.CancelledError: The request was cut; `context.cut_by` has the reason.
        """
        self.headers |= trace
        if self.parsed.stream:
            self.context.ping = lambda: self._ping(send)
        try:
            await self._send_with_retries(send, engine)
        finally:
            self.context.ping = None
            self._report_failures(Ending.NOTHING)

    async def _ping(self, send: Send) -> None:
        """Send a comment to a client that waits, so that nobody closes its connection as idle."""
        if self.context.ping is None or self.context.finished:
            return
        if not self.head_sent:
            await self._head(send, 200, EVENT_STREAM)
        await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})

    async def _send_with_retries(self, send: Send, engine: str | None) -> None:
        failed: dict[str, UpstreamError] = {}
        while True:
            backend, number = await self._acquire(engine, failed)
            began = time.monotonic()
            self.context.backend = backend.name
            result: str | None = "cancelled"
            try:
                upstream = await self._open(backend)
                now = time.monotonic()
                backend.opened(now, now - began)
                answered = upstream.status == 200
                self._report_failures(Ending.ANSWERED if answered else Ending.REFUSED)
                try:
                    await self._answer(upstream, backend, send)
                    fine = self.context.outcome in ("ok", "client_error")
                    result = "success" if fine else "failure"
                except BaseException:
                    await upstream.close()
                    raise
                return
            except UpstreamError as failure:
                result = None  # `_report_failures` says it, when it is known whose fault it is
                self._note_failure(backend, number, began, failure.reason, failure.against)
                timeouts = [other for other in failed.values() if other.reason == "timeout"]
                failed.pop(backend.name, None)
                failed[backend.name] = failure  # the last is the latest
                # A prompt that took too long twice would take too long a third time.
                hopeless = failure.reason == "timeout" and timeouts
                if hopeless or not self._may_repeat(failure):
                    raise failure.error from failure
            except ApiError as error:
                result = "failure" if error.outcome in ("broken_stream", "idle") else "success"
                raise
            except asyncio.CancelledError:
                if self.context.cut_by == "idle":
                    result = "failure"
                elif self.context.cut_by == "deadline" and self._opening:
                    result = None
                    self._note_failure(backend, number, began, "deadline", Against.IF_SLOWER)
                raise
            finally:
                if result is not None:
                    backend.result(number, result, self.parsed.api)
                self.pool.release(backend, time.monotonic() - began)

    def _note_failure(
        self, backend: Backend, number: int, began: float, reason: str, against: Against
    ) -> None:
        now = time.monotonic()
        self._failures.append(FailedAttempt(backend, number, now - began, against))
        self.pool.failed(backend.name, reason)
        if against is Against.IF_SLOWER:
            backend.timed_out_at = now

    def _may_repeat(self, failure: UpstreamError) -> bool:
        if failure.against is Against.NEVER and failure.reason == "own_shortage":
            return False
        return self._sent <= self.settings.health.retries

    def _report_failures(self, ending: Ending) -> None:
        """Tell the circuits which of the failed attempts count against their backends."""
        if not self._failures:
            return
        refused = {f.backend.name for f in self._failures if f.against in verdict.COMPARED}
        for failure in self._failures:
            backend = failure.backend
            quicker = self.pool.others_quicker(backend, failure.waited_s)
            guilty = verdict.counts(failure.against, ending, len(refused), quicker)
            event = "failure" if guilty else "cancelled"
            backend.result(failure.number, event, self.parsed.api)
        self._failures.clear()

    async def _acquire(
        self, engine: str | None, failed: dict[str, UpstreamError]
    ) -> tuple[Backend, int]:
        """Return a backend that has not failed; the same one again only if that can help.

        Raises:
            ApiError: There is none. After a failure its error says more than "no backend".
        """
        name, last = list(failed.items())[-1] if failed else ("", None)
        try:
            backend, number = await self.pool.acquire(
                self.parsed.affinity_key, engine, failed, self.context.caller, self.parsed.estimate
            )
        except ApiError as error:
            if last is None or error.outcome not in ("no_backend", "busy"):
                raise
            raise last.error from last
        again = failed.get(backend.name)
        useless = again is not None and not (
            again.reason in ("connect", "cut", "down") or again.against is Against.NEVER
        )
        if useless or (last is not None and not self.pool.may_retry()):
            backend.result(number, "cancelled")
            self.pool.release(backend, self.pool.served_s)
            assert last is not None
            raise last.error
        if last is not None:
            self.context.retries += 1
            self.pool.retried(name, last.reason)
        return backend, number

    async def _open(self, backend: Backend) -> UpstreamResponse:
        """Send the request, and wait for the first token of the answer.

        Raises:
            UpstreamError: Before that token.
        """
        name, context = backend.name, self.context
        context.stage, context.since = "engine", time.monotonic()
        context.opens_by = context.since + self._first_s
        context.abandoned = ""
        backend.waiting.add(context)
        self._opening = True
        try:
            found = await self._first_token(backend)
            self._opening = False
            return found
        except asyncio.CancelledError:
            if not context.abandoned or context.cut_by:
                raise
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            if context.abandoned == "down":
                error = upstream_error(f"The engine {name} is down.")
                raise UpstreamError("down", error, Against.NEVER) from None
            error = upstream_error(
                f"The engine {name} did not answer in time.", "timeout", status=504
            )
            raise UpstreamError("timeout", error, Against.IF_SLOWER) from None
        except OwnShortage:
            error = unavailable(
                "The gateway has no more file descriptors or ports. Try again in a moment, and raise "
                "its limit (ulimit -n).",
                "gateway_overloaded",
                "own_shortage",
                1.0,
            )
            raise UpstreamError("own_shortage", error, Against.NEVER) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            error = upstream_error(f"The engine {name} is down.")
            raise UpstreamError("connect", error, Against.ALWAYS) from None
        except httpx.HTTPError:
            error = upstream_error(f"The engine {name} broke off before its answer.")
            raise UpstreamError("cut", error) from None
        finally:
            context.opens_by = math.inf
            backend.waiting.discard(context)

    async def _first_token(self, backend: Backend) -> UpstreamResponse:
        response = await self._response(backend)
        try:
            encoding = response.header(b"content-encoding")
            stream = response.header(b"content-type").startswith("text/event-stream")
            wanted = response.status == 200 and stream and self.parsed.stream
            if wanted and encoding in _ONE_PIECE:
                return await self._first_events(backend, response)
            body = await _whole(response.read)
            if encoding not in _ONE_PIECE:
                body = httpx.Response(
                    response.status, headers={"content-encoding": encoding}, content=body
                ).content
            self._check(backend, response, body)
            return UpstreamResponse(response, body)
        except BaseException:
            await response.aclose()
            raise

    async def _response(self, backend: Backend) -> TimedStream:
        """Send the request, twice if a kept connection turns out to have been closed while it was idle.

        That is nobody's fault (llama.cpp does that). The second time counts as a repetition all the same,
        because it may be the request that brings the engine down.
        """
        body = self.parsed.body_for(backend.model)
        self._sent += 1
        try:
            return await backend.send(self.parsed.api, body, self.headers)
        except DroppedBeforeResponse as error:
            if not error.reused or self._sent > max(1, self.settings.health.retries):
                raise
            self._sent += 1
            return await backend.send(self.parsed.api, body, self.headers)

    async def _first_events(self, backend: Backend, response: TimedStream) -> UpstreamResponse:
        """Read a stream up to the first event that has text. Comments open nothing.

        Raises:
            UpstreamError: The stream begins with an error.
            httpx.RemoteProtocolError: It ends without an event.
        """
        parser, events = sse.SSEParser(), list[sse.Event]()
        while piece := await response.read():
            found = parser.feed(piece)
            events += found
            for event in found:
                _check_event(backend.name, event)
            token = any(data_has_text(event.data) for event in found)
            if token or any(_opens(event) for event in found):
                return UpstreamResponse(response, parser=parser, events=events, has_token=token)
            if parser.waiting + sum(len(event.raw) for event in events) > _LARGEST_EVENT:
                break
        if (last := _closed(parser)) is not None:
            _check_event(backend.name, last)
            events.append(last)
        token = last is not None and data_has_text(last.data)
        if not token and not any(_opens(event) or _finishes(event.raw) for event in events):
            raise httpx.RemoteProtocolError("a stream without a token")

        async def at_end() -> bytes:
            return b""

        return UpstreamResponse(
            response, parser=parser, events=events, has_token=token, read=at_end
        )

    def _check(self, backend: Backend, response: TimedStream, body: bytes) -> None:
        """Raise an error if an answer in one piece isn't one for the client.

        Raises:
            UpstreamError: Another engine may do better.
        """
        name, status = backend.name, response.status
        subject = verdict.of_status(status)
        text = error_text(body.decode("utf-8", "replace"))[:500] or "no reason given"
        if status in _NO_SUCH_API and self.parsed.api in OPTIONAL:
            raise UpstreamError(f"http_{status}", _lacks(self.parsed.api, name), Against.NEVER)
        if subject is Verdict.REQUEST:
            return
        if subject is Verdict.BUSY:
            after = verdict.busy_for(response.header(b"retry-after"))
            backend.pause(after)
            error = unavailable(f"The engine {name} is busy: {text}", "engine_busy", "busy", after)
            raise UpstreamError(f"http_{status}", error, Against.NEVER)
        if subject is Verdict.SETUP:
            error = upstream_error(
                f"The engine {name} answered {status}: {text} This is a fault of the engine's set-up, "
                "and not of your request."
            )
            raise UpstreamError(f"http_{status}", error, Against.SETUP)
        if subject is Verdict.ENGINE:
            raise UpstreamError(
                f"http_{status}", upstream_error(f"The engine {name} answered {status}: {text}")
            )
        try:
            found = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            error = upstream_error(f"The engine {name} answered with something that isn't JSON.")
            raise UpstreamError("not_json", error)
        if found.get("error"):
            _raise_error(name, found["error"], text)
        if self.parsed.stream:
            error = upstream_error(f"The engine {name} did not stream its answer.")
            raise UpstreamError("not_streamed", error)

    async def _answer(self, upstream: UpstreamResponse, backend: Backend, send: Send) -> None:
        if upstream.parser is not None:
            try:
                await self._pump(upstream, upstream.parser, backend, send)
            except httpx.HTTPError:
                await self._end_early(send, backend)
            return
        if upstream.status == 200:
            self._count(upstream.body, backend)
        else:
            self.context.outcome = "client_error"
            if self.head_sent:  # with comments
                text = error_text(upstream.body.decode("utf-8", "replace"))
                raise ApiError(upstream.status, text[:2000] or "The engine refused the request.")
        await self._head(send, upstream.status, self._plain_headers(upstream))
        context = self.context
        context.stage, context.since, context.finished = "send", time.monotonic(), True
        await send({"type": "http.response.body", "body": upstream.body})
        await upstream.close()

    async def _pump(
        self, upstream: UpstreamResponse, parser: sse.SSEParser, backend: Backend, send: Send
    ) -> None:
        """Relay whole events as they come, unread but for the first token, the usage block and the end."""
        context, observe, clock = self.context, backend.m_itl.observe, time.monotonic
        events, last = upstream.events, clock()
        has_token = upstream.has_token
        if has_token:
            backend.m_ttft.observe(last - context.timing.began)
        if not self.head_sent:
            await self._head(send, 200, EVENT_STREAM)
        data = b"".join([self._taken(event, backend) for event in events])
        while True:
            done = context.finished = self._told_done
            if data:
                context.stage, context.since = "send", last
                context.pieces += 1
                await send({"type": "http.response.body", "body": data, "more_body": not done})
            if done:
                context.stage = "engine"
                upstream.finish()
                return
            context.stage, context.since = "read", clock()
            while True:
                piece = await upstream.read()
                if not piece:
                    await self._at_end(parser, backend, send)
                    await upstream.close()
                    return
                if self._last is None and has_token and not parser.waiting and _is_plain(piece):
                    data = piece  # a token, as almost always
                    break
                events = parser.feed(piece)
                if events:
                    if not has_token and any(data_has_text(event.data) for event in events):
                        has_token = True
                        backend.m_ttft.observe(clock() - context.timing.began)
                    data = b"".join([self._taken(event, backend) for event in events])
                    break
                if parser.waiting > _LARGEST_EVENT:
                    raise self._broken(backend)
            now = backend.heard_at = clock()
            observe(now - last)
            last = now

    async def _at_end(self, parser: sse.SSEParser, backend: Backend, send: Send) -> None:
        """End a stream whose body has ended without `[DONE]` and an empty line.

        Some engines leave out the last line end, and some leave out `[DONE]` after a finish reason.
        """
        if (event := _closed(parser)) is not None:
            data = self._taken(event, backend)
            if data:
                self.context.finished = self._told_done
                more = not self._told_done
                await send({"type": "http.response.body", "body": data, "more_body": more})
        if self._told_done:
            return
        if self._told_finish and not self._told_error:
            data = self._release_last() + sse.encode(sse.DONE)
            self.context.finished = True
            await send({"type": "http.response.body", "body": data})
            return
        await self._end_early(send, backend)

    async def _end_early(self, send: Send, backend: Backend) -> None:
        """End a stream that broke off. A client that has been told an error isn't told another.

        Raises:
            ApiError: The client has not been told yet.
        """
        if self._told_error:
            self.context.finished = True
            await send({"type": "http.response.body", "body": self._release_last()})
            return
        if self._last is not None:
            data = self._release_last()
            await send({"type": "http.response.body", "body": data, "more_body": True})
        raise self._broken(backend)

    def _broken(self, backend: Backend) -> ApiError:
        return upstream_error(
            f"The engine {backend.name} broke off in the middle of its answer.", "broken_stream"
        )

    def _taken(self, event: sse.Event, backend: Backend) -> bytes:
        """Return the bytes that go to the client for an event: almost always its own."""
        raw = event.raw
        if self.parsed.api in OPTIONAL and _USAGE[0][:7] in raw:
            self._count(event.data.encode(), backend)
        if event.data == sse.DONE or event.kind in _LAST_KINDS:
            self._told_done = True
            return self._release_last() + raw
        if event.kind == "error" or b'"error"' in raw:
            error = _error_in(event)
            if error is not None:
                self._told_error = True
                self.context.outcome = "upstream_error"
                plain = event.kind == "message" and event.data.lstrip().startswith("{")
                return self._release_last() + (raw if plain else _plain_error(error))
        if self.parsed.api in OPTIONAL:
            return raw
        if _USAGE[0] in raw or _USAGE[1] in raw:
            counted = self._count(event.data.encode(), backend)
            if counted and not counted.choices and not self.parsed.wants_usage:
                return self._release_last(event)
        if _finishes(raw):
            self._told_finish = True
            if not self.parsed.wants_usage:
                before, self._last = self._release_last(), event
                return before
        return self._release_last() + raw if self._last is not None else raw

    def _release_last(self, usage: sse.Event | None = None) -> bytes:
        """Return the event that was held back, with the other fields of the usage block.

        Without `include_usage`, which only the gateway asked for, llama.cpp has its `timings` there.
        """
        last, self._last = self._last, None
        if last is None:
            return b""
        if usage is None:
            return last.raw
        try:
            block, chunk = msgspec.json.decode(usage.data), msgspec.json.decode(last.data)
        except msgspec.DecodeError:
            return last.raw
        more = {k: v for k, v in block.items() if k != "usage" and k not in chunk}
        if not more:
            return last.raw
        return b"data: " + msgspec.json.encode(chunk | more) + b"\n\n"

    def _count(self, body: bytes, backend: Backend) -> _Counted | None:
        try:
            counted = _DECODER.decode(body)
        except msgspec.DecodeError:
            return None
        nested = counted.response or counted.message
        usage = counted.usage or (nested.usage if nested is not None else None)
        if usage is not None:
            # The Messages API tells the prompt's tokens at the beginning and the answer's at the end.
            prompt = usage.prompt_tokens or usage.input_tokens or self.context.prompt_tokens
            answer = usage.completion_tokens or usage.output_tokens
            # Engines that repeat the block say totals: what counts is the difference.
            backend.m_prompt.inc(max(0, prompt - self.context.prompt_tokens))
            backend.m_answer.inc(max(0, answer - self.context.completion_tokens))
            self.context.prompt_tokens, self.context.completion_tokens = prompt, answer
        return counted

    def _plain_headers(self, upstream: UpstreamResponse) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", upstream.content_type or b"application/json"),
            (b"content-length", b"%d" % len(upstream.body)),
        ]

    async def _head(self, send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.head_sent = True
        mark = (b"x-gateway-backend", self.context.backend.encode())
        await send({"type": "http.response.start", "status": status, "headers": [*headers, mark]})


_DECODER = msgspec.json.Decoder(_Counted)


def _lacks(api: Api, engine: str) -> ApiError:
    path = next(path for path, served in PATHS.items() if served == api)
    hint = "" if api == "embeddings" else " Use /v1/chat/completions, which every engine has."
    return ApiError(
        404,
        f"The engine {engine} doesn't offer {path}.{hint}",
        code="api_not_offered",
        outcome="client_error",
    )


def _opens(event: sse.Event) -> bool:
    """Tell whether an event without text opens an answer: the end, or progress that was asked for."""
    return event.data == sse.DONE or event.kind in _LAST_KINDS or _PROGRESS in event.raw


def _is_plain(piece: bytes) -> bool:
    """Tell whether a piece is whole events of one line each that are relayed unread."""
    return (
        piece.startswith(b"data: {")
        and piece.endswith(b"}\n\n")
        and piece.count(b"\n") == 2 * piece.count(b"\n\n")
        and b"[DONE]" not in piece
        and b"\nerror:" not in piece
        and b'"usage"' not in piece
        and b'"error"' not in piece
        and not _finishes(piece)
    )


def _closed(parser: sse.SSEParser) -> sse.Event | None:
    """Return the event that a stream ended with, with the empty line that it lacked."""
    event = parser.close()
    if event is not None:
        event.raw = event.raw.rstrip(b"\r\n") + b"\n\n"
    return event


def _finishes(raw: bytes) -> bool:
    return _FINISH[0] in raw or _FINISH[1] in raw


def _error_in(event: sse.Event) -> Any:
    """Return the error that an event tells of; None if it tells of none.

    A text cannot look like it, because quotes in it are escaped.
    """
    try:
        found = msgspec.json.decode(event.data)
    except (msgspec.DecodeError, RecursionError):
        return event.data or "no reason given" if event.kind == "error" else None
    if isinstance(found, dict) and found.get("error"):
        return found["error"]
    return found if event.kind == "error" else None


def _plain_error(error: Any) -> bytes:
    """Return an error event in OpenAI's form; clients overlook other forms."""
    fields = error if isinstance(error, dict) and "message" in error else {"message": str(error)}
    return sse.error_event({"type": "server_error", "param": None, "code": None} | fields)


def _check_event(name: str, event: sse.Event) -> None:
    """Raise the error that an event tells of, while another engine can still answer.

    Raises:
        UpstreamError, ApiError: See `_raise_error`.
    """
    if event.kind == "error" or b'"error"' in event.raw:
        error = _error_in(event)
        if error is not None:
            _raise_error(name, error, error_text(event.data)[:500])


def _raise_error(name: str, error: Any, text: str) -> None:
    """Raise an error that came with HTTP 200.

    Raises:
        ApiError: It has the code of a wrong request (vLLM tells of these in streams).
        UpstreamError: It is the engine's.
    """
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and verdict.of_status(code) is Verdict.REQUEST:
        raise ApiError(code, text)
    raise UpstreamError("error_in_200", upstream_error(f"The engine {name} failed: {text}"))


async def _whole(read: Read) -> bytes:
    found, size = [], 0
    while piece := await read():
        found.append(piece)
        size += len(piece)
        if size > _LARGEST_ANSWER:
            raise httpx.ReadError("an answer without an end")
    return b"".join(found)
