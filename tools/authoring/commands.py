"""The commands of the engines in a text, a compose file or a module: which program, with which arguments."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tools.authoring.cli_schemas.ask import CommandLine
from tools.authoring.text_blocks import Line, Passage
from utils.engines import ENGINES, ServeOptions, UnsupportedOption
from utils.engines.launch import profile_fields
from utils.engines.structured import COMPACT_JSON
from utils.profiles import PROFILES, Profile

# How each program is started. An engine's image starts it too.
LAUNCHERS: Mapping[str, re.Pattern[str]] = {
    "vllm serve": re.compile(r"\bvllm serve\b|\bvllm\.entrypoints\.openai\.api_server\b"),
    "vllm bench serve": re.compile(r"\bvllm bench serve\b"),
    "sglang.launch_server": re.compile(r"\bsglang\.launch_server\b|\bsglang serve\b"),
    "sglang_router.launch_router": re.compile(r"\bsglang_router\.launch_router\b"),
    "llama-server": re.compile(r"\bllama-server\b"),
    "trtllm-serve": re.compile(r"\btrtllm-serve\b"),
    "ollama": re.compile(r"\bollama (?:serve|run|pull|create|show|ps|stop|list)\b"),
}
ENGINE_OF: Mapping[str, str] = {
    "vllm serve": "vllm",
    "vllm bench serve": "vllm",
    "sglang.launch_server": "sglang",
    "sglang_router.launch_router": "sglang",
    "llama-server": "llama_cpp",
    "trtllm-serve": "tensorrt_llm",
    "ollama": "ollama",
}
SERVES: Mapping[str, str] = {
    "vllm": "vllm serve",
    "sglang": "sglang.launch_server",
    "llama_cpp": "llama-server",
    "tensorrt_llm": "trtllm-serve",
    "ollama": "ollama",
}
_ENDS = ("|", "&&", "&", ";", ">", "2>&1")
_SHELL_DEFAULT = re.compile(r"\$\{\w+:?-([^}]*)\}")


def split_image(image: str) -> tuple[str, str]:
    """Repository and tag of an image; no digest, and an empty tag where it has none."""
    name = image.partition("@")[0]
    repository, colon, tag = name.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (name, "")


def program_of_image(image: str) -> str | None:
    """The program that an engine's image runs; None for another image."""
    repository = split_image(image)[0]
    for engine, program in SERVES.items():
        container = ENGINES[engine].container
        if container and split_image(container.image)[0] == repository:
            return program
    return None


def started(text: str) -> list[tuple[int, str]]:
    """Programs that a text starts: where the name ends, and which; in order."""
    found = [
        (match.end(), program)
        for program, pattern in LAUNCHERS.items()
        for match in pattern.finditer(text)
    ]
    for engine, program in SERVES.items():
        container = ENGINES[engine].container
        if container and (at := text.find(split_image(container.image)[0] + ":")) >= 0:
            found.append((at, program))
    return sorted(found)


def of_passage(passage: Passage, name: str) -> Iterator[CommandLine]:
    """The engines' commands in a block of commands.

    Args:
        passage: The block.
        name: Its file, for messages.
    """
    for number, words in logical_lines(passage.lines):
        if found := as_command(words):
            yield CommandLine(found[0], tuple(found[1]), f"{name}:{number}")


def logical_lines(lines: Iterable[Line]) -> Iterator[tuple[int, list[str]]]:
    """Commands as a shell would cut them, over lines that go on or within quotes, and where they start."""
    start, held = 0, ""
    for line in lines:
        start = start if held else line.number
        held += line.text.strip().removeprefix("$ ")
        if held.endswith("\\"):
            held = held[:-1] + " "
            continue
        try:
            words = shlex.split(held, comments=True)
        except ValueError:  # a quote is open
            held += "\n"
            continue
        yield start, words
        held = ""


def as_command(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The engine's program that a command starts, and its arguments; None: it starts none.

    In `docker run`, what stands behind the image is the program's command, or its arguments alone.
    """
    end = next((n for n, word in enumerate(words) if word in _ENDS), None)
    words = [word for word in words[:end] if word != "..."]
    for at in range(len(words)):
        for program, pattern in LAUNCHERS.items():
            for length in (3, 2, 1):
                text = " ".join(words[at : at + length])
                if pattern.fullmatch(text.rpartition("/")[2] if length == 1 else text):
                    return program, words[at + length :]
    for at, word in enumerate(words):
        program_inside = program_of_image(word)
        if program_inside and words[at + 1 :]:
            return program_inside, words[at + 1 :]
    return None


def services(root: Path) -> Iterator[tuple[Path, str, Mapping[str, Any]]]:
    """The services of the compose files: file, name, content."""
    for path in sorted((root / "docker").glob("compose*.y*ml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for name, service in (content.get("services") or {}).items():
            yield path, name, service


def image_of(service: Mapping[str, Any]) -> str:
    """The image of a service, with the defaults of its variables; empty if it is built here."""
    return _SHELL_DEFAULT.sub(r"\1", str(service.get("image") or ""))


def of_compose(root: Path) -> Iterator[CommandLine]:
    """Commands of the compose files' services that run an engine's image."""
    for path, name, service in services(root):
        program = program_of_image(image_of(service))
        command = service.get("command") or []
        if program is None or not command:
            continue
        words = shlex.split(command) if isinstance(command, str) else [str(w) for w in command]
        words = [_SHELL_DEFAULT.sub(r"\1", word) for word in words]
        found = as_command(words) or (program, words)
        lines = path.read_text(encoding="utf-8").splitlines()
        at = next((n for n, text in enumerate(lines, 1) if text.strip().startswith(f"{name}:")), 1)
        yield CommandLine(found[0], tuple(found[1]), f"{path.relative_to(root)}:{at}")


def of_launch() -> Iterator[CommandLine]:
    """The commands that `launch` makes: every engine, profile and option of the course's."""
    for engine, program in SERVES.items():
        spec = ENGINES[engine]
        for profile in PROFILES.values():
            if engine not in profile.models:
                continue
            for options in _variations(engine, profile):
                try:
                    argv = spec.arguments(options)
                except UnsupportedOption:
                    continue
                where = f"launch({engine!r}) on profile {profile.name}"
                yield CommandLine(program, tuple(argv), where)


def _variations(engine: str, profile: Profile) -> Iterator[ServeOptions]:
    spec = ENGINES[engine]
    plain = ServeOptions(
        model=profile.models[engine],
        served_name="model",
        host="127.0.0.1",
        port=8000,
        device="cpu" if profile.runtime == "process" else "cuda",
        **profile_fields(profile),
    )
    yield plain
    for extra in _extras(engine, profile):
        yield dataclasses.replace(plain, extra_arguments=extra)
    values: Mapping[str, Sequence[Any]] = {
        "kv_blocks": (64,),
        "prefix_caching": (False,),
        "eager": (True, False),
        "kv_cache_dtype": spec.capabilities.kv_dtypes,
        "config": ("/course-config/settings.yml",),
    }
    for field in sorted(spec.options):
        for value in values[field]:
            yield dataclasses.replace(plain, **{field: value})


def _extras(engine: str, profile: Profile) -> Iterator[tuple[str, ...]]:
    """What the course's modules add to the commands."""
    from utils.labs.lab_3_3_5.experiments import sglang_options  # with PyTorch: seconds
    from utils.speculative.comparison import speculation

    if engine in COMPACT_JSON:
        yield COMPACT_JSON[engine]
    if engine == "vllm":
        yield speculation("ngram", 4)["extra_arguments"]
        for method in ("medusa", "eagle", "eagle3"):
            heads = profile.models.get(f"{method}_heads", "owner/heads")
            yield speculation(method, 3, heads)["extra_arguments"]
    if engine == "sglang":
        yield sglang_options(profile)["extra_arguments"]
