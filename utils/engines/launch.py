"""`launch("vllm", profile)`: one call for every engine, in whichever runtime the profile names.

with launch("vllm", profile) as engine:
    print(engine.base_url)
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import re
import shutil
import time
import weakref
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from utils import loopback
from utils.engines import gpu_proof, memory
from utils.engines.attached import (
    AttachedHandle,
    attached_options,
    attached_url,
    require_attachable,
)
from utils.engines.cell_runs import remember, stop_earlier, this_run
from utils.engines.container import (
    CONFIG_FOLDER,
    MODEL_FOLDER,
    ContainerHandle,
    connect,
    ensure_image,
    hand_back,
    run_arguments,
)
from utils.engines.diagnose import hint_for
from utils.engines.engine_errors import (
    EngineError,
    EngineStartError,
    NotRunHere,
    UnsupportedOption,
    skip_on_failure,
)
from utils.engines.memory_guard import GUARD
from utils.engines.models import find_model
from utils.engines.process import ProcessHandle
from utils.engines.registry import get_spec
from utils.engines.runtime import LOGS, Handle, check_port, free_port, last_log_line, new_log, tail
from utils.engines.spec import EngineSpec, ServeOptions
from utils.engines.start_progress import StartProgress
from utils.fleet_plan import engine_sizes
from utils.model_sizes import BITS_PER_WEIGHT
from utils.profiles import DTYPES, ROOT, Profile, load_profile

POLL_S = 0.25
REHEARSAL = "COURSE_REHEARSAL"  # variable that is set where stand-ins take the place of engines
# Patience with one question about health. A cancelled start waits for the answer, and no engine needs longer.
HEALTH_TIMEOUT_S = 2.0
_CHOICES = ("kv_cache_dtype", "kv_blocks", "prefix_caching", "eager", "config")
_PROFILE_FIELDS = (
    "context_length",
    "max_sequences",
    "kv_cache_gib",
    "gpu_memory_utilization",
    "dtype",
)
_alive: weakref.WeakSet[RunningEngine] = weakref.WeakSet()


class RunningEngine:
    """An engine that answers requests.

    Attributes:
        name: Engine name, `vllm`.
        spec: Its specification.
        base_url: `http://127.0.0.1:PORT`; the OpenAI-compatible API is under `/v1`.
        model: Model name to send with requests.
        model_path: Folder, file or hub id that was loaded.
        version: Version as the engine reports it.
        command: The command that runs it.
        options: The options it was started with.
        quantisation: Weight format, `BF16`, `FP32` or for instance `Q8_0`.
        log_path: Its log.
        start_seconds: Time from start to healthy, seconds.
        handicaps: Reasons why its speed says nothing about the engine on other machines.
        origin: Origin of records about it, `measured`, or `rehearsal` for a stub.
    """

    def __init__(self, spec: EngineSpec, options: ServeOptions, port: int, handle: Handle) -> None:
        self.name = spec.name
        self.spec = spec
        self.options = options
        self.base_url = f"http://127.0.0.1:{port}"
        self.model = options.served_name
        self.model_path = options.model
        self.version = ""
        self.command = list(handle.command)
        self.quantisation = quantisation_of(options.model, options.dtype)
        self.log_path = handle.log_path
        self.start_seconds = 0.0
        local = spec.local if options.device == "cpu" else None
        self.handicaps = (local.handicap,) if local is not None and local.handicap else ()
        self.origin = "rehearsal" if os.environ.get(REHEARSAL) else "measured"
        self._handle = handle
        self._stopped = False
        _alive.add(self)

    @property
    def attached(self) -> bool:
        """True if somebody else has started it, so that it must not be stopped or killed."""
        return isinstance(self._handle, AttachedHandle)

    @property
    def identity(self) -> str:
        """Process id, container id, or the address of an attached engine."""
        return self._handle.identity

    def running(self) -> bool:
        """Return whether it is still there; False once it was stopped, or died."""
        return not self._stopped and self._handle.exit_code() is None

    def exit_code(self) -> int | None:
        """Exit code of an engine that ended; None while it runs."""
        return self._handle.exit_code()

    def process_ids(self) -> set[int]:
        """Return the ids of the engine's processes."""
        return self._handle.process_ids()

    def memory_bytes(self) -> int:
        """Memory in use by the engine and all its processes, bytes (GPU memory not included)."""
        return self._handle.memory_bytes()

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of its log."""
        return tail(self.log_path, lines)

    def kill(self) -> None:
        """Kill it without warning, so its requests in flight are lost. `stop` still has to clean up."""
        self._handle.kill()

    def freeze(self) -> None:
        """Suspend it in the middle of its work. Its connections stay open."""
        self._handle.freeze()

    def thaw(self) -> None:
        """Let it go on."""
        self._handle.thaw()

    def stop(self) -> None:
        """Stop it and everything it started. Twice does no harm."""
        if not self._stopped:
            self._handle.stop()
            self._stopped = True
            memory.note_stop()

    def abandon(self) -> None:
        """End an engine that never served: it has nothing to save, so it is killed at once."""
        with contextlib.suppress(Exception):
            self.kill()
        self.stop()

    def __enter__(self) -> RunningEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.running() else "stopped"
        return f"<{self.spec.title} {self.version} at {self.base_url}, {state}>"


def quantisation_of(model: str, dtype: str) -> str:
    """Return the weight format that a model's name ends with, else the dtype's.

    Such names are `tiny-Q8_0.gguf`, `owner/name:Q8_0`, `owner/name-NVFP4` and `qwen3:8b-fp16`.
    """
    name = Path(model).name
    last = re.split("[:-]", name.removesuffix(".gguf"))[-1].upper()
    if model.endswith(".gguf") or ":" in name or last in BITS_PER_WEIGHT:
        return last
    return DTYPES[dtype][0] if dtype in DTYPES else dtype


def stop_all() -> None:
    """Stop every engine that this process started; also runs when the process ends."""
    for engine in list(_alive):
        with contextlib.suppress(Exception):
            engine.stop()


atexit.register(stop_all)


def launch(
    name: str,
    profile: Profile | str | None = None,
    *,
    model: str | Path | None = None,
    port: int | None = None,
    extra_arguments: tuple[str, ...] = (),
    quiet: bool = False,
    progress: StartProgress | None = None,
    **choices: Any,
) -> RunningEngine:
    """Start an engine and wait until it is healthy.

    Args:
        name: `vllm`, `sglang`, `tensorrt_llm`, `llama_cpp`, `ollama` or `transformers`. If the environment
            has `COURSE_VLLM_URL` (the same for each), the engine that runs there is returned.
        profile: Profile of the machine, or its name; None for this machine's.
        model: Folder, file or hub id; None for the profile's model of this engine.
        port: Port of 127.0.0.1; None takes a free one.
        extra_arguments: Appended to the engine's command.
        quiet: Without the progress line.
        progress: Gets the progress instead of a line of its own, and may cancel the start.
        **choices: `kv_cache_dtype`, `kv_blocks`, `prefix_caching`, `eager`, `config` (a file of the engine's
            own settings); and, over the profile's, `context_length`, `max_sequences`, `kv_cache_gib`,
            `gpu_memory_utilization`, `dtype`.

    Returns:
        The running engine, itself a context manager that stops it.

    Raises:
        UnknownEngine: No engine of that name.
        NotRunHere: This machine cannot run it; the message has the reason.
        UnsupportedOption: The engine has no such option, or could not start with it.
        ModelMissing: The local model is not there or not whole.
        PortTaken: `port` is in use.
        NotEnoughMemory: The GPU has too little free memory for it.
        EngineStartError: It did not become healthy; holds the end of its log and a remedy.
        StartCancelled: `progress` cancelled it; nothing is left.
    """
    spec = get_spec(name)
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    in_container = profile.runtime == "docker" and spec.container is not None
    check_choices(spec, choices)
    wanted = model or profile.models.get(name)
    fields = profile_fields(profile) | engine_sizes(name, profile) | choices
    if url := attached_url(name):
        require_attachable(spec, url, choices, extra_arguments)
        return attach(spec, profile, url, fields, progress or StartProgress(spec.title, quiet))
    spec.refuse(None if wanted is None else str(wanted), fields, extra_arguments)
    device = profile.device
    if not in_container:
        device = require_local(spec, profile)
    if wanted is None:
        raise NotRunHere(
            spec.title, spec.not_local or f"profile {profile.name} has no model for it"
        )
    found = find_model(str(wanted))
    if port is not None:
        check_port(port)
    host_port = port or free_port()
    if config := choices.get("config"):
        fields["config"] = str(Path(config).expanduser().resolve())
    options = ServeOptions(
        model=found,
        served_name=served_name(found),
        host="127.0.0.1",
        port=host_port,
        device=device,
        extra_arguments=extra_arguments,
        **fields,
    )
    run = this_run() if progress is None else None  # a fleet looks after its engines itself
    stop_earlier(run)
    progress = progress or StartProgress(spec.title, quiet)
    handle: Handle
    with memory.planned(spec, options, choices, progress.say, progress.check) as options:
        if in_container:
            handle = start_container(spec, options, host_port, progress)
        else:
            if options.device != profile.device:
                progress.say("on the CPU, because this build of it has no CUDA")
            handle = start_process(spec, options)
        engine = RunningEngine(spec, options, host_port, handle)
        remember(engine, run)
        if options.device == "cuda" and memory.unified():
            GUARD.watch(engine)
        try:
            wait_until_healthy(engine, profile.start_timeout_s, progress)
            if isinstance(handle, ContainerHandle):
                handle.hand_back()  # what it has downloaded
            require_gpu(engine, progress)
        except BaseException:
            engine.abandon()
            raise
    return engine


def attach(
    spec: EngineSpec, profile: Profile, url: str, fields: dict[str, Any], progress: StartProgress
) -> RunningEngine:
    """Return the engine that already runs at `url`, after asking for its health, model and version.

    Raises:
        EngineError: It does not answer, is not healthy, or serves no model.
    """
    options = attached_options(spec, url, profile.device, fields)
    engine = RunningEngine(spec, options, options.port, AttachedHandle(spec, url))
    engine.base_url = url
    engine.quantisation = "unknown"  # no engine tells it
    with loopback.client(timeout=5.0) as client:
        engine.version = ask_version(client, engine)
    progress.end(f"ready: attached at {url}, where it serves {engine.model}")
    return engine


class MissingEngine:
    """Placeholder for an engine that does not run: every use of it raises `EngineError`."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise EngineError(self._reason)

    def __enter__(self) -> RunningEngine:
        raise EngineError(self._reason)

    def __exit__(self, *_: object) -> None:
        """Never entered."""


def launch_first(
    names: Sequence[str], profile: Profile, reasons: MutableMapping[str, str]
) -> RunningEngine | MissingEngine:
    """Launch the first of several engines that runs here.

    Args:
        names: Engines, the preferred one first.
        profile: Where.
        reasons: Gets the reason of each engine before it, by its title.

    Returns:
        The engine, or a placeholder that raises `EngineError` at any use, which `skip_on_failure` can skip.
    """
    for name in names:
        with skip_on_failure(get_spec(name).title, reasons):
            return launch(name, profile)
    titles = ", ".join(get_spec(name).title for name in names)
    return MissingEngine(f"it needs an engine, and none of these started: {titles}")


def profile_fields(profile: Profile) -> dict[str, Any]:
    """Return the fields of `ServeOptions` that a profile gives."""
    return {field: getattr(profile, field) for field in _PROFILE_FIELDS}


def served_name(model: str) -> str:
    """Return the name that clients use for a model: the last part of its path or hub id, without `.gguf`."""
    return Path(model).name.removesuffix(".gguf")


def check_choices(spec: EngineSpec, choices: dict[str, Any]) -> None:
    """Refuse options that the engine does not have.

    Raises:
        UnsupportedOption: Names the option and those the engine has.
    """
    for option in choices:
        if option in _PROFILE_FIELDS or option in spec.options:
            continue
        known = ", ".join([*sorted(spec.options), *_PROFILE_FIELDS])
        reason = "does not offer" if option in _CHOICES else "does not know"
        raise UnsupportedOption(f"{spec.title} {reason} the option {option!r}. It takes: {known}.")


def require_local(spec: EngineSpec, profile: Profile) -> str:
    """Refuse an engine that can't run as a process here.

    Returns:
        Device that it computes on.

    Raises:
        NotRunHere: It has no local form, or its environment has not been set up.
    """
    local, device = spec.local_on(profile.device)
    if local is None:
        raise NotRunHere(spec.title, spec.not_local)
    if not local.needs.exists():
        raise NotRunHere(
            spec.title,
            f"its environment is not set up. Run: make setup STEP={local.setup} "
            f"(profile {profile.name})",
        )
    return device


def start_process(spec: EngineSpec, options: ServeOptions) -> ProcessHandle:
    """Start the engine as a local process."""
    local, _ = spec.local_on(options.device)
    assert local is not None
    command = [*local.command, *spec.arguments(options)]
    return ProcessHandle(command, local.environment(options), new_log(spec.name))


def start_container(
    spec: EngineSpec, options: ServeOptions, port: int, progress: StartProgress
) -> ContainerHandle:
    """Start the engine in its container; a local model folder is mounted into it."""
    assert spec.container is not None
    options = spec.settle(options)
    path = Path(options.model)
    inside = dataclasses.replace(options, host="0.0.0.0", port=spec.container.port)
    folder = None
    if path.exists():
        folder = path if path.is_dir() else path.parent
        seen_as = MODEL_FOLDER if path.is_dir() else f"{MODEL_FOLDER}/{path.name}"
        inside = dataclasses.replace(inside, model=seen_as)
    config = below_course(Path(options.config)) if options.config else None
    if config is not None:
        inside = dataclasses.replace(inside, config=f"{CONFIG_FOLDER}/{config.name}")
    client = connect()
    ensure_image(client, spec.container.image, progress.say, progress.check)
    arguments = spec.arguments(inside)
    settings = {**spec.container.environment, **spec.environment(inside)}
    container = dataclasses.replace(spec.container, environment=settings)
    request = run_arguments(container, arguments, port, folder, os.environ, config)
    hand_back(client, request)  # folders that a killed kernel's container has left
    return ContainerHandle(client, spec.title, request, new_log(spec.name))


def below_course(config: Path) -> Path:
    """Return a file that docker can mount: a copy in the course's folder, if it isn't there already.

    Docker often can't see /tmp, for example if it is snap's, or if the notebook itself is in a container. It
    then makes an empty folder of that name.
    """
    if config.is_relative_to(ROOT):
        return config
    LOGS.mkdir(exist_ok=True)
    copied = LOGS / f"{os.getpid()}-{config.name}"
    return Path(shutil.copyfile(config, copied))


def wait_until_healthy(engine: RunningEngine, timeout_s: float, progress: StartProgress) -> None:
    """Poll the engine's health endpoint.

    Raises:
        EngineStartError: The engine ended, or `timeout_s` seconds passed.
        StartCancelled: `progress` cancelled the start.
    """
    url = engine.base_url + engine.spec.health_path
    began = time.monotonic()
    with loopback.client(timeout=5.0) as client:
        while True:
            code = engine.exit_code()
            waited = time.monotonic() - began
            if code is not None or waited > timeout_s:
                log = engine.tail(20)
                what = f"ended with code {code}" if code is not None else "was not healthy"
                hint = hint_for(engine.tail(200), code)
                progress.end(f"failed after {waited:.0f} s")
                message = f"{what} after {waited:.0f} s of starting."
                raise EngineStartError(engine.spec.title, message, log, hint, engine.log_path)
            with contextlib.suppress(httpx.HTTPError):
                if client.get(url, timeout=HEALTH_TIMEOUT_S).status_code == 200:
                    break
            progress.show(waited, last_log_line(engine.log_path))
            progress.sleep(POLL_S)
        engine.spec.prepare(engine.base_url, engine.options, progress.say)
        warm_up(client, engine)
        engine.start_seconds = time.monotonic() - began
        engine.version = ask_version(client, engine)
    progress.end(f"ready after {engine.start_seconds:.0f} s at {engine.base_url}")


def require_gpu(engine: RunningEngine, progress: StartProgress) -> None:
    """Refuse a healthy engine that was started for a GPU and doesn't use it.

    Raises:
        EngineStartError: A proof is missing; names it, and the cure.
    """
    if engine.options.device != "cuda":
        return
    log = engine.log_path.read_text(encoding="utf-8", errors="replace")
    fault = engine.spec.device_fault(engine.base_url, log)
    fault = fault or gpu_proof.process_fault(engine.process_ids())
    if fault:
        progress.end("serves, but not on the GPU")
        message = f"is healthy, but it doesn't use the GPU: {fault}."
        raise EngineStartError(
            engine.spec.title, message, engine.tail(20), gpu_proof.CURE, engine.log_path
        )


def warm_up(client: httpx.Client, engine: RunningEngine) -> None:
    """Send the first request of an engine that needs a certain one; a failure shows in its log."""
    local = engine.spec.local
    if local is None or local.warm_up is None or engine.options.device != "cpu":
        return
    body = {"model": engine.model, "prompt": local.warm_up, "max_tokens": 2}
    with contextlib.suppress(httpx.HTTPError):
        client.post(f"{engine.base_url}/v1/completions", json=body, timeout=60.0)


def ask_version(client: httpx.Client, engine: RunningEngine) -> str:
    """Return the version that the engine tells, or the installed one if its program can't tell it."""
    local, _ = engine.spec.local_on(engine.options.device)
    if local and not local.tells_version and isinstance(engine._handle, ProcessHandle):
        return local.version
    if engine.spec.version_path is None:
        return "unknown"
    try:
        answer = client.get(engine.base_url + engine.spec.version_path).json()
    except (httpx.HTTPError, ValueError):
        return "unknown"
    return str(answer.get(engine.spec.version_key, "unknown"))
