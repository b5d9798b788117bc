"""`python -m tools.authoring flags`: whether today's engines accept all that the course says they do.

Arguments, environment variables, settings, metric names, model names and images are looked up wherever they
stand: modules, notebooks' sources, documents, compose files. What is a whole command goes through the
engine's own parser where that engine is installed; so do the commands that `launch` makes, for every profile.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.authoring.cli_schemas import FOLDER, Accepted, Option, accepted, nearest, recorded
from tools.authoring.cli_schemas.ask import ASKED, Answer, CommandLine, ask, installed
from tools.authoring.cli_schemas.removed_options import MODELS, TOLD, find_stale
from tools.authoring.commands import (
    ENGINE_OF,
    image_of,
    of_compose,
    of_launch,
    of_passage,
    services,
    split_image,
    started,
)
from tools.authoring.text_blocks import Line, Passage, passages
from utils.engines import ENGINES, UnsupportedOption
from utils.engines.tensorrt_llm_settings import TrtLlmSettings

WHERE = (
    *("*.md", "models/**/*.md", "solutions/*.md", "solutions/lab-*.py", "solutions/grading/*.py"),
    *("utils/**/*.py", "benchmarks/*.py", "docker/**/*.y*ml", "docker/*.Dockerfile"),
    *("docker/**/*.json", "docker/**/*.env", "solutions/*.mk", "Makefile"),
)
# What keeps the lists has to name what is on them; the package's own code is for one version of SGLang.
NOT = (
    "tools/authoring/engine_flags_lint.py",
    "tools/authoring/cli_schemas/",
    "tools/setup/sglang_cpu/",
)
# Code that refuses what is gone, by its name.
REFUSES = {
    ("utils/engines/tensorrt_llm_checks.py", "trtllm-build"),
    ("utils/engines/tensorrt_llm_checks.py", "--engine_dir"),
}
RECORD = "python -m tools.authoring flags --record"

_FLAG = re.compile(r"(?<![\w/=:.-])--[A-Za-z][\w-]*")
_SHORT = re.compile(r"(?<![\w/=:.-])-[a-z]{1,5}(?![\w-])")
_SPAN = re.compile(r"`([^`\n]+)`")
_METRIC = re.compile(
    r"(?<![\w/.-])(?:(?:vllm|sglang|llamacpp):|trtllm_)[a-z][a-z0-9_]*[a-z0-9](?![\w{*(])(?![.-]\w)"
)
_METRICS_OF = {"vllm:": "vllm", "sglang:": "sglang", "llamacpp:": "llama_cpp"}
_VARIABLE = re.compile(r"\b(?:VLLM|SGLANG|SGL|OLLAMA|LLAMA_ARG|TRTLLM|TLLM)_[A-Z0-9_]*[A-Z0-9]\b")
_VARIABLES_OF = {"VLLM": "vllm", "SGL": "sglang", "OLLAMA": "ollama", "LLAMA_ARG": "llama_cpp"}
_SETTING = re.compile(r"^[a-z_]+: \S")
_HUB = re.compile(r"(?<![\w./:-])([\w.-]+/[\w.-]*?\d+(?:\.\d+)?[bB](?![A-Za-z])[\w.-]*)")
_OLLAMA_MODEL = re.compile(r"(?<![\w./:-])[a-z][a-z0-9.]*:\d+(?:\.\d+)?b(?:-[\w.-]+)?(?![\w/])")
_FOLDERS = ("owner", "models", "labs", "heads", ".", "..", "/")

# Words by which a text names an engine.
NAMED: Mapping[str, re.Pattern[str]] = {
    "vllm": re.compile(r"vllm", re.IGNORECASE),
    "sglang": re.compile(r"sglang|\bsgl\b", re.IGNORECASE),
    "llama_cpp": re.compile(r"llama[._-]?(cpp|server)", re.IGNORECASE),
    "tensorrt_llm": re.compile(r"tensorrt|trtllm", re.IGNORECASE),
    "ollama": re.compile(r"\bollama", re.IGNORECASE),
}
# Modules that write one program's command, and nothing else's.
OF_MODULE: Mapping[str, str] = {
    "utils/engines/vllm.py": "vllm serve",
    "utils/engines/sglang.py": "sglang.launch_server",
    "utils/engines/llama_cpp.py": "llama-server",
    "utils/engines/tensorrt_llm.py": "trtllm-serve",
    "utils/engines/router.py": "sglang_router.launch_router",
}
# Flags of other programs that texts and modules call: docker, pip, uv, git, apt, bwrap, jupyter, nvidia-smi,
# wsl, systemctl, ss, ray, litellm, sphinx, pytest.
OTHERS = frozenset(
    f"--{name}"
    for name in re.findall(
        r"\S+",
        """
    LabApp ServerApp abbrev address alias allow-insecure-host always api_base bind block bounding-set
    build cap-add cap-drop chdir clear-groups constraint default-index detach dev device die-with-parent
    dir dirty disable-userns durations entrypoint env extra extra-index-url file filter find-links force
    format gpus group hash head help hostname index-strategy index-url inh-caps install ipc keep-going
    mount name nbmake network new-session no-annotate no-binary no-build-isolation no-cache-dir
    no-create-home no-deps no-emit-package no-header no-headers no-index no-input no-install-recommends
    no-new-privs node-ip-address now num_workers only-binary perms platform privileged proc profile
    progress-bar publish pull python python-platform python-version query-compute-apps query-gpu quiet
    regid remount-ro report require-hashes restart reuid rm ro-bind ro-bind-try root-user-action runtime
    sb-state shm-size shutdown size sort strict-markers symlink system tag target tmpfs torch-backend
    ulimit universal unshare-cgroup-try unshare-ipc unshare-net unshare-pid unshare-user unshare-uts
    update upgrade user version volume workdir
        """,
    )
)
OTHERS_VARIABLES = frozenset({"OLLAMA_BASE_URL"})  # Open WebUI's


@dataclass(frozen=True)
class Finding:
    """Something that an engine does not accept.

    Attributes:
        path: File, relative to the course's folder; or what makes it while it runs.
        line: Line in it; 0 for none.
        message: What is wrong, and what to write.
    """

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.message}"


@dataclass(frozen=True)
class Known:
    """What things are looked up in.

    Attributes:
        engines: What each engine accepts.
        own: Options of the course's own commands.
        images: Repository of an image to the tag that the course pins.
    """

    engines: Mapping[str, Accepted]
    own: frozenset[str]
    images: Mapping[str, str]

    def options(self, program: str) -> Mapping[str, Option]:
        """The options of a program."""
        return self.engines[ENGINE_OF[program]].programs[program]


def look(
    root: Path,
    engines: Mapping[str, Accepted] | None = None,
    written: Sequence[CommandLine] | None = None,
) -> list[Finding]:
    """Everything in the course's texts that the lists do not have.

    Args:
        root: The course's folder.
        engines: What engines accept; None for the recorded lists.
        written: Its `commands`, where they have been read already.
    """
    known = Known(engines or recorded(), _own_flags(root), _images(root))
    findings = [
        Finding(str(passage.path.relative_to(root)), line, message)
        for path in _files(root)
        if _worth_reading(path, known)
        for passage in passages(path)
        for line, message in _in_passage(passage, str(passage.path.relative_to(root)), known)
    ]
    seen = {(finding.path, name) for finding in findings for name in _FLAG.findall(finding.message)}
    findings += [
        finding
        for finding in refused(commands(root) if written is None else written, known.engines)
        if not any((finding.path, name) in seen for name in _FLAG.findall(finding.message))
    ]
    return sorted(set(findings), key=lambda f: (f.path, f.line, f.message))


def commands(root: Path) -> list[CommandLine]:
    """Every whole command of an engine in code blocks and compose files."""
    texts = [path for path in _files(root) if path.suffix == ".md" or path.match("solutions/*.py")]
    blocks = [passage for path in texts for passage in passages(path) if passage.code]
    found = [c for block in blocks for c in of_passage(block, str(block.path.relative_to(root)))]
    return found + list(of_compose(root))


def _worth_reading(path: Path, known: Known) -> bool:
    """Whether anything at all that is looked up stands in a file: most modules have nothing."""
    text = path.read_text(encoding="utf-8")
    patterns = (_FLAG, _VARIABLE, _METRIC, _HUB, _OLLAMA_MODEL, _SETTING)
    if path.suffix != ".py" or any(pattern.search(text) for pattern in patterns):
        return True
    return any(find_stale(text)) or any(image in text for image in known.images)


def _files(root: Path) -> list[Path]:
    found = {path for pattern in WHERE for path in root.glob(pattern) if path.is_file()}
    return sorted(p for p in found if not str(p.relative_to(root)).startswith(NOT))


def _own_flags(root: Path) -> frozenset[str]:
    texts = [p.read_text(encoding="utf-8") for p in [*_files(root), *root.glob("tests/**/*.py")]]
    declared = re.compile(r'add_argument\(\s*"(?:-\w", ")?(--[\w-]+)"')
    return frozenset(flag for text in texts for flag in declared.findall(text))


def _images(root: Path) -> dict[str, str]:
    """The engines' images, and over them nothing: the compose file's others."""
    images = [image_of(service) for _, _, service in services(root)]
    images += [spec.container.image for spec in ENGINES.values() if spec.container]
    return dict(split_image(image) for image in images if image)


# One passage ---------------------------------------------------------------------------------------------


def _in_passage(passage: Passage, name: str, known: Known) -> Iterator[tuple[int, str]]:
    yield from _flags(passage, name, known)
    yield from _settings(passage)
    told = bool(TOLD.search(passage.text)) and not passage.code
    for line in passage.lines:
        for message in (
            *([] if told else _stale(line, name)),
            *_variables(line.text, known),
            *_metrics(line.text, known),
            *_models(line.text, known),
            *_tags(line.text, known),
        ):
            yield line.number, message


def _stale(line: Line, name: str) -> Iterator[str]:
    for stale, _ in find_stale(line.text):
        if (name, stale.name) not in REFUSES:
            yield f"{stale.name} is stale ({stale.source}). Write: {stale.instead}."


def _variables(text: str, known: Known) -> Iterator[str]:
    for name in _VARIABLE.findall(text):
        has = known.engines[_engine(name, _VARIABLES_OF)]
        if name not in has.environment and name not in OTHERS_VARIABLES:
            guess = nearest(name, has.environment)
            yield f"{title(has)} reads no environment variable {name}.{guess}"


def _metrics(text: str, known: Known) -> Iterator[str]:
    for name in _METRIC.findall(text):
        has = known.engines[_engine(name, _METRICS_OF)]
        if not has.has_metric(name):
            yield f"{title(has)} has no metric {name}.{nearest(name, has.metrics)}"


def _engine(name: str, prefixes: Mapping[str, str]) -> str:
    return next((e for start, e in prefixes.items() if name.startswith(start)), "tensorrt_llm")


def _models(text: str, known: Known) -> Iterator[str]:
    for name in (*_HUB.findall(text), *_OLLAMA_MODEL.findall(text)):
        name = name.rstrip(".")
        if name in MODELS or name.startswith((*_FOLDERS, *known.images)):
            continue
        yield (
            f"{name} is not on the list of models that exist: look it up, and enter it with the date "
            f"(MODELS in tools/authoring/cli_schemas/removed_options.py).{nearest(name, MODELS)}"
        )


def _tags(text: str, known: Known) -> Iterator[str]:
    for repository, pinned in known.images.items():
        for tag in re.findall(rf"(?<![\w./-]){re.escape(repository)}:(\w[\w.-]*)(?!\{{)", text):
            if tag.rstrip(".") != pinned:
                yield f"The image {repository}:{tag} is not the pinned one. Write: {repository}:{pinned}."


def title(has: Accepted) -> str:
    """An engine's name and version."""
    return f"{ENGINES[has.engine].title} {has.version}"


# Arguments -----------------------------------------------------------------------------------------------


def _flags(passage: Passage, name: str, known: Known) -> Iterator[tuple[int, str]]:
    near = _programs_named(passage, name)
    running: str | None = None
    for line in passage.lines:
        starts = started(line.text)
        spans = [match.span(1) for match in _SPAN.finditer(line.text)]
        for match in _FLAG.finditer(line.text):
            if (name, match[0]) in REFUSES:
                continue
            program = _before(match.start(), starts, spans, running) or OF_MODULE.get(name)
            if message := _fault(match[0], program, near, known):
                yield line.number, message
        for start, end in spans if near == ("llama-server",) else ():
            span = line.text[start:end]
            for short in _SHORT.findall(span) if span.startswith("-") else ():
                if message := _fault(short, "llama-server", near, known):
                    yield line.number, message
        goes_on = passage.code and line.text.rstrip().endswith("\\")
        running = (starts[-1][1] if starts else running) if goes_on else None


def _before(
    position: int, starts: list[tuple[int, str]], spans: list[tuple[int, int]], running: str | None
) -> str | None:
    """The program whose command a position is part of: started before it, in the same code span if in one."""
    span = next((s for s in spans if s[0] <= position < s[1]), None)
    earlier = [p for at, p in starts if at <= position and (span is None or at >= span[0])]
    return earlier[-1] if earlier else running


def _programs_named(passage: Passage, name: str) -> tuple[str, ...]:
    """Programs of the engines that a passage names; else those of its headings or its file; else all."""
    for text in (passage.text, passage.about, name):
        engines = [engine for engine, pattern in NAMED.items() if pattern.search(text)]
        if engines:
            return tuple(program for program, engine in ENGINE_OF.items() if engine in engines)
    return tuple(ENGINE_OF)


def _fault(flag: str, program: str | None, near: Sequence[str], known: Known) -> str:
    """What is wrong with an argument of a program, or of any that is near; empty: nothing."""
    programs = [program] if program else near
    if any(flag in known.options(each) for each in programs) or flag == "--help":
        return ""
    if program is None and (flag in OTHERS or flag in known.own):
        return ""
    engines = [known.engines[each] for each in sorted({ENGINE_OF[p] for p in programs})]
    told = next((e.removed[flag] for e in engines if flag in e.removed), "")
    everything = frozenset(option for each in programs for option in known.options(each))
    guess = f" It says: {told}." if told else nearest(flag, everything)
    named = ", ".join(title(engine) for engine in engines)
    if program:
        return f"`{program}` ({named}) has no argument {flag}.{guess}"
    return f"None of {named} has an argument {flag}, nor has a command of the course's.{guess}"


def _settings(passage: Passage) -> Iterator[tuple[int, str]]:
    """Keys of TensorRT-LLM's file, in code spans of texts that are about TensorRT-LLM alone."""
    markup = passage.path.suffix == ".md" or passage.about.startswith("#")
    if not markup or _programs_named(passage, "") != ("trtllm-serve",):
        return
    for line in passage.lines:
        for span in filter(_SETTING.match, _SPAN.findall(line.text)):
            try:
                TrtLlmSettings.read(span.replace("...", "x"))
            except UnsupportedOption as error:
                yield line.number, f"`{span}`: {error}"


# What parsers say ----------------------------------------------------------------------------------------


def refused(lines: Iterable[CommandLine], engines: Mapping[str, Accepted]) -> list[Finding]:
    """Commands that the lists refuse: an unknown argument, or a value that is no choice."""
    return [
        Finding(*_place(line.where), f"`{line.program}`: {fault}")
        for line in lines
        for fault in _faults(line, engines[ENGINE_OF[line.program]])
    ]


def _faults(line: CommandLine, has: Accepted) -> Iterator[str]:
    options = has.programs[line.program]
    for at, word in enumerate(line.argv):
        name, equals, value = word.partition("=")
        if not re.match(r"--?[A-Za-z]", word):
            continue
        if name not in options:
            told = has.removed.get(name)
            guess = f" It says: {told}." if told else nearest(name, frozenset(options))
            yield f"{title(has)} has no argument {name}.{guess}"
        elif options[name].values and options[name].choices:
            given = value if equals else "".join(line.argv[at + 1 : at + 2])
            if given not in options[name].choices:
                choices = ", ".join(options[name].choices)
                yield f"{name} {given}: {title(has)} has the choices {choices}."


def _place(where: str) -> tuple[str, int]:
    path, _, line = where.rpartition(":")
    return (path, int(line)) if line.isdecimal() else (where, 0)


def asked(lines: Sequence[CommandLine], engines: Sequence[str]) -> dict[str, Answer]:
    """Answers of installed engines to the commands that are theirs.

    Raises:
        AskError: An engine did not answer.
    """
    return ask({e: [line for line in lines if ENGINE_OF[line.program] == e] for e in engines})


def of_answers(answers: Mapping[str, Answer], lines: Sequence[CommandLine]) -> list[Finding]:
    """What installed engines refuse, and where the recorded lists are not what they say."""
    findings = []
    for engine, answer in answers.items():
        own = [line for line in lines if ENGINE_OF[line.program] == engine]
        for line, why in zip(own, answer.refused, strict=True):
            if why is not None:
                text = f"`{line.program}` ({title(answer.accepted)}) refuses the command: {why}"
                findings.append(Finding(*_place(line.where), text))
        if difference := _difference(accepted(engine), answer.accepted):
            name = f"tools/authoring/cli_schemas/{engine}.json"
            findings.append(Finding(name, 0, f"{difference}. Make it again: {RECORD}"))
    return findings


def _difference(kept: Accepted, now: Accepted) -> str:
    for field in ("version", "programs", "environment", "metrics", "removed"):
        if getattr(kept, field) != getattr(now, field):
            return f"its {field} is not what the installed {title(now)} says"
    return ""


def record(folder: Path, answers: Mapping[str, Answer]) -> list[Path]:
    """Writes the lists of installed engines that changed, with today's date; returns what was written."""
    written = []
    for engine, answer in answers.items():
        path = folder / f"{engine}.json"
        if path.exists() and not _difference(accepted(engine, folder), answer.accepted):
            continue
        facts = {
            "version": answer.data["version"],
            "source": f"asked of the engine that make setup installs: {RECORD}",
            "date": datetime.date.today().isoformat(),
        }
        path.write_text(_as_text({**facts, **answer.data}) + "\n", encoding="utf-8")
        written.append(path)
    return written


def _as_text(data: Mapping[str, Any], indent: str = " ") -> str:
    """JSON with a line for each option, for readable differences."""
    parts = []
    for key, value in data.items():
        deep = isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values())
        text = _as_text(value, indent + " ") if deep else json.dumps(value)
        parts.append(f"{indent}{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + f"\n{indent[:-1]}}}"


def report(root: Path, *, again: bool = False) -> int:
    """Looks everything up and prints what is wrong; exit status 1 if something is.

    Args:
        root: The course's folder.
        again: Write the lists of installed engines anew first.
    """
    if again:
        for path in record(FOLDER, asked([], installed())):
            print(f"wrote {path.relative_to(root)}")
        accepted.cache_clear()
    written, made = commands(root), list(of_launch())
    lines = [*written, *made]
    answers = asked(lines, installed())
    findings = [*look(root, written=written), *refused(made, recorded())]
    findings += of_answers(answers, lines)
    for finding in findings:
        print(finding)
    by = ", ".join(title(answer.accepted) for answer in answers.values())
    print(f"{len(lines)} commands, {len(findings)} findings; parsed by {by or 'no engine'}")
    if missing := [ENGINES[engine].title for engine in ASKED if engine not in answers]:
        print(
            f"Not installed here, so that their recorded lists served alone: {', '.join(missing)}"
        )
    return 1 if findings else 0
