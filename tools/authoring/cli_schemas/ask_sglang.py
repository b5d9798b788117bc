"""What SGLang accepts, asked of its own parsers. Run by SGLang's Python; JSON in, JSON out (`ask.py`)."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

from argparse_answers import metrics, options, reason

_READ = re.compile(
    r"(?:getenv|environ\.get|get_bool_env_var|get_int_env_var|environ)[\(\[]\s*"
    r'"(SGL[A-Z0-9_]+)"'
)


def answer(question: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers one question: command lines, each with `program` and `argv`."""
    from sglang.srt.environ import envs
    from sglang.srt.server_args import ServerArgs
    from sglang_router.launch_router import RouterArgs

    serve = argparse.ArgumentParser(prog="sglang.launch_server")
    ServerArgs.add_cli_args(serve)
    router = argparse.ArgumentParser(prog="sglang_router.launch_router")
    RouterArgs.add_cli_args(router, use_router_prefix=False)
    parsers = {"sglang.launch_server": serve, "sglang_router.launch_router": router}
    texts = _sources()
    named = {name for name in dir(type(envs)) if name.startswith(("SGLANG_", "SGL_"))}
    return {
        "version": importlib.metadata.version("sglang"),
        "programs": {name: options(parser) for name, parser in parsers.items()},
        "environment": sorted(named.union(*(_READ.findall(text) for text in texts))),
        "metrics": metrics(texts, "sglang:"),
        "refused": [reason(parsers[each["program"]], each["argv"]) for each in question],
    }


def _sources() -> list[str]:
    import sglang

    folder = Path(sglang.__file__).parent / "srt"
    return [file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.py"))]


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # imports may print
        found = answer(json.load(sys.stdin))
    json.dump(found, sys.stdout)
