"""Installs packages into an environment: with uv, which takes a quarter of pip's time, else with pip.

Environments share what they have in common: uv keeps each package once, in a cache inside this folder, and
links its files into every environment. The cache goes when set-up has ended; the files stay.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

from tools.setup.shell import SetupError, Shell
from utils.profiles import ROOT

TORCH = "2.13.0"
UV = "0.13.8"
# On the file system of the environments: there, a link takes no time and no room.
UV_CACHE = ROOT / ".setup" / "uv"
_MANY = {
    "extra-index-url": "--extra-index-url",
    "find-links": "--find-links",
    "constraint": "--constraint",
    "trusted-host": "--allow-insecure-host",
}


def make_venv(shell: Shell, target: Path) -> str:
    """Make a virtual environment; return the path of its Python."""
    shell.run([sys.executable, "-m", "venv", str(target)])
    return str(target / "bin" / "python")


def pip(shell: Shell, python: str, *arguments: str) -> None:
    """Run `pip install` with `arguments` in the environment of `python`."""
    shell.run([python, "-m", "pip", "install", "--no-input", "--progress-bar", "off", *arguments])


def install(shell: Shell, python: str, *arguments: str) -> None:
    """Install the packages that `arguments` of `pip install` name, with uv if that works.

    uv is told what pip is configured to: index, constraints, certificates. Where it fails all the same,
    pip tries, and its error is the one to read: it knows every way to configure an index.

    Raises:
        SetupError: Neither could.
    """
    try:
        if not Path(python).with_name("uv").exists():
            pip(shell, python, f"uv=={UV}")
        config = shell.output([python, "-m", "pip", "config", "list"])
        options, environment = uv_settings(config, alone="--no-deps" in arguments)
        command = [python, "-m", "uv", "pip", "install", "--python", python, *options, *arguments]
        shell.run(command, environment)
    except SetupError:
        shell.say("uv could not install this: pip tries")
        pip(shell, python, *arguments)


def install_cpu_torch(shell: Shell, python: str) -> None:
    """Install PyTorch's CPU build.

    The configured package index first. Where it has no CPU build (the public index carries CUDA builds),
    uv's `--torch-backend cpu` finds PyTorch's own index of CPU wheels.
    """
    if sys.platform == "darwin":
        install(shell, python, f"torch=={TORCH}")
        return
    try:
        install(shell, python, f"torch=={TORCH}+cpu")
    except SetupError:
        shell.say("no CPU build of PyTorch on the configured index: asking PyTorch's own")
        pip(shell, python, f"uv=={UV}")
        command = [python, "-m", "uv", "pip", "install", "--python", python]
        environment = {"UV_CACHE_DIR": str(UV_CACHE)}
        shell.run([*command, "--torch-backend", "cpu", f"torch=={TORCH}"], environment)


def uv_settings(pip_config: str, *, alone: bool = False) -> tuple[list[str], dict[str, str]]:
    """Options and environment variables that tell uv what pip is configured to.

    Args:
        pip_config: Output of `pip config list`: lines as `global.index-url='https://...'` or
            `:env:.find-links='/opt/wheels'`, from files and from environment variables.
        alone: True if nothing but named versions is installed. Constraints then say nothing, and uv
            refuses them together with hashes.
    """
    values = _as_pip_weighs_them(pip_config)
    # pip looks for the best version on all indexes, uv stops at the first that has the package.
    options = ["--index-strategy", "unsafe-best-match"]
    if "index-url" in values:
        options += ["--default-index", values["index-url"]]
    for key, option in _MANY.items():
        if alone and key == "constraint":
            continue
        for value in values.get(key, "").split():
            options += [option, value]
    if values.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        options.append("--no-index")
    environment = {"UV_CACHE_DIR": str(UV_CACHE)}
    if "cert" in values:
        environment["SSL_CERT_FILE"] = values["cert"]
    if "proxy" in values:
        environment["ALL_PROXY"] = values["proxy"]
    return options, environment


def _as_pip_weighs_them(pip_config: str) -> Mapping[str, str]:
    """Return one value for each key: the environment's, else that of `[install]`, else that of `[global]`."""
    values: dict[str, str] = {}
    lines = [line.partition("=") for line in pip_config.splitlines()]
    for section in ("global", "install", ":env:"):
        for key, _, value in lines:
            if key.startswith(f"{section}."):
                values[key.removeprefix(f"{section}.")] = str(ast.literal_eval(value))
    return values
