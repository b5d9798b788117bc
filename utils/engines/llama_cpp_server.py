"""llama.cpp's server from the wheel `xllamacpp`, started with the flags of `llama-server`.

The wheel has the server but no command line: each flag is an attribute of its `CommonParams`. This file
maps the flags that the course uses to these attributes. Names, values and defaults are those of llama.cpp's
common/arg.cpp.

Run it as a file with the Python of .engines/llama_cpp. It needs only the standard library and the wheel:

    .engines/llama_cpp/bin/python -P utils/engines/llama_cpp_server.py -m FILE.gguf --port 8080
"""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM)
DEFAULTS: Mapping[str, object] = {"port": 8080, "n_parallel": -1}  # where the wheel's differ
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
SPECULATION = (
    "none",
    "draft-simple",
    "draft-eagle3",
    "draft-mtp",
    "draft-dflash",
    "draft-dspark",
    "ngram-simple",
    "ngram-map-k",
    "ngram-map-k4v",
    "ngram-mod",
    "ngram-cache",
)


class FlagError(Exception):
    """A command line that the server can't be started with."""


@dataclass(frozen=True)
class EnumMember:
    """A member of one of the wheel's enumerations.

    Attributes:
        enumeration: Name of the enumeration, such as `ggml_type`.
        member: Name of the member, such as `GGML_TYPE_Q8_0`.
    """

    enumeration: str
    member: str


@dataclass(frozen=True)
class Flag:
    """A flag of `llama-server`.

    Attributes:
        names: Its spellings.
        attributes: Attributes of `CommonParams` that it sets, with dots.
        read: Function that turns the text after the flag into a value, or None for a switch.
        value: Value that a switch sets.
    """

    names: tuple[str, ...]
    attributes: tuple[str, ...]
    read: Callable[[str], object] | None = None
    value: object = True


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """Return a reader of whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]+", text) or not low <= int(text) <= high:
            raise FlagError(f"expected a whole number from {low} to {high}, but got {text!r}")
        return int(text)

    return read


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise FlagError(f"expected a number from 0 to 1, but got {text!r}")
    return value


def one_of(values: Mapping[str, object]) -> Callable[[str], object]:
    """Return a reader of the words in `values`."""

    def read(text: str) -> object:
        if text not in values:
            raise FlagError(f"expected one of {', '.join(values)}, but got {text!r}")
        return values[text]

    return read


def words(text: str) -> list[str]:
    """Read a list of words with commas between them."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise FlagError(f"expected at least one word, but got {text!r}")
    return found


def layers(text: str) -> int:
    """Read a number of layers, `auto` or `all`."""
    named = {"auto": -1, "all": -2}
    return named[text] if text in named else whole(0)(text)


def threads(text: str) -> int:
    """Read a number of threads. Anything below 1 means every core, which the wheel calls -1."""
    return max(whole(-1)(text), 0) or -1


def speculation(text: str) -> list[object]:
    """Read the methods of speculative decoding."""
    members = {
        name: EnumMember(
            "common_speculative_type",
            f"COMMON_SPECULATIVE_TYPE_{name.upper().replace('-', '_')}",
        )
        for name in SPECULATION
    }
    return [one_of(members)(word) for word in words(text)]


KV_TYPE = one_of({name: EnumMember("ggml_type", f"GGML_TYPE_{name.upper()}") for name in KV_TYPES})
FLASH_ATTENTION = one_of(
    {
        word: EnumMember("llama_flash_attn_type", f"LLAMA_FLASH_ATTN_TYPE_{member}")
        for word, member in (("on", "ENABLED"), ("off", "DISABLED"), ("auto", "AUTO"))
    }
)
NGRAM = "speculative.ngram_simple"
DRAFT = "speculative.draft"
FLAGS = (
    Flag(("-m", "--model"), ("model.path",), str),
    Flag(("-a", "--alias"), ("model_alias",), lambda text: set(words(text))),
    Flag(("--host",), ("hostnames",), words),
    Flag(("--port",), ("port",), whole(0, 65535)),
    Flag(("--api-key",), ("api_keys",), words),
    Flag(("-to", "--timeout"), ("timeout_read", "timeout_write"), whole(1)),
    Flag(("--threads-http",), ("n_threads_http",), whole(-1)),
    Flag(("--metrics",), ("endpoint_metrics",)),
    Flag(("--props",), ("endpoint_props",)),
    Flag(("--slots",), ("endpoint_slots",)),
    Flag(("--no-slots",), ("endpoint_slots",), value=False),
    Flag(("-np", "--parallel"), ("n_parallel",), whole(-1, 256)),
    Flag(("-c", "--ctx-size"), ("n_ctx",), whole(0)),
    Flag(("-n", "--predict", "--n-predict"), ("n_predict",), whole(-1)),
    Flag(("-b", "--batch-size"), ("n_batch",), whole(1)),
    Flag(("-ub", "--ubatch-size"), ("n_ubatch",), whole(1)),
    Flag(("-t", "--threads"), ("cpuparams.n_threads",), threads),
    Flag(("-tb", "--threads-batch"), ("cpuparams_batch.n_threads",), threads),
    Flag(("-ngl", "--gpu-layers", "--n-gpu-layers"), ("n_gpu_layers",), layers),
    Flag(("--repack",), ("no_extra_bufts",), value=False),
    Flag(("-nr", "--no-repack"), ("no_extra_bufts",)),
    Flag(("-fa", "--flash-attn"), ("flash_attn_type",), FLASH_ATTENTION),
    Flag(("-ctk", "--cache-type-k"), ("cache_type_k",), KV_TYPE),
    Flag(("-ctv", "--cache-type-v"), ("cache_type_v",), KV_TYPE),
    Flag(("-kvu", "--kv-unified"), ("kv_unified",)),
    Flag(("-no-kvu", "--no-kv-unified"), ("kv_unified",), value=False),
    Flag(("--cache-prompt",), ("cache_prompt",)),
    Flag(("--no-cache-prompt",), ("cache_prompt",), value=False),
    Flag(("--cache-reuse",), ("n_cache_reuse",), whole(0)),
    Flag(("-cram", "--cache-ram"), ("cache_ram_mib",), whole(-1)),
    Flag(("-cb", "--cont-batching"), ("cont_batching",)),
    Flag(("-nocb", "--no-cont-batching"), ("cont_batching",), value=False),
    Flag(("--context-shift",), ("ctx_shift",)),
    Flag(("--no-context-shift",), ("ctx_shift",), value=False),
    Flag(("--warmup",), ("warmup",)),
    Flag(("--no-warmup",), ("warmup",), value=False),
    Flag(("--jinja",), ("use_jinja",)),
    Flag(("--no-jinja",), ("use_jinja",), value=False),
    Flag(("--chat-template",), ("chat_template",), str),
    Flag(("--embedding", "--embeddings"), ("embedding",)),
    Flag(("-s", "--seed"), ("sampling.seed",), whole(-1, 2**32 - 1)),
    Flag(("-lv", "--verbosity", "--log-verbosity"), ("verbosity",), whole(0)),
    Flag(("--spec-type",), ("speculative.types",), speculation),
    Flag(("-md", "--model-draft", "--spec-draft-model"), (f"{DRAFT}.mparams.path",), str),
    Flag(("--spec-draft-n-max",), (f"{DRAFT}.n_max",), whole(0)),
    Flag(("--spec-draft-n-min",), (f"{DRAFT}.n_min",), whole(0)),
    Flag(("--spec-draft-p-min", "--draft-p-min"), (f"{DRAFT}.p_min",), share),
    Flag(("--spec-ngram-simple-size-n",), (f"{NGRAM}.size_n",), whole(1, 1024)),
    Flag(("--spec-ngram-simple-size-m",), (f"{NGRAM}.size_m",), whole(1, 1024)),
    Flag(("--spec-ngram-simple-min-hits",), (f"{NGRAM}.min_hits",), whole(1)),
)
# Flags of `llama-server` that the wheel can't honour, and the way out.
REFUSED = {
    name: "The wheel can't download models. Download the file yourself and pass it with -m."
    for name in ("-hf", "-hfr", "--hf-repo")
}


def list_flags() -> str:
    """Return the known flags, wrapped into lines."""
    return textwrap.fill(
        ", ".join("|".join(flag.names) for flag in FLAGS),
        width=110,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def parse(arguments: Sequence[str]) -> dict[str, object]:
    """Read a command line.

    Args:
        arguments: Flags with their values. If one comes twice, the last one counts, as in `llama-server`.

    Returns:
        Value of each attribute of `CommonParams` that is set.

    Raises:
        FlagError: A flag is unknown or its value is wrong. The message names both.
    """
    known = {name: flag for flag in FLAGS for name in flag.names}
    settings = dict(DEFAULTS)
    left = list(arguments)
    while left:
        given = left.pop(0)
        name = given.replace("_", "-") if given.startswith("--") else given
        if name in REFUSED:
            raise FlagError(f"error: invalid argument: {given}. {REFUSED[name]}")
        if name not in known:
            raise FlagError(
                f"The known flags are:\n{list_flags()}\nerror: invalid argument: {given}"
            )
        flag = known[name]
        value = flag.value
        if flag.read is not None:
            if not left:
                raise FlagError(f"error: argument {given}: expected a value after it")
            try:
                value = flag.read(left.pop(0))
            except FlagError as error:
                raise FlagError(f"error: argument {given}: {error}") from None
        settings.update(dict.fromkeys(flag.attributes, value))
    if settings["n_parallel"] == 0:
        raise FlagError("error: argument -np: expected at least one slot, or -1 for the default")
    if "model.path" not in settings:
        raise FlagError("error: argument -m: no model is given. Pass a .gguf file with -m.")
    if (
        "cpuparams.n_threads" in settings
    ):  # a prompt is processed with as many threads, unless -tb is given
        settings.setdefault("cpuparams_batch.n_threads", settings["cpuparams.n_threads"])
    return settings


def apply(settings: Mapping[str, object], wheel: Any) -> Any:
    """Return the wheel's `CommonParams` with `settings`.

    Args:
        settings: Values from `parse`.
        wheel: The module `xllamacpp`.
    """
    parameters = wheel.CommonParams()
    for attribute, value in settings.items():
        *path, last = attribute.split(".")
        holder = parameters
        for part in path:
            holder = getattr(holder, part)
        setattr(holder, last, resolve(value, wheel))
    return parameters


def resolve(value: object, wheel: Any) -> object:
    """Replace each `EnumMember` in a value by the member of the wheel's enumeration."""
    if isinstance(value, list):
        return [resolve(one, wheel) for one in value]
    if isinstance(value, EnumMember):
        return getattr(getattr(wheel, value.enumeration), value.member)
    return value


def serve(settings: Mapping[str, object], wheel: Any) -> int:
    """Start the server and wait for SIGTERM or Ctrl-C.

    After a signal, the process ends here with exit code 0.

    Returns:
        Exit code of a server that couldn't start.
    """
    # The wheel sets handlers of its own, which stop the server but not this process. Its threads inherit
    # this mask, so no handler runs, and the signal waits until `sigwait` takes it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        server = wheel.Server(apply(settings, wheel))
    except (RuntimeError, ValueError) as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        print(f"error: the server did not start, the lines above say why: {error}", file=sys.stderr)
        return 1
    print(f"xllamacpp {version('xllamacpp')} serves at {server.listening_address}", flush=True)
    signal.sigwait(STOPS)
    print("stopped by a signal", flush=True)
    os._exit(0)  # the wheel's own end waits for running streams: 30 s, measured 2026-11-30


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    if set(arguments) & {"-h", "--help"}:
        print(f"{__doc__}\nThe known flags are:\n{list_flags()}")
        return 0
    try:
        settings = parse(arguments)
    except FlagError as error:
        print(error, file=sys.stderr)
        return 1
    model = Path(str(settings["model.path"]))
    if not model.is_file():
        print(f"error: failed to load model: {model} is not a file.", file=sys.stderr)
        return 1
    try:
        import xllamacpp
    except ImportError as error:
        print(
            f"error: {sys.executable} can't import xllamacpp ({error}). "
            "Run: make setup STEP=llama_cpp",
            file=sys.stderr,
        )
        return 1
    return serve(settings, xllamacpp)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
