"""The gateway as an ASGI application: routes, permissions, and the way of each request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from opentelemetry import propagate, trace
from starlette.exceptions import HTTPException

from utils.gateway import drain, schemas
from utils.gateway.auth import RATE_HEADERS, Authenticator, Caller
from utils.gateway.browsers import check_browser
from utils.gateway.http_errors import ApiError, unavailable
from utils.gateway.logs import LOG, say
from utils.gateway.metrics import CONTENT_TYPE, Metrics
from utils.gateway.pool import Pool
from utils.gateway.relay import Relay, Send
from utils.gateway.request_context import RequestContext
from utils.gateway.schemas import PATHS, Api, ParsedRequest
from utils.gateway.settings import GatewaySettings, SettingsError, Timeouts
from utils.gateway.timing import Timing, on_message
from utils.http import sse

SWEEP_S = 0.1
ENGINE_HEADER = "x-gateway-engine"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACE = re.compile(r"[ -~]{1,1024}")
# Of a body that is too large: it is read on, so that its sender reads the answer.
_MOST_DISCARDED = 256 << 20
_PAGE = Path(__file__).with_name("page")
_SCRIPTS = ("marked.umd.js", "markdown.js", "chat.js")
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Gateway:
    """Everything that lives as long as the server.

    Attributes:
        settings: As loaded.
        metrics: Numbers for `/metrics`.
        auth: Keys and rates.
        pools: The backends, by model.
        contexts: Requests that are being answered.
        drain_began: Time when SIGTERM came, s; None: it did not.
        load: Loads the settings again, for `reload`; None if there is nowhere to load them from.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.auth = Authenticator(settings.keys, on_failure=self._note_wrong_key)
        self.pools = {model.name: Pool(model, settings, self.metrics) for model in settings.models}
        self._pings: set[asyncio.Task[None]] = set()
        self._retired: list[Pool] = []
        self._running = False
        self.contexts: set[RequestContext] = set()
        self.drain_began: float | None = None
        self.load: Callable[[], GatewaySettings] | None = None

    def reload(self) -> None:
        """Load the settings again and apply them.

        Raises:
            SettingsError: They are wrong, or there is no file. Then everything stays as it was.
        """
        if self.load is None:
            raise SettingsError(
                "This gateway was not started from a file, so it can't load one again."
            )
        self.configure(self.load())

    def configure(self, settings: GatewaySettings) -> None:
        """Apply new settings. Requests in flight end under the old ones, wherever they are.

        Raises:
            SettingsError: They change something for which the gateway has to be started again.
        """
        fixed = [
            name
            for name in ("host", "port", "private", "cors_origins")
            if getattr(settings, name) != getattr(self.settings, name)
        ]
        if fixed:
            raise SettingsError(f"Restart the gateway to change: {', '.join(fixed)}.")
        self.settings = settings
        self.auth.configure(settings.keys)
        before = self.pools
        self.pools = {}
        for model in settings.models:
            pool = before.pop(model.name, None)
            if pool is None:
                pool = Pool(model, settings, self.metrics)
                if self._running:
                    pool.start()
            else:
                pool.configure(model, settings)
            self.pools[model.name] = pool
        for pool in before.values():
            pool.retire()
            self._retired.append(pool)
        LOG.setLevel(settings.log_level.upper())
        say("configured", models=list(self.pools))

    def _note_wrong_key(self, address: str) -> None:
        self.metrics.failed_keys.inc()
        say("wrong key", logging.WARNING, client=address)

    @property
    def phase(self) -> str:
        """Phase of the server; see `drain.phase`."""
        since = None if self.drain_began is None else time.monotonic() - self.drain_began
        limits = self.settings.drain
        return drain.phase(since, len(self.contexts), limits.notice_s, limits.limit_s)

    def begin_drain(self) -> None:
        """From now on not ready."""
        if self.drain_began is None:
            self.drain_began = time.monotonic()
            say("draining", in_flight=len(self.contexts))

    def ready(self) -> bool:
        """Tell whether a load balancer should send requests: this gateway serves, and doesn't drain.

        The engines aren't asked. All gateways see the same dead engine at the same moment, so all of them
        would leave, and the models that work would be gone too. `/v1/models` and the metrics tell of engines.
        """
        return self.phase == drain.SERVING

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch backends and requests meanwhile."""
        self._running = True
        for pool in self.pools.values():
            pool.start()
        sweep = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            sweep.cancel()
            await asyncio.gather(sweep, return_exceptions=True)
            for pool in [*self.pools.values(), *self._retired]:
                await pool.stop()

    async def _sweep(self) -> None:
        """Cut requests that take too long. One look at all of them costs less than a timer for each piece."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now, limits = time.monotonic(), self.settings.timeouts
            cutting = self.phase == drain.CUTTING
            for context in list(self.contexts):
                try:
                    reason = _overdue(context, limits, cutting, now)
                    if reason:
                        context.cut(reason)
                    elif now > context.opens_by:
                        context.abandon("timeout")
                    elif context.ping is not None and _silent(context, limits, now):
                        context.pinged = now
                        ping = asyncio.create_task(_ping(context))
                        self._pings.add(ping)
                        ping.add_done_callback(self._pings.discard)
                except Exception:  # nobody would start it again
                    LOG.exception("sweep", extra={"fields": {"id": context.request_id}})

    @contextmanager
    def track(self, context: RequestContext) -> Iterator[None]:
        """Count a request as in flight while the block runs, and let it be cut."""
        context.task = asyncio.current_task()
        self.contexts.add(context)
        try:
            yield
        finally:
            context.task = None
            self.contexts.discard(context)

    def models(self) -> dict[str, Any]:
        """Body of `/v1/models`, with the engines that serve each, and whether they work now."""
        now = time.monotonic()
        return {
            "object": "list",
            "data": [
                {
                    "id": name,
                    "object": "model",
                    "created": 0,
                    "owned_by": "gateway",
                    "engines": [
                        {"name": engine, "up": any(b.usable(now) for b in backends)}
                        for engine, backends in _by_engine(pool).items()
                    ],
                }
                for name, pool in self.pools.items()
            ],
        }


def _overdue(context: RequestContext, limits: Timeouts, cutting: bool, now: float) -> str:
    """Why a request has to be cut now; "" if it has not."""
    waited = now - context.since
    if context.stage == "send" and waited > limits.send_s:
        return "slow_client"
    if context.stage == "body" and waited > limits.body_s:
        return "body_timeout"
    if cutting:
        return "draining"
    if now > context.deadline:
        return "deadline"
    return "idle" if context.stage == "read" and waited > limits.idle_s else ""


def _silent(context: RequestContext, limits: Timeouts, now: float) -> bool:
    """Return whether a client that waits for a stream has got nothing for `ping_s`."""
    last = max(context.timing.began, context.pinged)
    if context.stage == "read":
        last = max(context.since, context.pinged)
    return context.stage != "send" and now - last > limits.ping_s


async def _ping(context: RequestContext) -> None:
    if context.ping is not None:
        with suppress(Exception):  # the client has gone; the request finds that out by itself
            await context.ping()


@dataclass(frozen=True)
class Reservation:
    """Tokens reserved for a request by estimate, and the caller whose they are."""

    caller: Caller
    parsed: ParsedRequest

    def refund(self, context: RequestContext) -> None:
        """Replace the estimate by the tokens used: the engine's count, or at least the pieces relayed."""
        used = float(context.prompt_tokens + context.completion_tokens)
        if not used and context.pieces:
            used = self.parsed.prompt_estimate + context.pieces
        self.caller.refund(self.parsed.estimate - used)


class GatewayEndpoint:
    """ASGI application that answers requests to engines."""

    def __init__(self, gateway: Gateway, api: Api) -> None:
        self.gateway = gateway
        self.api = api

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        context: RequestContext = scope["context"]
        headers = context.request_headers
        relay: Relay | None = None
        reservation: Reservation | None = None
        problem: ApiError | None = None
        watch: asyncio.Task[None] | None = None
        with self.gateway.track(context):
            try:
                if self.gateway.phase in (drain.FINISHING, drain.CUTTING, drain.DONE):
                    raise unavailable("This server is stopping.", "draining", "draining", 1.0)
                if not self.gateway.settings.keys:
                    check_browser(headers, self.gateway.settings)
                caller = identify(self.gateway, context)
                context.caller = caller.name
                context.stage, context.since = "body", time.monotonic()
                body = await read_body(receive, headers, self.gateway.settings)
                context.stage, context.since = "engine", time.monotonic()
                watch = asyncio.create_task(_tell_when_gone(receive, context))
                parsed, pool = self._checked(body, context)
                try:
                    self.gateway.auth.reserve(caller, parsed.estimate)
                finally:
                    context.headers += self.gateway.auth.rate_headers(caller)
                reservation = Reservation(caller, parsed)
                relay = Relay(parsed, pool, self.gateway.settings, context)
                await relay.run(send, headers.get(ENGINE_HEADER), _trace_of(headers))
            except ApiError as error:
                problem = error
            except asyncio.CancelledError:
                if not context.cut_by:
                    context.outcome = "draining"  # the server is ended by force
                    raise
                current = asyncio.current_task()
                assert current is not None
                current.uncancel()
                problem = _CUT.get(context.cut_by)
                context.outcome = context.cut_by if problem is None else problem.outcome
            except Exception:
                LOG.exception("internal error", extra={"fields": {"id": context.request_id}})
                problem = ApiError(
                    500, "The gateway failed.", kind="server_error", outcome="internal_error"
                )
            finally:
                context.task = None
                if watch is not None:
                    watch.cancel()
            if problem is not None:
                context.outcome = problem.outcome
                with suppress(TimeoutError):  # a client that does not read; uvicorn then drops it
                    async with asyncio.timeout(self.gateway.settings.timeouts.send_s):
                        await _send_problem(problem, send, relay, context)
            if reservation is not None:
                reservation.refund(context)

    def _checked(self, body: bytes, context: RequestContext) -> tuple[ParsedRequest, Pool]:
        settings = self.gateway.settings
        session = context.request_headers.get(settings.affinity.header, "")
        parsed = schemas.parse(self.api, body, settings.limits, settings.affinity, session)
        pool = self.gateway.pools.get(parsed.model)
        if pool is None:
            names = ", ".join(self.gateway.pools)
            raise ApiError(
                404,
                f"There is no model {parsed.model[:100]!r} here. There are: {names}.",
                param="model",
                code="model_not_found",
            )
        context.model = parsed.model
        context.stream = parsed.stream
        return parsed, pool


_CUT = {
    "deadline": ApiError(
        504, "The request took too long.", kind="server_error", code="deadline", outcome="deadline"
    ),
    "idle": ApiError(
        504,
        "The engine stopped in the middle of its answer.",
        kind="server_error",
        code="upstream_error",
        outcome="idle",
    ),
    "body_timeout": ApiError(408, "The body did not arrive in time.", code="body_timeout"),
    "draining": unavailable("This server is stopping.", "draining", "draining", 1.0),
}


async def _send_problem(
    problem: ApiError, send: Send, relay: Relay | None, context: RequestContext
) -> None:
    """The error as an answer, or as the last event of a stream that has begun."""
    if relay is None or not relay.head_sent:
        body = problem.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *problem.headers(),
        ]
        await send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
    elif context.stream:
        await send({"type": "http.response.body", "body": sse.error_event(problem.fields())})


async def read_body(receive: Any, headers: Mapping[str, str], settings: GatewaySettings) -> bytes:
    """Return the body of a request, if it is not too large.

    Args:
        receive: ASGI's receive.
        headers: Headers of the request, with names in lower case.
        settings: Settings with the limit.

    Raises:
        ApiError: 413, or 499 if the client went away.
        asyncio.CancelledError: It takes too long; see `_overdue`.
    """
    limit = settings.limits.body_bytes
    too_large = ApiError(413, f"The body is larger than {limit} bytes.", code="body_too_large")
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit and "expect" in headers:
        raise too_large
    found, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(499, "The client went away.", outcome="client_gone")
        piece = message.get("body", b"")
        size += len(piece)
        if size <= limit:
            found.append(piece)
        elif size > _MOST_DISCARDED:
            raise too_large
        if not message.get("more_body", False):
            break
    if size > limit:
        raise too_large
    return b"".join(found)


async def _tell_when_gone(receive: Any, context: RequestContext) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    context.cut("client_gone")


def _trace_of(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers of a distributed trace (W3C Trace Context) for the engine; not what no header may hold.

    As they came. Where OpenTelemetry is set up, this request has a span: then that is the engine's parent.
    """
    found = {name: headers.get(name, "") for name in ("traceparent", "tracestate")}
    kept = {name: value for name, value in found.items() if _TRACE.fullmatch(value)}
    if trace.get_current_span() is not trace.INVALID_SPAN:
        propagate.inject(kept)
    return kept


def identify(gateway: Gateway, context: RequestContext) -> Caller:
    """Return the caller of a request. Anthropic's clients send the key as `x-api-key`.

    Raises:
        ApiError: 401 or 429; see `Authenticator.identify`.
    """
    key = context.request_headers.get("x-api-key")
    header = context.request_headers.get("authorization") or (key and f"Bearer {key}")
    return gateway.auth.identify(header, context.client or "unknown")


def _by_engine(pool: Pool) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for backend in pool.backends:
        found.setdefault(backend.engine, []).append(backend)
    return found


class Observe:
    """Middleware: request id, times, metrics, one log line a request."""

    def __init__(self, app: Any, gateway: Gateway) -> None:
        self.app = app
        self.gateway = gateway

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Backwards, so that the first of several headers with one name counts.
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in reversed(scope["headers"])
        }
        context = RequestContext(
            _request_id(headers), Timing(time.monotonic()), headers, route=scope["path"]
        )
        scope["context"] = context
        context.client = (scope.get("client") or ("",))[0]
        marked = (b"x-request-id", context.request_id.encode())

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), marked, *context.headers]
                if self.gateway.drain_began is not None:
                    # Load balancers only stop new connections. Kept ones stay until the server closes them.
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            context.timing = on_message(context.timing, message, time.monotonic())
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            if scope["path"] in PATHS:
                self._note(context)

    def _note(self, context: RequestContext) -> None:
        timing = context.timing
        model, backend = context.model or "none", context.backend or "none"
        seconds = time.monotonic() - timing.began
        self.gateway.metrics.ended(context.route, model, backend, context.outcome).inc()
        self.gateway.metrics.note_usage(context, self.gateway.settings.models)
        if context.backend and context.outcome == "ok":
            self.gateway.metrics.answered(model, backend).observe(seconds)
        if not LOG.isEnabledFor(logging.INFO):
            return
        say(
            "request",
            id=context.request_id,
            route=context.route,
            caller=context.caller,
            client=context.client,
            model=context.model,
            backend=context.backend,
            status=timing.status,
            outcome=context.outcome,
            stream=context.stream,
            retries=context.retries,
            ttft_ms=None if timing.ttft is None else round(1000 * timing.ttft, 2),
            e2e_ms=round(1000 * seconds, 2),
            prompt_tokens=context.prompt_tokens,
            completion_tokens=context.completion_tokens,
        )


def _request_id(headers: Mapping[str, str]) -> str:
    came = headers.get("x-request-id", "")
    return came if _REQUEST_ID.fullmatch(came) else secrets.token_hex(16)


def _span(context: RequestContext) -> AbstractContextManager[object]:
    """Return a span of this request where OpenTelemetry is set up; FastAPI makes its own on the long way."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return nullcontext()
    return trace.get_tracer(__name__).start_as_current_span(
        f"POST {context.route}",
        context=propagate.extract(context.request_headers),
        kind=trace.SpanKind.SERVER,
    )


def _describe(span: trace.Span, context: RequestContext) -> None:
    """Give a span the attributes of OpenTelemetry's conventions for generative AI, and its status."""
    status = context.timing.status
    chat = context.route == "/v1/chat/completions"
    known = {
        "http.request.method": "POST",
        "url.path": context.route,
        "http.response.status_code": status,
        "gen_ai.operation.name": "chat" if chat else "text_completion",
        "gen_ai.request.model": context.model,
        "gen_ai.usage.input_tokens": context.prompt_tokens,
        "gen_ai.usage.output_tokens": context.completion_tokens,
        "gateway.backend": context.backend,
        "gateway.request_id": context.request_id,
        "gateway.outcome": context.outcome,
        "gateway.retries": context.retries,
    }
    span.set_attributes({name: value for name, value in known.items() if value not in (None, "")})
    # A stream that breaks off has the status 200. A client's error isn't ours (HTTP's conventions).
    if context.outcome not in ("ok", "client_gone") and not 400 <= (status or 500) < 500:
        span.set_attribute("error.type", context.outcome)
        span.set_status(trace.StatusCode.ERROR, context.outcome)


class Application(FastAPI):
    """FastAPI, with a short way to the engines.

    FastAPI's way to a route (ten layers, routing, dependencies) takes four times as long
    as `Observe`, and each piece of a stream passes most of it again on its way out. `GatewayEndpoint` needs
    none of that: it catches what goes wrong and reads the body by itself.

    Attributes:
        outer: Layers that each request passes first, on either way.
    """

    def __init__(self, gateway: Gateway, **options: Any) -> None:
        super().__init__(**options)
        self.state.gateway = gateway
        self._endpoints = {path: GatewayEndpoint(gateway, api) for path, api in PATHS.items()}
        self.outer: Any = Observe(self._inner, gateway)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        await self.outer(scope, receive, send)

    async def _inner(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in PATHS:
            with _span(scope["context"]) as span:
                await self._endpoints[scope["path"]](scope, receive, send)
                if isinstance(span, trace.Span) and span.is_recording():
                    _describe(span, scope["context"])
            return
        settings = self.state.gateway.settings
        health = scope["type"] == "http" and scope["path"].startswith("/health/")
        if scope["type"] == "http" and not health and not settings.keys:
            request = Request(scope, receive)
            try:
                check_browser(request.headers, settings)
            except ApiError as error:
                await (await _api_error(request, error))(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_app(settings: GatewaySettings) -> Application:
    """Return the application; `app.state.gateway` is its `Gateway`."""
    gateway = Gateway(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    about = {"title": "Gateway", "version": "1", "redoc_url": None, "docs_url": None}
    about["openapi_url"] = None  # `_add_operators_routes` serves it
    app = Application(gateway, lifespan=lifespan, **about)
    for path, api in PATHS.items():
        _describe_engine_route(app, path, api)
    _add_plain_routes(app, gateway)
    if settings.private.port is None:
        _add_operators_routes(app, gateway)
    app.add_exception_handler(404, _no_such_path)
    app.add_exception_handler(405, _no_such_method)
    app.add_exception_handler(ApiError, _api_error)
    if settings.cors_origins:
        app.outer = CORSMiddleware(
            app.outer,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            # OpenAI's package sends a dozen headers of its own. A named origin may send any.
            allow_headers=["*"],
            expose_headers=["x-request-id", "x-gateway-backend", "retry-after", *RATE_HEADERS],
        )
    return app


def _describe_engine_route(app: Application, path: str, api: Api) -> None:
    """Describe a route for the OpenAPI document, and answer other methods."""
    schema = schemas.BODIES[api].model_json_schema()
    schema["properties"]["model"]["enum"] = list(app.state.gateway.pools)
    body = {"required": True, "content": {"application/json": {"schema": _inlined(schema)}}}
    errors: dict[int | str, dict[str, Any]] = {
        code: {"description": text}
        for code, text in (
            (400, "The body is wrong"),
            (401, "No key, or an unknown one"),
            (403, "A web page of another origin, and no keys"),
            (404, "No such model"),
            (408, "The body did not arrive in time"),
            (413, "The body is too large"),
            (429, "Too many requests; Retry-After says when"),
            (502, "An engine failed, and no other could answer"),
            (503, "No engine works now, or this server is stopping; Retry-After says when"),
            (504, "An engine was too slow, or stopped in the middle"),
        )
    }

    answers = {200: {"description": "The answer", "content": {"text/event-stream": {}}}, **errors}

    @app.post(path, openapi_extra={"requestBody": body}, responses=answers, name=api)
    async def answer() -> None:
        raise NotImplementedError  # `Application` gives these requests to `GatewayEndpoint`


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without `$defs`, whose references would point nowhere inside an OpenAPI document."""
    defined = schema.pop("$defs", {})

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolve(defined[value["$ref"].rpartition("/")[2]])
            return {key: resolve(inner) for key, inner in value.items()}
        return [resolve(inner) for inner in value] if isinstance(value, list) else value

    return dict(resolve(schema))


def _add_plain_routes(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        identify(gateway, request.scope["context"])
        return gateway.models()

    @app.get("/v1/models/{name:path}", responses={404: {"description": "No such model"}})
    async def model(name: str, request: Request) -> dict[str, Any]:
        identify(gateway, request.scope["context"])
        for entry in gateway.models()["data"]:
            if entry["id"] == name:
                return dict(entry)
        raise ApiError(404, f"There is no model {name[:100]!r} here.", code="model_not_found")

    @app.head("/health/live", include_in_schema=False)
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.head("/health/ready", include_in_schema=False)
    @app.get("/health/ready", responses={503: {"description": "Draining"}})
    async def ready() -> Response:
        now = time.monotonic()
        backends = {
            backend.name: backend.usable(now)
            for pool in gateway.pools.values()
            for backend in pool.backends
        }
        fine = gateway.ready()
        body = {"status": "ready" if fine else "not ready", "phase": gateway.phase}
        return JSONResponse(body | {"backends": backends}, 200 if fine else 503)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> Response:
        text = (_PAGE / "chat.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers=_PAGE_HEADERS)

    for name in _SCRIPTS:
        app.add_api_route(f"/{name}", partial(_script, name), include_in_schema=False)


async def _script(name: str) -> Response:
    text = (_PAGE / name).read_text(encoding="utf-8")
    return Response(text, media_type="text/javascript", headers=_PAGE_HEADERS)


def _add_operators_routes(app: FastAPI, gateway: Gateway) -> None:
    """Add metrics and the OpenAPI document, for a gateway without a private port. They need a key as well."""

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        identify(gateway, request.scope["context"])
        return Response(gateway.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> dict[str, Any]:
        identify(gateway, request.scope["context"])
        return app.openapi()


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    request.scope["context"].outcome = error.outcome
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return JSONResponse(json.loads(error.body()), error.status, headers=headers)


async def _no_such_path(request: Request, error: Exception) -> Response:
    path = f"/v1{request.url.path}"
    hint = f" Did you mean {path}?" if path in (*PATHS, "/v1/models") else ""
    return await _api_error(
        request, ApiError(404, f"There is no such path.{hint}", code="not_found")
    )


async def _no_such_method(request: Request, error: Exception) -> Response:
    answer = await _api_error(request, ApiError(405, "Not with this method.", code="method"))
    assert isinstance(error, HTTPException)
    answer.headers.update(error.headers or {})  # Allow; RFC 9110, section 15.5.6
    return answer
