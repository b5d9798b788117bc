"""Ollama's own API: models are made, pulled, loaded and listed through it, while it serves.

Sources: ollama docs/api.md, docs/modelfile.mdx, docs/faq.mdx, api/types.go at v0.24.0.

Example:
    with Ollama(engine.base_url) as ollama:
        ollama.create("tiny", "models/tiny/tiny-BF16.gguf", TINY)
        ollama.load("tiny")
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from utils import loopback
from utils.engines.engine_errors import EngineError

BLOCK = 1 << 20
STALL_S = 300.0  # between two lines of progress; OLLAMA_LOAD_TIMEOUT's default
Say = Callable[[str], None]


class OllamaError(EngineError):
    """Ollama refused, or did not answer."""


@dataclass(frozen=True)
class Modelfile:
    """How a model is to be run.

    Attributes:
        template: Its prompt, in Go's template language; "": Ollama looks for one that fits the GGUF.
        system: System message; "" for none.
        parameters: Options by name; a tuple where one may stand several times (`stop`).
    """

    template: str = ""
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def text(self, source: str) -> str:
        """The file for `ollama create NAME -f Modelfile`; `source` is a model's name or a GGUF's path."""
        lines = [f"FROM {source}"]
        for name, value in self.parameters.items():
            for one in value if isinstance(value, tuple) else (value,):
                lines.append(f"PARAMETER {name} {json.dumps(one)}")
        for instruction, words in (("TEMPLATE", self.template), ("SYSTEM", self.system)):
            if words:
                lines.append(f'{instruction} """{words}"""')
        return "\n".join(lines) + "\n"

    def fields(self) -> dict[str, Any]:
        """The same for the API's `/api/create`, which takes no file."""
        parameters = {k: list(v) if isinstance(v, tuple) else v for k, v in self.parameters.items()}
        found = {"template": self.template, "system": self.system, "parameters": parameters}
        return {name: value for name, value in found.items() if value}


# The tiny model's chat template (models/tiny/chat_template.jinja); greedy, as generation_config.json says.
TINY = Modelfile(
    template="{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
    "{{ end }}<|im_start|>assistant\n",
    parameters={"temperature": 0, "stop": ("<|im_end|>",)},
)


@dataclass(frozen=True)
class Loaded:
    """A model in memory, from `/api/ps`.

    Attributes:
        name: With its tag, `tiny:latest`.
        bytes: Memory of weights and KV cache.
        gpu_bytes: What of it is GPU memory.
        context_length: Tokens of one request's context.
        expires_at: When it is unloaded, ISO 8601; far in the future for `keep_alive: -1`.
    """

    name: str
    bytes: int
    gpu_bytes: int
    context_length: int
    expires_at: str


class Ollama:
    """A running Ollama."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        timeout = httpx.Timeout(STALL_S, connect=5.0)
        self._http = loopback.client(base_url=self.base_url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def version(self) -> str:
        """Its version."""
        return str(self._ask("GET", "/api/version")["version"])

    def models(self) -> list[str]:
        """Names of the models on its disk, with their tags."""
        return [str(model["name"]) for model in self._ask("GET", "/api/tags")["models"]]

    def has(self, model: str) -> bool:
        """Whether a model is on its disk; a name without a tag means `:latest`."""
        return with_tag(model) in self.models()

    def loaded(self) -> list[Loaded]:
        """The models in memory."""
        return [
            Loaded(
                name=str(model["name"]),
                bytes=int(model["size"]),
                gpu_bytes=int(model["size_vram"]),
                context_length=int(model.get("context_length", 0)),
                expires_at=str(model["expires_at"]),
            )
            for model in self._ask("GET", "/api/ps")["models"]
        ]

    def show(self, model: str) -> dict[str, Any]:
        """What it knows of a model: `details`, `template`, `parameters`, `model_info`."""
        return self._ask("POST", "/api/show", {"model": model})

    def pull(self, model: str, say: Say) -> None:
        """Fetches a model from Ollama's library, telling `say` how far it is.

        Raises:
            OllamaError: No such model, no network, or no progress for `STALL_S` seconds.
        """
        layers: dict[str, tuple[int, int]] = {}
        for line in self._lines("/api/pull", {"model": model}):
            if line.get("total"):
                layers[line.get("digest", "")] = (line.get("completed", 0), line["total"])
                done, total = (sum(column) for column in zip(*layers.values(), strict=True))
                say(f"pulling {model}: {done / 1e9:.1f} of {total / 1e9:.1f} GB so far")
            else:
                say(f"pulling {model}: {line.get('status', '')}")

    def create(self, model: str, gguf: str | Path, modelfile: Modelfile, say: Say = print) -> None:
        """Makes a model from a GGUF file, which is sent over if Ollama has not got it.

        Raises:
            OllamaError: It refused the file, or the Modelfile.
        """
        digest = self._send(Path(gguf), say)
        body = {"model": model, "files": {Path(gguf).name: digest}, **modelfile.fields()}
        for line in self._lines("/api/create", body):
            say(f"creating {model}: {line.get('status', '')}")

    def copy(self, model: str, name: str) -> None:
        """Gives a model a second name."""
        self._ask("POST", "/api/copy", {"source": model, "destination": name})

    def delete(self, model: str) -> None:
        """Removes a model from its disk."""
        self._ask("DELETE", "/api/delete", {"model": model})

    def load(self, model: str, keep_alive: str | int | None = None, **options: Any) -> None:
        """Loads a model into memory, as a request without a prompt does.

        Args:
            model: Its name.
            keep_alive: How long it stays after the last request: `5m`, seconds, -1 for ever; None: as the
                server was told.
            **options: Options that decide how it is loaded, `num_ctx` for one.
        """
        body: dict[str, Any] = {"model": model, "options": options}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        self._ask("POST", "/api/generate", {**body, "stream": False})

    def unload(self, model: str) -> None:
        """Takes a model out of memory."""
        self._ask("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})

    def _send(self, gguf: Path, say: Say) -> str:
        """Sends a file over as a blob; returns its digest."""
        with gguf.open("rb") as file:
            digest = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
        path = f"/api/blobs/{digest}"
        if self._request("HEAD", path).status_code != 200:
            say(f"sending {gguf.name}, {gguf.stat().st_size / 1e6:.0f} MB")
            answer = self._request("POST", path, content=_blocks(gguf))
            if answer.status_code not in (200, 201):
                raise OllamaError(f"Ollama did not take {gguf.name}: {_error(answer.text)}")
        return digest

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = self._request(method, path, json=body)
        if answer.status_code != 200:
            raise OllamaError(f"Ollama, {path}: HTTP {answer.status_code}: {_error(answer.text)}")
        try:
            values = answer.json() if answer.content else {}
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise OllamaError(f"{self.base_url}{path} did not answer as Ollama does. Is it one?")
        return values

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise OllamaError(_unreachable(self.base_url, error)) from error

    def _lines(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """A streamed answer, line by line; it ends with `success`, or it was not whole."""
        status = ""
        try:
            with self._http.stream("POST", path, json=body) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise OllamaError(f"Ollama, {path}: {_error(answer.text)}")
                for text in filter(None, answer.iter_lines()):
                    line = json.loads(text)
                    if line.get("error"):
                        raise OllamaError(f"Ollama, {path}: {line['error']}")
                    status = str(line.get("status", ""))
                    yield line
        except httpx.HTTPError as error:
            raise OllamaError(_unreachable(self.base_url, error)) from error
        if status != "success":
            raise OllamaError(
                f"Ollama, {path}: it ended at {status!r}. Ask again: it goes on from there."
            )


def with_tag(model: str) -> str:
    """A model's full name: `tiny` is `tiny:latest`."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def _error(text: str) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:300] or "no reason given"


def _unreachable(url: str, error: Exception) -> str:
    return f"{url} did not answer ({type(error).__name__}: {error}). Does Ollama run? ollama serve"
