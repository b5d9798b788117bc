"""The engines' services in docker/compose.yaml, made from their specs.

python -m tools.authoring.compose          writes them
python -m tools.authoring.compose --check  tells whether they agree with the specs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from utils.engines.container import STOP_S
from utils.engines.launch import profile_fields, served_name
from utils.engines.registry import ENGINES
from utils.engines.spec import EngineSpec, ServeOptions
from utils.profiles import PROFILES, ROOT, Profile

COMPOSE = ROOT / "docker" / "compose.yaml"
BEGIN = "  # --- made from utils/engines by: python -m tools.authoring.compose ---\n"
END = "  # --- end of what is made ---\n"
PROFILE = "spark"
# On this machine, where an engine's own port is that of the gateway.
HOST_PORTS = {"llama_cpp": 8081}
# Profiles besides the engine's own.
ALSO_IN = {"ollama": ("chat",)}
REPLICAS = ("llama-a", "llama-b")
REPLICA_SLOTS = 8
REPLICA_CONTEXT = 2048


def health_command(spec: EngineSpec, port: int) -> list[str]:
    """Return the command inside the engine's container that asks whether it is healthy on `port`."""
    assert spec.container is not None
    url = f"http://127.0.0.1:{port}{spec.health_path}"
    return [word.replace("{url}", url) for word in spec.container.probe]


def engine_service(spec: EngineSpec, profile: Profile) -> dict[str, Any]:
    """Return the service of an engine on a GPU, as `launch` would start it with the profile's model."""
    container = spec.container
    assert container is not None
    model = profile.models[spec.name]
    options = ServeOptions(
        model=model,
        served_name=served_name(model),
        host="0.0.0.0",
        port=container.port,
        device="cuda",
        **profile_fields(profile),
    )
    passed: dict[str, str | None] = dict.fromkeys(container.pass_environment)
    gpu = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    service = {
        "profiles": [spec.name, *ALSO_IN.get(spec.name, ())],
        "image": container.image,
        "command": [*container.command, *spec.arguments(options)],
        "ports": [f"127.0.0.1:{HOST_PORTS.get(spec.name, container.port)}:{container.port}"],
        "environment": {**container.environment, **spec.environment(options), **passed},
        "volumes": [f"{source}:{target}" for source, target in container.mounts.items()],
        "ipc": container.ipc,
        "ulimits": dict(container.ulimits),
        "deploy": {"resources": {"reservations": {"devices": [gpu]}}} if container.gpus else None,
    }
    # No restart: it would take the GPU's memory again after a reboot, and try a wrong setting for ever.
    return {k: v for k, v in service.items() if v} | common(spec, profile.start_timeout_s)


def replica_service() -> dict[str, Any]:
    """Return one of the gateway's two llama.cpp: the tiny model, on the CPU, not published."""
    spec = ENGINES["llama_cpp"]
    assert spec.container is not None
    model = "/models/tiny-BF16.gguf"
    options = ServeOptions(
        model=model,
        served_name="tiny",
        host="0.0.0.0",
        port=spec.container.port,
        device="cpu",
        dtype="bfloat16",
        context_length=REPLICA_CONTEXT,
        max_sequences=REPLICA_SLOTS,
        kv_cache_gib=1.0,
    )
    return {
        "image": spec.container.image,
        "command": spec.arguments(options),
        "volumes": ["../models/tiny:/models:ro"],
        "restart": "unless-stopped",
        # It only reads its model. The engines on a GPU keep their privileges, because as root they write
        # into the host's cache of models.
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
    } | common(spec, 60)


def common(spec: EngineSpec, start_s: float) -> dict[str, Any]:
    """Return the settings of all engines: a health check, and the way to stop."""
    assert spec.container is not None
    return {
        "security_opt": ["no-new-privileges:true"],
        "init": True,
        "stop_grace_period": f"{STOP_S}s",
        "healthcheck": {
            "test": ["CMD", *health_command(spec, spec.container.port)],
            "interval": "10s",
            "timeout": "5s",
            "start_period": f"{start_s:.0f}s",
        },
    }


def generated_services() -> str:
    """Return the services, in YAML, with the marks around them."""
    profile = PROFILES[PROFILE]
    services = {
        spec.name: engine_service(spec, profile) for spec in ENGINES.values() if spec.container
    }
    services |= {name: replica_service() for name in REPLICAS}
    text = "".join(
        yaml.safe_dump({name: service}, default_flow_style=None, sort_keys=False, width=108)
        for name, service in services.items()
    )
    return BEGIN + "".join(f"  {line}\n" for line in text.splitlines()) + END


def put_into(text: str) -> str:
    """Return the compose file with the services anew.

    Raises:
        ValueError: The marks are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(
            f"{COMPOSE} lacks the lines between which services are written: {BEGIN}{END}"
        )
    return before + generated_services() + after


def main(arguments: Sequence[str], path: Path = COMPOSE) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tools.authoring.compose")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; tell whether it is fresh"
    )
    check = parser.parse_args(arguments).check
    now = path.read_text()
    fresh = put_into(now)
    if check and now != fresh:
        print(f"{path} is not what utils/engines says. Run: python -m tools.authoring.compose")
        return 1
    if not check:
        path.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
