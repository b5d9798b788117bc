"""The private port: metrics, the state of the backends, and commands that change them while the gateway runs.

    GET    /metrics
    GET    /openapi.json                      of the API on the other port
    GET    /backends                          their state
    POST   /models/MODEL/backends             adds one; the body is an entry of the file, as JSON
    PATCH  /models/MODEL/backends/NAME        {"draining": true}: no new requests; false: it serves again
    DELETE /models/MODEL/backends/NAME        removes it; its requests in flight end first
    POST   /reload                            reads the file again, as SIGHUP does

A change is a change of the settings in memory. The next reload of the file replaces all of them, so
write changes that have to last into the file too.
"""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, ValidationError

from utils.gateway.app import Gateway
from utils.gateway.backend import Backend
from utils.gateway.browsers import check_browser
from utils.gateway.http_errors import ApiError
from utils.gateway.metrics import CONTENT_TYPE
from utils.gateway.settings import (
    BackendSettings,
    ModelSettings,
    SettingsError,
    check_consistent,
)


class Change(BaseModel):
    """Change of a backend."""

    model_config = ConfigDict(extra="forbid")
    draining: bool


class NotFoundError(Exception):
    """A model or a backend that doesn't exist."""


def create_private_app(gateway: Gateway, api: FastAPI) -> FastAPI:
    """Make the application of the private port of an API."""
    app = FastAPI(title="Gateway, private port", redoc_url=None, docs_url=None, openapi_url=None)

    @app.middleware("http")
    async def no_web_pages(request: Request, call_next: Any) -> Response:
        try:
            check_browser(request.headers, gateway.settings)
        except ApiError as error:
            return Response(error.body(), error.status, media_type="application/json")
        answer: Response = await call_next(request)
        return answer

    @app.get("/openapi.json")
    async def document() -> dict[str, Any]:
        return api.openapi()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(gateway.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/backends")
    async def backends() -> dict[str, Any]:
        now = time.monotonic()
        return {
            "phase": gateway.phase,
            "models": {
                name: [_state(backend, now) for backend in pool.backends]
                for name, pool in gateway.pools.items()
            },
        }

    @app.post("/models/{model:path}/backends", status_code=201)
    async def add(model: str, backend: BackendSettings) -> dict[str, Any]:
        _change(gateway, model, [*_of(gateway, model).backends, backend])
        return await backends()

    @app.patch("/models/{model:path}/backends/{name}")
    async def patch(model: str, name: str, change: Change) -> dict[str, Any]:
        index = _index(gateway, model, name)
        changed = list(_of(gateway, model).backends)
        changed[index] = changed[index].model_copy(update={"draining": change.draining})
        _change(gateway, model, changed)
        return await backends()

    @app.delete("/models/{model:path}/backends/{name}")
    async def remove(model: str, name: str) -> dict[str, Any]:
        index = _index(gateway, model, name)
        left = list(_of(gateway, model).backends)
        del left[index]
        _change(gateway, model, left)
        return await backends()

    @app.post("/reload")
    async def reload() -> dict[str, Any]:
        gateway.reload()
        return await backends()

    @app.exception_handler(SettingsError)
    async def wrong(_: Any, error: Exception) -> Response:
        return JSONResponse({"error": {"message": str(error)}}, 409)

    @app.exception_handler(NotFoundError)
    async def missing(_: Any, error: Exception) -> Response:
        return JSONResponse({"error": {"message": str(error)}}, 404)

    return app


def _state(backend: Backend, now: float) -> dict[str, Any]:
    return {
        "name": backend.name,
        "engine": backend.engine,
        "url": backend.settings.url,
        "up": backend.up,
        "circuit": backend.circuit.state,
        "draining": backend.leaving,
        "busy_s": round(max(0.0, backend.busy_until - now), 1),
        "in_flight": backend.outstanding,
    }


def _of(gateway: Gateway, model: str) -> ModelSettings:
    for each in gateway.settings.models:
        if each.name == model:
            return each
    raise NotFoundError(f"There is no model {model!r}. There are: {', '.join(gateway.pools)}.")


def _index(gateway: Gateway, model: str, name: str) -> int:
    names = [backend.name for backend in _of(gateway, model).backends]
    if name not in names:
        raise NotFoundError(f"{model} has no backend {name!r}. It has: {', '.join(names)}.")
    return names.index(name)


def _change(gateway: Gateway, model: str, backends: list[BackendSettings]) -> None:
    """Give a model other backends, with the checks that the file gets."""
    try:
        changed = ModelSettings.model_validate(
            _of(gateway, model).model_copy(update={"backends": tuple(backends)}).model_dump()
        )
        models = tuple(changed if each.name == model else each for each in gateway.settings.models)
        settings = gateway.settings.model_copy(update={"models": models})
        check_consistent(settings)
    except (ValidationError, ValueError) as error:
        raise SettingsError(str(error)) from None
    gateway.configure(settings)
