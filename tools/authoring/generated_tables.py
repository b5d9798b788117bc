"""`python -m tools.authoring prep`: tables of documents, from engines, profiles, models and the labs.

A table stands between `<!-- made: NAME -->` and `<!-- /made -->`; `python -m tools.authoring docs` says when
one is stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path

from tools.authoring.lint_errors import Problem
from tools.authoring.references import labs_of
from tools.authoring.versions import TABLES as VERSIONS
from tools.doctor.needs import DOWNLOADS
from tools.lab.course_error import CourseError
from utils.engines import ENGINES
from utils.model_sizes import decoder_parameters
from utils.profiles import PROFILES, ROOT, Profile
from utils.roofline.published import PUBLISHED, QWEN3_8B

PAGES = ("LAB_PREP.md", "QUICK_REFERENCE.md")
_MADE = re.compile(r"(<!-- made: (?P<name>\w+) -->\n).*?(<!-- /made -->)", re.DOTALL)
_STARTS = re.compile(
    r"\*\*It starts\*\* (?P<starts>.*?)\s*\*\*It writes\*\* (?P<writes>.*?\.)(?:\s|$)", re.DOTALL
)


def labs_table(root: Path) -> str:
    """A row per lab: its exercises, and what its first cell says that it starts and writes."""
    rows = ["| lab | exercises | your own work | it starts |", "|---|---|---|---|"]
    for lab in labs_of(root):
        found = _STARTS.search(lab.source.cells[0].source)
        starts = re.sub(r"\s+", " ", re.sub(r"<!--.*?-->", "", found["starts"])) if found else "?"
        minutes = sum(exercise.minutes for exercise in lab.exercises)
        rows.append(f"| {lab.source.number} | {len(lab.exercises)} | {minutes} min | {starts} |")
    return "\n".join(rows)


def ports_table(root: Path) -> str:
    """A row per engine: its port inside the container, and where it answers."""
    rows = ["| engine | port in its container | health | metrics |", "|---|---|---|---|"]
    for spec in ENGINES.values():
        if spec.container is not None:
            metrics = f"`{spec.metrics_path}`" if spec.metrics_path else "–"
            rows.append(
                f"| {spec.title} | {spec.container.port} | `{spec.health_path}` | {metrics} |"
            )
    return "\n".join(rows)


def models_table(root: Path) -> str:
    """A row per model of the `spark` profile: what is downloaded for which engine, and how much."""
    profile = PROFILES["spark"]
    parameters = decoder_parameters(QWEN3_8B)
    rows = ["| model | for | download |", "|---|---|---|"]
    for model, engines in _by_model(profile).items():
        size = "not known here"
        if model in DOWNLOADS:
            _, each_bytes = DOWNLOADS[model]
            size = f"{each_bytes * parameters / 1e9:.1f} GB"
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
    """A row per folder of models that ship: their weights, and what they take on the disk."""
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
    """The commands that pull every engine's image."""
    images = [spec.container.image for spec in ENGINES.values() if spec.container is not None]
    return "\n".join(["```bash", *(f"docker pull {image}" for image in images), "```"])


def capabilities_table(root: Path) -> str:
    """A row per engine: what the course uses of it."""
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
    """What others have published for a DGX Spark."""
    rows = [
        "| engine | model | weights | batch | prefill (tok/s) | decode (tok/s) | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in PUBLISHED:
        source = f"[{row.source}]({row.url})" if row.url else row.source
        speeds = f"{row.prefill_tok_s:,.0f} | {row.decode_tok_s:g}"
        what = f"{row.engine} | {row.model} | {row.quantisation} | {row.batch}"
        rows.append(f"| {what} | {speeds} | {source} |")
    return "\n".join(rows)


_SHOWN = {
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
    """A row per quantity, a column per engine that has Prometheus metrics; without the common prefix."""
    specs = [spec for spec in ENGINES.values() if spec.metrics.running]
    prefixes = [_prefix(spec.metrics.running or "") for spec in specs]
    heads = [f"{spec.title} `{prefix}`" for spec, prefix in zip(specs, prefixes, strict=True)]
    rows = ["| | " + " | ".join(heads) + " |", "|---" * (len(specs) + 1) + "|"]
    for field, shown in _SHOWN.items():
        names = [getattr(spec.metrics, field) for spec in specs]
        cells = [
            f"`{name.removeprefix(prefix)}`" if name else "–"
            for name, prefix in zip(names, prefixes, strict=True)
        ]
        rows.append(f"| {shown} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _prefix(name: str) -> str:
    """What all names of an engine begin with: `vllm:`, `trtllm_`."""
    return re.split(r"(?<=[:_])", name, maxsplit=1)[0]


TABLES: Mapping[str, Callable[[Path], str]] = {
    "labs": labs_table,
    "images": images_block,
    "ports": ports_table,
    "models": models_table,
    "shipped": shipped_table,
    "capabilities": capabilities_table,
    "metrics": metrics_table,
    "published": published_table,
    **VERSIONS,
}


def fresh(text: str, root: Path = ROOT) -> str:
    """The page with its tables made anew.

    Raises:
        CourseError: It asks for a table that nobody makes.
    """

    def made(block: re.Match[str]) -> str:
        if block["name"] not in TABLES:
            raise CourseError(
                f"There is no table {block['name']!r}; there are: {', '.join(TABLES)}."
            )
        return f"{block[1]}{TABLES[block['name']](root)}\n{block[3]}"

    return _MADE.sub(made, text)


def write_prep(root: Path = ROOT) -> None:
    """Write the pages' tables anew."""
    for name in PAGES:
        path = root / name
        path.write_text(fresh(path.read_text(encoding="utf-8"), root), encoding="utf-8")


def check_prep(root: Path = ROOT) -> Iterator[Problem]:
    """Pages whose tables are not what engines, profiles and labs make."""
    for name in PAGES:
        path = root / name
        text = path.read_text(encoding="utf-8")
        pairs = zip_longest(text.splitlines(), fresh(text, root).splitlines())
        line = next((number for number, (old, new) in enumerate(pairs, 1) if old != new), None)
        if line is not None:
            yield Problem(path, line, "a table is stale", "Run: python -m tools.authoring prep")
