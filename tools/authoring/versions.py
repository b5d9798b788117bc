"""Tables of images, versions and old numbers in QUICK_REFERENCE.md, for `python -m tools.authoring prep`.

What an image is stands in utils/engines,
when it was last looked up in `LOOKED_UP`, what options were read from in tools/authoring/cli_schemas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.authoring.cli_schemas import recorded
from tools.authoring.commands import image_of, services, split_image
from tools.setup.packages import TORCH
from utils.engines import ENGINES
from utils.roofline.published import OLD_TABLE, judge_rows

_PLAYBOOKS = "NVIDIA/dgx-spark-playbooks"


@dataclass(frozen=True)
class LookedUp:
    """What is known of an image. No registry was asked: that needs the machine it runs on.

    Attributes:
        date: When its tag was last found, as ISO date.
        source: Where.
        holds: Version of the engine inside, where the tag does not say it.
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
    "nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc13": LookedUp(
        "2026-11-26", f"{_PLAYBOOKS}, nvidia/trt-llm"
    ),
    "ghcr.io/ggml-org/llama.cpp:server-cuda13-b11277": LookedUp(
        "2026-11-26",
        "used by public repositories; that server-cuda13 is built for arm64: docs/docker.md",
    ),
    "ollama/ollama:0.24.0": LookedUp("2026-11-26", "ollama/ollama, git tag v0.24.0"),
}
_UNKNOWN = LookedUp("not yet", "docker/compose.yaml alone")


def images_table(root: Path) -> str:
    """A row per image that the course starts: what is in it, and when it was last looked up."""
    images = {s.title: s.container.image for s in ENGINES.values() if s.container is not None}
    names = {split_image(image)[0] for image in images.values()}
    for _, name, service in services(root):
        image = image_of(service)
        if image and split_image(image)[0] not in names:
            images.setdefault(name, image)
    rows = ["| runs | image | holds | last looked up | in |", "|---|---|---|---|---|"]
    for title, image in images.items():
        known = LOOKED_UP.get(image, _UNKNOWN)
        rows.append(f"| {title} | `{image}` | {known.holds} | {known.date} | {known.source} |")
    return "\n".join(rows)


def versions_table(root: Path) -> str:
    """A row per engine: the version on the `cpu` profile, and the one whose options were looked up."""
    rows = ["| engine | `cpu` profile | options of | looked up | in |", "|---|---|---|---|---|"]
    lists = recorded()
    for name, spec in ENGINES.items():
        local = spec.local.version if spec.local else "not run here"
        if name in lists:
            has = lists[name]
            source = has.source.partition(": ")[0]
            rows.append(f"| {spec.title} | {local} | {has.version} | {has.date} | {source} |")
        else:
            rows.append(f"| {spec.title} | {local} | – | – | the course's own program |")
    return "\n".join([*rows, f"| PyTorch | {TORCH} | – | – | tools/setup/packages.py |"])


def old_numbers_table(root: Path) -> str:
    """The course's old numbers for a DGX Spark, each with what they can be true of."""
    rows = [
        "| engine | prefill (tok/s) | decode (tok/s) | against the ceilings | verdict |",
        "|---|---|---|---|---|",
    ]
    for row, judged in zip(OLD_TABLE, judge_rows(OLD_TABLE), strict=True):
        speeds = f"{row.prefill_tok_s:,.0f} | {row.decode_tok_s:g}"
        rows.append(f"| {row.engine} | {speeds} | {judged.text} | {row.note} |")
    return "\n".join(rows)


TABLES: Mapping[str, Callable[[Path], str]] = {
    "images_versions": images_table,
    "versions": versions_table,
    "old_numbers": old_numbers_table,
}
