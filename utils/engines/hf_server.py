"""The naive baseline: `model.generate` with an OpenAI-compatible endpoint, one request at a time.

No batching, no paged cache, no prefix cache: each request waits for the one before it. That is the point.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
import uuid
from collections.abc import Iterator
from queue import Queue
from typing import Any

import torch
import transformers
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from tokenizers.decoders import DecodeStream
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer


class BaselineStreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class GenerateRequest(BaseModel):
    """The fields of OpenAI's two completion requests that the baseline honours; others are ignored."""

    model: str | None = None
    messages: list[dict[str, Any]] | None = None
    prompt: str | list[int] | None = None
    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    stream: bool = False
    stream_options: BaselineStreamOptions = BaselineStreamOptions()
    ignore_eos: bool = False


class TokenStreamer(BaseStreamer):  # type: ignore[misc]
    """Puts each generated token id into a queue at once; transformers' own streamers wait for words."""

    def __init__(self, tokens: Queue[int | None]) -> None:
        self.tokens = tokens
        self.prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, then one token at a time."""
        if self.prompt_seen:
            self.tokens.put(int(value))
        self.prompt_seen = True

    def end(self) -> None:
        """Nothing to flush."""


class Baseline:
    """A model that generates for one request at a time.

    Attributes:
        device: Device that it computes on. It is the CPU if a GPU was asked for and PyTorch finds none.
    """

    def __init__(self, model: str, dtype: str, max_model_len: int, device: str = "cpu") -> None:
        self.device = device if device == "cpu" or torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self.model.to(self.device).eval()
        self.max_model_len = max_model_len
        self.turn = threading.Lock()

    def encode(self, request: GenerateRequest) -> torch.Tensor:
        """Token ids of the request's prompt, shape [1, prompt length].

        Raises:
            HTTPException: 400 for a request without a prompt or one that is too long.
        """
        if request.messages is not None:
            text = self.tokenizer.apply_chat_template(
                request.messages, tokenize=False, add_generation_prompt=True
            )
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
        elif isinstance(request.prompt, str):
            ids = self.tokenizer(request.prompt).input_ids
        elif request.prompt:
            ids = request.prompt
        else:
            raise HTTPException(400, "the request has neither messages nor a prompt")
        if len(ids) + request.max_tokens > self.max_model_len:
            raise HTTPException(
                400,
                f"prompt of {len(ids)} tokens + max_tokens {request.max_tokens} is over the "
                f"context length of {self.max_model_len}",
            )
        return torch.tensor([ids], device=self.device)

    def generate(
        self, request: GenerateRequest, ids: torch.Tensor, usage: dict[str, int]
    ) -> Iterator[str]:
        """Yield the text of each token as it is generated; fill `usage` at the end.

        Raises:
            RuntimeError: Generation failed; the server's log has the reason.
        """
        with self.turn:
            tokens: Queue[int | None] = Queue()
            worker = threading.Thread(target=self._work, args=(request, ids, tokens))
            worker.start()
            decoder = DecodeStream(skip_special_tokens=True)
            count = 0
            while (token := tokens.get()) is not None:
                count += 1
                if piece := decoder.step(self.tokenizer.backend_tokenizer, token):
                    yield piece
            worker.join()
            if count == 0:
                raise RuntimeError("generation failed; the server's log has the reason")
            usage["prompt_tokens"] = ids.shape[1]
            usage["completion_tokens"] = count
            usage["total_tokens"] = ids.shape[1] + count

    def _work(self, request: GenerateRequest, ids: torch.Tensor, tokens: Queue[int | None]) -> None:
        settings: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            settings["temperature"] = request.temperature
        if request.ignore_eos:
            settings["min_new_tokens"] = request.max_tokens
        try:
            with torch.inference_mode():
                self.model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=request.max_tokens,
                    streamer=TokenStreamer(tokens),
                    **settings,
                )
        finally:
            tokens.put(None)


def make_app(baseline: Baseline, served_name: str) -> FastAPI:
    """Return the endpoints: /health, /version, /v1/models, /v1/completions, /v1/chat/completions."""
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/version")
    def version() -> dict[str, str]:
        return {"version": transformers.__version__, "device": baseline.device}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": served_name, "object": "model"}]}

    def events(request: GenerateRequest, ids: torch.Tensor, chat: bool) -> Iterator[str]:
        usage: dict[str, int] = {}
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()),
            "model": served_name,
        }

        def event(choices: list[dict[str, Any]], **more: Any) -> str:
            return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

        try:
            for piece in baseline.generate(request, ids, usage):
                text = {"delta": {"content": piece}} if chat else {"text": piece}
                yield event([{"index": 0, **text, "finish_reason": None}])
        except RuntimeError as error:
            yield f"data: {json.dumps({'error': {'message': str(error), 'code': 500}})}\n\n"
            return
        full = usage["completion_tokens"] >= request.max_tokens
        noop: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        yield event([{"index": 0, **noop, "finish_reason": "length" if full else "stop"}])
        if request.stream_options.include_usage:
            yield event([], usage=usage)
        yield "data: [DONE]\n\n"

    def answer(request: GenerateRequest, chat: bool) -> StreamingResponse | JSONResponse:
        ids = baseline.encode(request)
        if request.stream:
            return StreamingResponse(events(request, ids, chat), media_type="text/event-stream")
        usage: dict[str, int] = {}
        text = "".join(baseline.generate(request, ids, usage))
        full = usage["completion_tokens"] >= request.max_tokens
        body = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, **body, "finish_reason": "length" if full else "stop"}
        kind = "chat.completion" if chat else "text_completion"
        return JSONResponse(
            {"object": kind, "model": served_name, "choices": [choice], "usage": usage}
        )

    @app.post("/v1/chat/completions", response_model=None)
    def chat_completions(request: GenerateRequest) -> StreamingResponse | JSONResponse:
        return answer(request, chat=True)

    @app.post("/v1/completions", response_model=None)
    def completions(request: GenerateRequest) -> StreamingResponse | JSONResponse:
        return answer(request, chat=False)

    return app


def main() -> None:
    """Command line: loads the model, then serves it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--max-model-len", type=int, required=True)
    arguments = parser.parse_args()
    baseline = Baseline(arguments.model, arguments.dtype, arguments.max_model_len, arguments.device)
    app = make_app(baseline, arguments.served_model_name)
    uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
