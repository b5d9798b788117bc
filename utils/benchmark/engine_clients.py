"""Clients of running engines that ask for answers without thinking.

Qwen3 thinks before it answers unless a request says otherwise. A benchmark would then measure thoughts, and a
short answer would be cut off before it begins.
"""

from __future__ import annotations

from utils.benchmark.client import Client
from utils.engines import RunningEngine


def chat_client(engine: RunningEngine) -> Client:
    """Return a client of an engine's chat API whose answers begin at once."""
    return Client(engine.base_url, engine.model, extra_body=engine.spec.no_thinking)


def benchmark_client(engine: RunningEngine) -> Client:
    """Return the client that an engine is measured with.

    Text completions use no chat template, so nobody thinks. Ollama uses it there too, and drops the thoughts
    (server/routes.go at v0.24.0), so it is measured with chats that don't think.
    """
    if engine.spec.benchmark_api == "chat":
        return chat_client(engine)
    return Client(engine.base_url, engine.model, "completions")
