"""`python -m tools.authoring tables`: tables of documents, from engines, profiles, models and the labs.

A table is between `<!-- made: NAME -->` and `<!-- /made -->`. `make build` writes them, and tests/docs
checks that they are fresh.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from tools.authoring.build import read_labs
from tools.authoring.imagined_machines import machines_table
from tools.doctor.doctor_report import plan_words
from tools.doctor.needs import (
    CPU_ENGINE_BYTES,
    CPU_ENGINES,
    CPU_ENGINES_AT_ONCE,
    download_bytes,
)
from tools.lab.course_error import CourseError
from tools.setup.packages import TORCH
from utils.engines import ENGINES
from utils.fleet_plan import largest_plan, least_kv_gib
from utils.gpu import MARGIN_BYTES
from utils.model_sizes import QWEN3
from utils.profiles import PROFILES, ROOT, Profile, gpu_models
from utils.roofline.published import OLD_TABLE, PUBLISHED, judge_rows

PAGES = ("LAB_PREP.md", "QUICKSTART.md", "QUICK_REFERENCE.md")
_TABLE = re.compile(r"(<!-- made: (?P<name>\w+) -->\n).*?(<!-- /made -->)", re.DOTALL)
_STARTS = re.compile(
    r"\*\*It starts\*\* (?P<starts>.*?)\s*\*\*It writes\*\* (?P<writes>.*?\.)(?:\s|$)", re.DOTALL
)


def labs_table(root: Path) -> str:
    """Make a row per lab: its exercises, and the engines that it starts according to its first cell."""
    rows = ["| lab | exercises | your own work | it starts |", "|---|---|---|---|"]
    for lab in read_labs(root):
        found = _STARTS.search(lab.source.cells[0].source)
        starts = re.sub(r"\s+", " ", re.sub(r"<!--.*?-->", "", found["starts"])) if found else "?"
        minutes = sum(exercise.minutes for exercise in lab.exercises)
        rows.append(f"| {lab.source.number} | {len(lab.exercises)} | {minutes} min | {starts} |")
    return "\n".join(rows)


def ports_table(root: Path) -> str:
    """Make a row per engine: its port inside the container, and its paths."""
    rows = ["| engine | port in its container | health | metrics |", "|---|---|---|---|"]
    for spec in ENGINES.values():
        if spec.container is not None:
            metrics = f"`{spec.metrics_path}`" if spec.metrics_path else "–"
            rows.append(
                f"| {spec.title} | {spec.container.port} | `{spec.health_path}` | {metrics} |"
            )
    return "\n".join(rows)


def models_table(root: Path) -> str:
    """Make a row per model of the `spark` profile: its engines, and the size of its download."""
    profile = PROFILES["spark"]
    rows = ["| model | for | download |", "|---|---|---|"]
    for model, engines in _by_model(profile).items():
        size = f"{download_bytes(model) / 1e9:.1f} GB"
        rows.append(f"| `{model}` | {', '.join(engines)} | {size} |")
    return "\n".join(rows)


def _by_model(profile: Profile) -> dict[str, list[str]]:
    models: dict[str, list[str]] = {}
    for key, model in profile.models.items():
        title = next(
            (s.title for name, s in ENGINES.items() if key.startswith(name)), "drafting, lab 3.3.5"
        )
        found = models.setdefault(model, [])
        if title not in found:
            found.append(title)
    return models


def shipped_table(root: Path) -> str:
    """Make a row per folder of models that ship: their weights, and their size on the disk."""
    rows = ["| folder | files of weights | size |", "|---|---|---|"]
    for folder in sorted(path for path in (root / "models").iterdir() if path.is_dir()):
        sizes = [
            f"{path.stat().st_size / 1e6:.2f}"
            for path in sorted(folder.rglob("*"))
            if path.suffix in (".safetensors", ".gguf")
        ]
        total = f"{sum(map(float, sizes)):.1f}"
        rows.append(f"| `models/{folder.name}` | {len(sizes)} | {total} MB |")
    return "\n".join(rows)


def images_block(root: Path) -> str:
    """Write the commands that pull every engine's image."""
    images = [spec.container.image for spec in ENGINES.values() if spec.container is not None]
    return "\n".join(["```bash", *(f"docker pull {image}" for image in images), "```"])


def capabilities_table(root: Path) -> str:
    """Make a row per engine: the abilities that the course uses."""
    rows = [
        "| engine | constraints | speculation | KV cache types | options of `launch` |",
        "|---|---|---|---|---|",
    ]
    for spec in ENGINES.values():
        can = spec.capabilities
        lists = (can.structured_output, can.speculation, can.kv_dtypes, sorted(spec.options))
        cells = [", ".join(f"`{word}`" for word in words) or "–" for words in lists]
        rows.append(f"| {spec.title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def published_table(root: Path) -> str:
    """Make a row per number that others have published for a DGX Spark."""
    rows = [
        "| engine | model | weights | batch | prefill (tok/s) | decode (tok/s) | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in PUBLISHED:
        source = f"[{row.source}]({row.url})" if row.url else row.source
        speeds = f"{row.prefill_tok_s:,.0f} | {row.decode_tok_s:g}"
        run = f"{row.engine} | {row.model} | {row.quantisation} | {row.batch}"
        rows.append(f"| {run} | {speeds} | {source} |")
    return "\n".join(rows)


_TITLES = {
    "running": "running",
    "waiting": "waiting",
    "kv_usage": "KV cache in use",
    "prefix_hits": "prefix hits",
    "prefix_queries": "prefix look-ups",
    "prefix_hit_rate": "hit rate",
    "ttft": "TTFT",
    "itl": "ITL",
    "tpot": "TPOT",
    "e2e": "E2E",
    "generated_tokens": "tokens generated",
    "preemptions": "preemptions",
    "accepted_tokens": "tokens accepted",
}


def metrics_table(root: Path) -> str:
    """Make a row per quantity and a column per engine with Prometheus metrics, without their prefix."""
    specs = [spec for spec in ENGINES.values() if spec.metrics.running]
    prefixes = [_prefix(spec.metrics.running or "") for spec in specs]
    heads = [f"{spec.title} `{prefix}`" for spec, prefix in zip(specs, prefixes, strict=True)]
    rows = ["| | " + " | ".join(heads) + " |", "|---" * (len(specs) + 1) + "|"]
    for field, shown in _TITLES.items():
        names = [getattr(spec.metrics, field) for spec in specs]
        cells = [
            f"`{name.removeprefix(prefix)}`" if name else "–"
            for name, prefix in zip(names, prefixes, strict=True)
        ]
        rows.append(f"| {shown} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _prefix(name: str) -> str:
    """Return the common start of an engine's names, such as `vllm:` or `trtllm_`."""
    return re.split(r"(?<=[:_])", name, maxsplit=1)[0]


_PLAYBOOKS = "NVIDIA/dgx-spark-playbooks"


@dataclass(frozen=True)
class LookedUp:
    """Facts about an image. No registry was asked, because only the machine that runs it needs it.

    Attributes:
        date: Day on which its tag was last found, as an ISO date.
        source: Publisher's page that had it.
        holds: Version of the engine inside, if the tag doesn't tell it.
    """

    date: str
    source: str
    holds: str = ""


LOOKED_UP: Mapping[str, LookedUp] = {
    "nvcr.io/nvidia/vllm:26.10-py3": LookedUp(
        "2026-11-26", "NVIDIA's release notes, vLLM 26.10", "vLLM 0.31.0, CUDA 13.4.3"
    ),
    "lmsysorg/sglang:v0.5.23-cu130": LookedUp(
        "not found", f"the package's version; the ending is that of {_PLAYBOOKS}"
    ),
    "nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc28": LookedUp(
        "2026-12-01", "SajuukPrime/paper_tree, docs/deployment.md, run on a DGX Spark"
    ),
    "ghcr.io/ggml-org/llama.cpp:server-cuda13-b11277": LookedUp(
        "2026-11-26",
        "used by public repositories; that server-cuda13 is built for arm64: docs/docker.md",
    ),
    "ollama/ollama:0.24.0": LookedUp("2026-11-26", "ollama/ollama, git tag v0.24.0"),
}
_UNKNOWN = LookedUp("not yet", "docker/compose.yaml alone")


# Source of the flags of each engine whose own parser isn't on this machine.
FLAGS_READ = {
    "tensorrt_llm": "read in NVIDIA/TensorRT-LLM at 00209af1, 2026-11-26; the file's keys: see its section",
    "ollama": "read in ollama/ollama at v0.24.0 (c28ddc0a), 2026-11-26",
    "llama_cpp": "known to utils/engines/llama_cpp_server.py, which refuses all others",
    "transformers": "the course's own program",
}
_SHELL_DEFAULT = re.compile(r"\$\{\w+:?-([^}]*)\}")


def versions_images_table(root: Path) -> str:
    """Make a row per image that the course starts: its content, and the day it was last looked up."""
    images = {s.title: s.container.image for s in ENGINES.values() if s.container is not None}
    names = {image.rpartition(":")[0] for image in images.values()}
    services = yaml.safe_load((root / "docker/compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]
    for name, service in services.items():
        image = _SHELL_DEFAULT.sub(r"\1", service.get("image", ""))
        if image and image.rpartition(":")[0] not in names:
            images.setdefault(name, image)
    rows = ["| runs | image | holds | last looked up | in |", "|---|---|---|---|---|"]
    for title, image in images.items():
        known = LOOKED_UP.get(image, _UNKNOWN)
        rows.append(f"| {title} | `{image}` | {known.holds} | {known.date} | {known.source} |")
    return "\n".join(rows)


def versions_table(root: Path) -> str:
    """Make a row per engine: its version on the `cpu` profile, and the source of its flags."""
    rows = ["| engine | `cpu` profile | flags |", "|---|---|---|"]
    for name, spec in ENGINES.items():
        local = spec.local.version if spec.local else "not run here"
        source = FLAGS_READ.get(name, "tried with this version's own parser")
        rows.append(f"| {spec.title} | {local} | {source} |")
    return "\n".join([*rows, f"| PyTorch | {TORCH} | – |"])


def old_numbers_table(root: Path) -> str:
    """Make a row per old number for a DGX Spark, with the formats that it could be true of."""
    rows = [
        "| engine | prefill (tok/s) | decode (tok/s) | against the ceilings | verdict |",
        "|---|---|---|---|---|",
    ]
    for row, judged in zip(OLD_TABLE, judge_rows(OLD_TABLE), strict=True):
        speeds = f"{row.prefill_tok_s:,.0f} | {row.decode_tok_s:g}"
        rows.append(f"| {row.engine} | {speeds} | {judged.text} | {row.note} |")
    return "\n".join(rows)


def cpu_engines_table(root: Path) -> str:
    """Make a row per engine on a CPU: its start time and its memory. The doctor has the same figures."""
    rows = ["| engine | ready after | memory |", "|---|---|---|"]
    rows += [
        f"| {name} | {seconds} s | {memory / 1e9:.2f} GB |"
        for name, (seconds, memory) in CPU_ENGINES.items()
    ]
    together = CPU_ENGINES_AT_ONCE * CPU_ENGINE_BYTES
    return "\n".join([*rows, f"| three vLLM at the same time | – | {together / 1e9:.2f} GB |"])


def memory_table(root: Path) -> str:
    """Make a row per machine that the doctor is asked about."""
    return machines_table()


def largest_fleet(root: Path) -> str:
    """Make a row per size of the model: the memory of the largest lab, and the GPU that it needs."""
    rows = [
        "| model | weights in 16 bits | largest fleet of the labs | memory that the GPU must have |",
        "|---|---|---|---|",
    ]
    for size in QWEN3:
        sized = replace(PROFILES["cuda"], models=gpu_models(size))
        least = replace(sized, kv_cache_gib=least_kv_gib(sized))
        plan = largest_plan(least)
        weights = download_bytes(sized.models["vllm"]) / 1e9
        card = (plan.total + MARGIN_BYTES) / 1e9
        rows.append(f"| Qwen3-{size} | {weights:.1f} GB | {plan_words(plan)} | {card:.1f} GB |")
    return "\n".join(rows)


TABLES: Mapping[str, Callable[[Path], str]] = {
    "labs": labs_table,
    "images": images_block,
    "ports": ports_table,
    "models": models_table,
    "cpu_engines": cpu_engines_table,
    "memory": memory_table,
    "largest_fleet": largest_fleet,
    "shipped": shipped_table,
    "capabilities": capabilities_table,
    "metrics": metrics_table,
    "published": published_table,
    "images_versions": versions_images_table,
    "versions": versions_table,
    "old_numbers": old_numbers_table,
}


def fresh(text: str, root: Path = ROOT) -> str:
    """Return the page with its tables made again.

    Raises:
        CourseError: The page has a marker of an unknown table.
    """

    def replace(block: re.Match[str]) -> str:
        if block["name"] not in TABLES:
            raise CourseError(f"No table has the name {block['name']!r}. Use: {', '.join(TABLES)}.")
        return f"{block[1]}{TABLES[block['name']](root)}\n{block[3]}"

    return _TABLE.sub(replace, text)


def write_tables(root: Path = ROOT) -> list[Path]:
    """Write the tables again, and return the pages that changed."""
    changed = []
    for path in (root / name for name in PAGES):
        text = path.read_text(encoding="utf-8")
        if (page := fresh(text, root)) != text:
            path.write_text(page, encoding="utf-8")
            changed.append(path)
    return changed
