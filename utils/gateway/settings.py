"""The gateway's settings: one YAML file, and environment variables over it.

    GATEWAY_CONFIG=gateway.yaml GATEWAY_PORT=9000 GATEWAY_TIMEOUTS__IDLE_S=20 python -m utils.gateway

A variable is `GATEWAY_` and the key in capitals, `__` for a dot. A wrong value is refused before anything
listens, with the key's name.
"""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from utils.engines.registry import ENGINES
from utils.gateway.balance import POLICIES
from utils.http.names import is_address

CONFIG_VARIABLE = "GATEWAY_CONFIG"
_SERVICE_VARIABLE = re.compile(
    r"GATEWAY_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_.+)?)"
)
Seconds = Annotated[float, Field(gt=0, le=86400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]


class SettingsError(ValueError):
    """Settings that cannot be meant; names each key."""


class SettingsGroup(BaseModel):
    """A group of settings; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackendSettings(SettingsGroup):
    """One running engine.

    Attributes:
        name: Unique name, for metrics and logs.
        engine: Name of the engine in `utils.engines`; tells the path of its health check.
        url: `http://HOST:PORT`, without `/v1`.
        model: The model's name there; None: as clients call it.
        max_outstanding: Most requests in flight there; more wait in the queue.
        api_key_file: File with the key that the engine asks for (`--api-key`). It never gets clients' keys.
        ca_file: Certificate authorities for an https:// address; None takes the system's.
        discover: True if the host is a DNS name of several engines. Then each of its addresses is a backend,
            and the name is looked up again all the time: replicas come and go while the gateway runs.
        draining: True if it gets no new requests. Those in flight there end as usual.
    """

    name: Name
    engine: str
    url: str
    model: str | None = None
    max_outstanding: Count = 64
    api_key_file: Path | None = None
    ca_file: Path | None = None
    discover: bool = False
    draining: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """Headers that every request to the engine gets: its key, if it has one."""
        if self.api_key_file is None:
            return {}
        return {"authorization": f"Bearer {self.api_key_file.read_text(encoding='utf-8').strip()}"}

    @field_validator("ca_file")
    @classmethod
    def _holds_certificates(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                ssl.create_default_context(cafile=value)
            except (OSError, ssl.SSLError) as error:
                raise ValueError(f"{value} can't be read as PEM certificates: {error}") from None
        return value

    @field_validator("api_key_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                text = value.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"it can't be read: {error}") from None
            if not text or not text.isascii() or not text.isprintable():
                raise ValueError("write one line with the engine's key into it")
        return value

    @field_validator("engine")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ENGINES:
            raise ValueError(f"there is no engine {value!r}; known: {', '.join(ENGINES)}")
        return value

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write http://HOST:PORT")
        if parts.path.strip("/"):
            raise ValueError("write the address without a path: /v1 is added")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _can_be_discovered(self) -> BackendSettings:
        parts = urlsplit(self.url)
        if self.discover and (parts.scheme != "http" or is_address(parts.hostname or "")):
            raise ValueError("discover: the url has to be http://NAME:PORT, with a DNS name")
        return self

    def at(self, address: str) -> BackendSettings:
        """Return the settings of one engine that was discovered at an address."""
        host = f"[{address}]" if ":" in address else address
        port = urlsplit(self.url).port or 80
        changes = {
            "name": f"{self.name}-{address}",
            "url": f"http://{host}:{port}",
            "discover": False,
        }
        return self.model_copy(update=changes)


class Price(SettingsGroup):
    """Price of a million tokens, in a currency of your choice; 0 for what isn't charged.

    Attributes:
        prompt: Price of a million prompt tokens.
        completion: Of a million tokens of answers.
    """

    prompt: float = Field(default=0.0, ge=0)
    completion: float = Field(default=0.0, ge=0)


class ModelSettings(SettingsGroup):
    """A model as clients know it, and who serves it.

    Attributes:
        name: The name in requests.
        backends: Its replicas.
        policy: Rule that chooses one of them.
        price: Price of its tokens, for the metric of each key's cost.
    """

    name: Name
    backends: tuple[BackendSettings, ...] = Field(min_length=1)
    price: Price = Price()
    policy: str = "least_outstanding"

    @field_validator("policy")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in POLICIES:
            raise ValueError(f"there is no policy {value!r}; known: {', '.join(POLICIES)}")
        return value


class KeySettings(SettingsGroup):
    """One API key. The key itself is nowhere: `python -m utils.gateway new-key NAME` prints it once.

    Attributes:
        name: Owner's name, for logs.
        sha256: SHA-256 of the key, in hexadecimal.
        requests_per_minute: Requests allowed in the long run; a minute's worth may come at once.
        tokens_per_minute: The same for prompt and answer tokens.
        max_parallel: Requests of this key that may be in the gateway at once, waiting or running.
    """

    name: Name
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: float = Field(default=600, gt=0)
    tokens_per_minute: float = Field(default=600_000, gt=0)
    max_parallel: Count = 64


class GatewayLimits(SettingsGroup):
    """Limits of a request.

    Attributes:
        body_bytes: Size of the body. Images and long documents need megabytes.
        max_tokens: Longest answer; a request that asks for more gets this. If a request sets none, its answer
            is counted as so many tokens until its end, which the engine decides, at the latest at its
            context. No number is written in: vLLM refuses one above its context (renderers/params.py), SGLang
            one that exceeds it together with the prompt (managers/tokenizer_manager.py).
        choices: Largest `n` and `best_of`.
        messages: Messages of a chat; prompts of a batch.
    """

    body_bytes: int = Field(default=32 << 20, ge=1, le=1 << 30)
    max_tokens: Count = 4096
    choices: Count = 8
    messages: Count = 1000


class Queue(SettingsGroup):
    """Requests that wait for a backend.

    Attributes:
        size: Most that wait, for each model; 429 beyond it. 0: nobody waits.
        wait_s: Longest wait; 429 after it.
    """

    size: int = Field(default=64, ge=0, le=100_000)
    wait_s: Seconds = 10.0


class Timeouts(SettingsGroup):
    """Longest times, s.

    A long prompt or a long answer isn't a fault. So two of the limits grow by the time that a request may
    need at the slowest rates that you promise.

    Attributes:
        deadline_s: A whole request, from its last byte in to its last byte out. The time for its prompt and
            its longest answer is added.
        first_byte_s: From sending to an engine to the first token of a stream; then another is tried. The
            time for the prompt is added, and for an answer in one piece also the time for the answer.
        prefill_tokens_per_s: Slowest rate at which prompts are read.
        decode_tokens_per_s: Slowest rate at which one answer is written.
        idle_s: Between two events of a stream; then it ends with an error event. Comments don't count.
        ping_s: A client that waits for a stream gets a comment after each such time, because load balancers
            close connections that are silent (nginx and AWS after 60 s).
        send_s: A client that does not read; then it is dropped.
        body_s: From a request's head to the end of its body.
    """

    deadline_s: Seconds = 300.0
    first_byte_s: Seconds = 60.0
    prefill_tokens_per_s: float = Field(default=200.0, gt=0)
    decode_tokens_per_s: float = Field(default=5.0, gt=0)
    idle_s: Seconds = 30.0
    ping_s: Seconds = 15.0
    send_s: Seconds = 30.0
    body_s: Seconds = 30.0


class Health(SettingsGroup):
    """Active and passive health checks.

    Attributes:
        every_s: Between two checks of a backend.
        timeout_s: Longest time of one check.
        failures: Failed checks in a row that take a backend out; one good check takes it back.
        circuit_failures: Failed requests in a row that open its circuit. The last backend's never opens.
        circuit_open_s: Time without requests after that. Then the gateway asks for one token itself.
        silence_s: A backend with work and room from which nothing came for so long is asked for one token.
        probe_s: Longest time of the answer to such a question.
        retries: Number of times a request is sent to another backend, as long as its client has got nothing.
        retry_share: Retries for each request, in the long run. More would multiply the load of an outage.
        retry_reserve: Retries that may come at once, for example when a backend dies with many requests.
    """

    every_s: Seconds = 1.0
    timeout_s: Seconds = 1.0
    failures: Count = 2
    circuit_failures: Count = 3
    circuit_open_s: Seconds = 5.0
    silence_s: Seconds = 10.0
    probe_s: Seconds = 10.0
    retries: int = Field(default=2, ge=0, le=10)
    retry_share: float = Field(default=0.1, gt=0, le=10)
    retry_reserve: Count = 100


class Drain(SettingsGroup):
    """Phases after SIGTERM.

    Attributes:
        notice_s: Not ready, but still serving: until load balancers have noticed.
        limit_s: After this, requests in flight end with an error.
    """

    notice_s: float = Field(default=2.0, ge=0, le=600)
    limit_s: Seconds = 30.0


class Private(SettingsGroup):
    """A second port for operators, which clients must not reach.

    It has the metrics, the state of the backends, and commands that add, drain and remove them.

    Attributes:
        host: Address to listen on.
        port: Port to listen on, 0 for a free one. None: there is no such port.
    """

    host: str = "127.0.0.1"
    port: int | None = Field(default=None, ge=0, le=65535)


class Affinity(SettingsGroup):
    """The policy `prefix_affinity`.

    Attributes:
        characters: Length of the first text after the system message that makes the key, with that message.
        header: Header in which clients name their session; it is the key then. The field `prompt_cache_key`
            is the second choice.
        slack: Largest number of a backend's requests in flight, as a factor of the mean.
    """

    characters: Count = 512
    header: str = Field(default="x-session-id", pattern=r"^[a-z0-9-]+$")
    slack: float = Field(default=1.25, ge=1, le=100)


class GatewaySettings(BaseSettings):
    """All of it.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        models: Models to serve.
        keys: Keys of the callers.
        hosts: Names under which a gateway without keys is reached, in addition to localhost and IP addresses.
            It refuses others, because a foreign web page could use them (DNS rebinding).
        allow_anonymous: Serve without keys. Without keys and without this, the gateway does not start.
        cors_origins: Web pages of other origins that may call; none by default. Without keys, requests that
            browsers send for other pages are refused.
        log_level: `debug`, `info`, `warning` or `error`.
    """

    model_config = SettingsConfigDict(
        env_prefix="GATEWAY_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    models: tuple[ModelSettings, ...] = Field(min_length=1)
    keys: tuple[KeySettings, ...] = ()
    hosts: tuple[str, ...] = ()
    allow_anonymous: bool = False
    cors_origins: tuple[str, ...] = ()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    limits: GatewayLimits = GatewayLimits()
    queue: Queue = Queue()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    drain: Drain = Drain()
    private: Private = Private()
    affinity: Affinity = Affinity()

    @model_validator(mode="after")
    def _consistent(self) -> GatewaySettings:
        check_consistent(self)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the file, whose values come as arguments."""
        assert isinstance(env_settings, EnvSettingsSource)
        env_settings.env_vars = {
            name: value
            for name, value in env_settings.env_vars.items()
            if not _of_kubernetes(name, value)
        }
        return env_settings, init_settings


def check_consistent(settings: GatewaySettings) -> None:
    """Check the rules that join several settings.

    Raises:
        ValueError: One is broken.
    """
    backends = [backend.name for model in settings.models for backend in model.backends]
    for kind, names in (
        ("models", [model.name for model in settings.models]),
        ("models.backends", backends),
        ("keys", [key.name for key in settings.keys]),
    ):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{kind}: the name {twice[0]!r} occurs twice")
    if not settings.keys and not settings.allow_anonymous:
        raise ValueError(
            "keys: there are none, so nobody could ask. Add one (python -m utils.gateway new-key "
            "NAME), or set allow_anonymous: true"
        )


def load_settings(path: str | Path | None = None, **values: Any) -> GatewaySettings:
    """Read the settings.

    Args:
        path: The YAML file; None: the one that GATEWAY_CONFIG names, or none.
        **values: Over the file's.

    Raises:
        SettingsError: The file cannot be read, or a key is missing, unknown or wrong; names it.
    """
    path = path or os.environ.get(CONFIG_VARIABLE)
    found: Any = {}
    if path:
        try:
            found = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except PermissionError as error:
            raise SettingsError(
                f"{path} cannot be read: {error}. In a container, the gateway is a user of its own. If the "
                "files were checked out with umask 077, run: chmod -R go+rX docker models"
            ) from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"{path} cannot be read: {error}") from None
        if not isinstance(found, dict):
            raise SettingsError(f"{path}: write `key: value` lines, not a {type(found).__name__}.")
    known = {name.upper() for name in GatewaySettings.model_fields}
    for variable, value in os.environ.items():
        if _of_kubernetes(variable, value):
            continue
        if variable.startswith("GATEWAY_") and variable != CONFIG_VARIABLE:
            key = variable.removeprefix("GATEWAY_").split("__")[0].upper()
            if key not in known:
                raise SettingsError(f"{variable}: there is no key {key.lower()!r}.")
    try:
        return GatewaySettings(**{str(key): value for key, value in found.items()} | values)
    except ValidationError as error:
        lines = [f"{_key(problem['loc'])}{problem['msg']}" for problem in error.errors()]
        where = f" in {path}" if path else ""
        raise SettingsError(f"Wrong settings{where}:\n  " + "\n  ".join(lines)) from None
    except Exception as error:  # pydantic-settings: a variable that is no JSON where JSON is needed
        raise SettingsError(f"Wrong settings in the environment: {error}") from None


def _of_kubernetes(variable: str, value: str | None) -> bool:
    """Return whether Kubernetes set it: each container gets such variables for a Service named `gateway`."""
    name = variable.upper()
    if name == "GATEWAY_PORT":
        return "://" in (value or "")
    return _SERVICE_VARIABLE.fullmatch(name) is not None


def _key(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place)) + ": " if place else ""
