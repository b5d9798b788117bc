"""First success: starts an engine, asks it one question, shows the answer and its times, stops it.

A picture of the stream, when each piece of the answer came, is written to `records/hello.png`.

python -m utils.benchmark.first_request                 # the first engine that runs on this machine
python -m utils.benchmark.first_request llama_cpp "Write a Python function that adds two numbers."
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from utils.benchmark.engine_clients import chat_client
from utils.benchmark.records import records_dir
from utils.benchmark.stream_plot import draw_stream
from utils.benchmark.trace import RequestTrace
from utils.benchmark.workload import Request
from utils.engines import ENGINES, EngineError, NotRunHere, RunningEngine, launch
from utils.profiles import Profile, ProfileError, load_profile

QUESTION = "What is a KV cache?"
ORDER = ("vllm", "llama_cpp", "sglang", "transformers")


def start(names: tuple[str, ...], profile: Profile) -> RunningEngine:
    """Start the first engine of `names` that runs here.

    Raises:
        NotRunHere: None of them does; holds the reason of each.
        EngineError: One that could run did not start.
    """
    reasons = []
    for name in names:
        try:
            return launch(name, profile)
        except NotRunHere as reason:
            reasons.append(reason.reason)
    raise NotRunHere(", ".join(ENGINES[name].title for name in names), "; ".join(reasons))


async def ask(engine: RunningEngine, question: str) -> RequestTrace:
    """One answer, streamed: a short one first, since an engine's very first request pays for its start."""
    async with chat_client(engine) as client:
        await client.send(Request(prompt="Hello", max_tokens=4))
        return await client.send(Request(prompt=question, max_tokens=128))


def described(engine: RunningEngine, trace: RequestTrace) -> str:
    """Return the answer and its times."""
    if trace.error is not None:
        return f"It did not answer: {trace.error}. Its log: {engine.log_path}"
    ttft, tpot = trace.ttft() * 1000, trace.tpot * 1000
    return (
        f"{trace.text.strip()}\n\n"
        f"{engine.spec.title} {engine.version}, {engine.quantisation}: "
        f"ready after {engine.start_seconds:.0f} s; "
        f"first token after {ttft:.0f} ms (TTFT), then {tpot:.1f} ms a token (TPOT), "
        f"{trace.completion_tokens} tokens in all."
    )


def write_picture(trace: RequestTrace) -> Path:
    """Draw the stream of a successful request as `hello.png` in the records' folder; return its path."""
    path = records_dir() / "hello.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = draw_stream(trace)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.benchmark.first_request", description=__doc__
    )
    parser.add_argument(
        "engine", nargs="?", choices=[*ENGINES], help="default: the first that runs here"
    )
    parser.add_argument("question", nargs="?", default=QUESTION)
    arguments = parser.parse_args(argv)
    try:
        profile = load_profile()
        print(f"Profile {profile.name}: {profile.description}\n\n{arguments.question}")
        with start((arguments.engine,) if arguments.engine else ORDER, profile) as engine:
            trace = asyncio.run(ask(engine, arguments.question))
            print(described(engine, trace))
        if trace.ok and trace.first_token is not None:
            print(f"When each piece came: {write_picture(trace)}")
    except (EngineError, ProfileError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped, and the engine with it.", file=sys.stderr)
        return 130
    return 0 if trace.error is None else 1


if __name__ == "__main__":
    sys.exit(main())
