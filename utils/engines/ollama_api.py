"""Ollama's own API for models, which creates, pulls and loads them. Requests use its OpenAI API under /v1.

Sources: ollama docs/api.md, docs/faq.mdx, api/types.go at v0.24.0.

Example:
    with connect(engine.base_url) as ollama:
        create(ollama, "tiny", "models/tiny/tiny-BF16.gguf", TINY)
        load(ollama, "tiny")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from utils import loopback
from utils.engines.engine_errors import EngineError

STALL_S = 300.0  # between two lines of progress; OLLAMA_LOAD_TIMEOUT's default
Say = Callable[[str], None]

# The tiny model's chat template (models/tiny/chat_template.jinja) in Go's template language. It is greedy,
# like its generation_config.json.
TINY: Mapping[str, Any] = {
    "template": "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
    "{{ end }}<|im_start|>assistant\n",
    "parameters": {"temperature": 0, "stop": ["<|im_end|>"]},
}


class OllamaError(EngineError):
    """Refusal of a request by Ollama, or no answer from it."""


def connect(base_url: str) -> httpx.Client:
    """Return a client for a running Ollama, for the functions below."""
    return loopback.client(base_url=base_url, timeout=httpx.Timeout(STALL_S, connect=5.0))


def has(ollama: httpx.Client, model: str) -> bool:
    """Return whether Ollama has a model on its disk. A name without a tag means `:latest`."""
    name = model if ":" in model.rpartition("/")[2] else f"{model}:latest"
    models = _ask(ollama, "GET", "/api/tags").json()["models"]
    return any(one["name"] == name for one in models)


def pull(ollama: httpx.Client, model: str, say: Say) -> None:
    """Download a model from Ollama's library and report the progress to `say`.

    Raises:
        OllamaError: There is no such model, no network, or no progress for `STALL_S` seconds.
    """
    layers: dict[str, tuple[int, int]] = {}

    def progress(line: Mapping[str, Any]) -> None:
        if line.get("total"):
            layers[line.get("digest", "")] = (line.get("completed", 0), line["total"])
            done, total = (sum(column) for column in zip(*layers.values(), strict=True))
            say(f"pulling {model}: {done / 1e9:.1f} of {total / 1e9:.1f} GB so far")
        else:
            say(f"pulling {model}: {line.get('status', '')}")

    _stream(ollama, "/api/pull", {"model": model}, progress)


def create(
    ollama: httpx.Client,
    model: str,
    gguf: str | Path,
    settings: Mapping[str, Any],
    say: Say = print,
) -> None:
    """Create a model from a GGUF file, and send the file if Ollama doesn't have it.

    Args:
        ollama: Client from `connect`.
        model: Name for the model.
        gguf: The file.
        settings: `template`, `system` and `parameters`, as in a Modelfile. Without a template, Ollama looks
            for one that fits the file.
        say: Called with each line of progress.

    Raises:
        OllamaError: Ollama refused the file or the settings.
    """
    path = Path(gguf)
    with path.open("rb") as file:
        digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        if _ask(ollama, "HEAD", f"/api/blobs/{digest}", fine=(200, 404)).status_code == 404:
            say(f"sending {path.name}, {path.stat().st_size / 1e6:.0f} MB")
            file.seek(0)
            _ask(ollama, "POST", f"/api/blobs/{digest}", fine=(200, 201), content=file)
    body = {"model": model, "files": {path.name: digest}, **settings}
    _stream(
        ollama, "/api/create", body, lambda line: say(f"creating {model}: {line.get('status', '')}")
    )


def copy(ollama: httpx.Client, model: str, name: str) -> None:
    """Give a model a second name."""
    _ask(ollama, "POST", "/api/copy", json={"source": model, "destination": name})


def load(ollama: httpx.Client, model: str) -> None:
    """Load a model into memory with a request that has no prompt."""
    _ask(ollama, "POST", "/api/generate", json={"model": model, "stream": False})


def _ask(
    ollama: httpx.Client, method: str, path: str, fine: tuple[int, ...] = (200,), **content: Any
) -> httpx.Response:
    try:
        answer = ollama.request(method, path, **content)
    except httpx.HTTPError as error:
        raise _no_answer(ollama, error) from error
    if answer.status_code not in fine:
        raise OllamaError(f"Ollama, {path}: HTTP {answer.status_code}: {_error(answer.text)}")
    return answer


def _stream(
    ollama: httpx.Client, path: str, body: Mapping[str, Any], take: Callable[[Any], None]
) -> None:
    """Hand on each line of a streamed answer. It is complete if its last line says `success`."""
    status = ""
    try:
        with ollama.stream("POST", path, json=body) as answer:
            if answer.status_code != 200:
                answer.read()
                raise OllamaError(f"Ollama, {path}: {_error(answer.text)}")
            for text in filter(None, answer.iter_lines()):
                line = json.loads(text)
                if line.get("error"):
                    raise OllamaError(f"Ollama, {path}: {line['error']}")
                status = str(line.get("status", ""))
                take(line)
    except httpx.HTTPError as error:
        raise _no_answer(ollama, error) from error
    if status != "success":
        raise OllamaError(
            f"Ollama, {path}: the answer ended at {status!r}. Try again: it resumes there."
        )


def _error(text: str) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:300] or "no reason given"


def _no_answer(ollama: httpx.Client, error: Exception) -> OllamaError:
    words = f"{ollama.base_url} did not answer ({type(error).__name__}: {error})."
    return OllamaError(f"{words} Start Ollama with: ollama serve")
