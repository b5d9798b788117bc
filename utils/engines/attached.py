"""Engines that already run, for example one that a class shares: `COURSE_VLLM_URL=http://spark:8000`.

Each engine has such a variable. `launch` then returns the engine at that address. The course starts, stops
and kills nothing there, and cells that would have to are told so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from utils import loopback
from utils.engines.engine_errors import EngineError, NotRunHere
from utils.engines.runtime import LOGS
from utils.engines.spec import EngineSpec, ServeOptions
from utils.engines.structured import COMPACT_JSON

TIMEOUT_S = 10.0
# Sizes that a running engine has already; its own count.
SIZES = frozenset(
    {"context_length", "max_sequences", "kv_cache_gib", "gpu_memory_utilization", "dtype"}
)


def variable_of(name: str) -> str:
    """Return the environment variable that attaches an engine, `COURSE_VLLM_URL`."""
    return f"COURSE_{name.upper()}_URL"


def attached_url(name: str) -> str:
    """Return the address at which an engine is attached, or "" if it isn't."""
    return os.environ.get(variable_of(name), "").rstrip("/")


class AttachedHandle:
    """An engine that somebody else has started. See `runtime.Handle`."""

    def __init__(self, spec: EngineSpec, url: str) -> None:
        self.command: Sequence[str] = ("attached", url)
        self.log_path = LOGS / "attached.log"  # its log is with those who started it
        self.identity = url
        self._spec = spec

    def exit_code(self) -> int | None:
        """None while it answers; 1 if it doesn't, because its real exit code is unknown here."""
        try:
            with loopback.client(timeout=TIMEOUT_S) as client:
                healthy = client.get(self.identity + self._spec.health_path).status_code == 200
        except httpx.HTTPError:
            return 1
        return None if healthy else 1

    def memory_bytes(self) -> int:
        """0, because its memory can't be seen from here."""
        return 0

    def process_ids(self) -> set[int]:
        """None that can be seen from here."""
        return set()

    def kill(self) -> None:
        """Refuse: others may use it."""
        self._refuse("killed")

    def freeze(self) -> None:
        """Refuse: others may use it."""
        self._refuse("frozen")

    def thaw(self) -> None:
        """Refuse: it was never frozen."""
        self._refuse("thawed")

    def stop(self) -> None:
        """Leave it running for the others."""

    def _refuse(self, what: str) -> None:
        raise EngineError(
            f"{self._spec.title} at {self.identity} is attached, so it isn't {what}: others may use it. "
            f"Unset {variable_of(self._spec.name)} to let the course start an engine of its own."
        )


def require_attachable(
    spec: EngineSpec, url: str, choices: Mapping[str, Any], extra_arguments: Sequence[str]
) -> None:
    """Refuse a cell that needs an engine with options of its own.

    Raises:
        NotRunHere: An engine that already runs can't have them.
    """
    special = [f"{name}={value!r}" for name, value in choices.items() if name not in SIZES]
    if tuple(extra_arguments) != COMPACT_JSON.get(spec.name):
        special += extra_arguments
    if special:
        raise NotRunHere(
            spec.title,
            f"this part needs the engine started with {' '.join(special)}, and the attached one ({url}) "
            f"already runs. Unset {variable_of(spec.name)} to let the course start one",
        )


def served_model(spec: EngineSpec, url: str) -> tuple[str, str, int | None]:
    """Ask an attached engine for its health and its model.

    Returns:
        Name to send with requests, path or hub id if it tells one, and its context length if it tells one.

    Raises:
        EngineError: It does not answer, is not healthy, or serves no model.
    """
    advice = f"Check {variable_of(spec.name)}={url}, and that the engine there runs."
    if urlsplit(url).scheme not in ("http", "https"):
        raise EngineError(f"{url!r} is not an address such as http://spark:8000. {advice}")
    try:
        with loopback.client(timeout=TIMEOUT_S) as client:
            health = client.get(url + spec.health_path)
            if health.status_code != 200:
                raise EngineError(
                    f"{spec.title} at {url} is not healthy (HTTP {health.status_code}). {advice}"
                )
            models = client.get(f"{url}/v1/models").json()["data"]
            model = models[0]
            return (
                str(model["id"]),
                str(model.get("root") or model["id"]),
                model.get("max_model_len"),
            )
    except httpx.HTTPError as error:
        raise EngineError(f"{spec.title} at {url} does not answer ({error}). {advice}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EngineError(f"{spec.title} at {url} names no model ({error!r}). {advice}") from error


def attached_options(
    spec: EngineSpec, url: str, device: str, fields: Mapping[str, Any]
) -> ServeOptions:
    """Return the options of an attached engine: its own model, and sizes as far as it tells them."""
    name, path, context = served_model(spec, url)
    address = urlsplit(url)
    port = address.port or (443 if address.scheme == "https" else 80)
    found = dict(fields)
    if context is not None:
        found["context_length"] = context
    found["model"] = str(Path(path)) if Path(path).exists() else path
    return ServeOptions(
        served_name=name, host=str(address.hostname), port=port, device=device, **found
    )
