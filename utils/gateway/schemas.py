"""Bodies of requests: JSON that is checked, within the limits, and ready to be sent on.

Fields that the gateway does not know pass through: engines have many of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from utils.gateway.http_errors import ApiError
from utils.gateway.settings import Affinity, GatewayLimits

Api = Literal["chat", "completions", "embeddings", "responses", "messages"]
PATHS: dict[str, Api] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
# APIs that some engines lack, or offer only with a flag.
OPTIONAL: tuple[Api, ...] = ("embeddings", "responses", "messages")
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
Text = Annotated[str, Field(strict=True)]
CHARACTERS_PER_TOKEN = 4.0  # for estimates before the engine has counted; English text
IMAGE_TOKENS = (
    1000.0  # the same for an image; a guess, since it depends on the model and the image's size
)
# Fields by which the engines' APIs bound an answer's length. They only have a size, so it is clamped.
LENGTHS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_new_tokens",
    "n_predict",
)
# Fields for an engine's operator. They make it connect to an address, run code that was sent, or read a file.
# (vLLM: entrypoints/openai/protocol.py; SGLang: managers/io_struct.py.)
OPERATORS = (
    "kv_transfer_params",
    "bootstrap_host",
    "bootstrap_port",
    "bootstrap_room",
    "custom_logit_processor",
    "lora_path",
)
TokenId = Annotated[int, Field(ge=0, lt=2**31, strict=True)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")


class StreamOptions(_Body):
    """`stream_options`."""

    include_usage: Annotated[bool, Field(strict=True)] | None = None


class Common(_Body):
    """Fields of all APIs."""

    model: Annotated[str, Field(strict=True, min_length=1, max_length=256)]
    stream: Annotated[bool, Field(strict=True)] | None = None
    prompt_cache_key: Text | None = None


class Sampled(Common):
    """Fields of the APIs that write text."""

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None


class Generation(Sampled):
    """Fields of both APIs for completions."""

    stream_options: StreamOptions | None = None
    max_tokens: PositiveInt | None = None
    max_completion_tokens: PositiveInt | None = None
    n: PositiveInt | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1, strict=True)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: Text | None = None


class ContentPart(_Body):
    """A part of a message's content. Engines fail on parts that are not whole (llama.cpp: HTTP 500)."""

    type: Text
    text: Text | None = None

    @model_validator(mode="after")
    def _whole(self) -> ContentPart:
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type 'text' has a text")
        return self


class Function(_Body):
    """Name of a tool."""

    name: Annotated[str, Field(strict=True, min_length=1, max_length=256)]
    parameters: dict[str, Any] | None = None


class Tool(_Body):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class Message(_Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[ContentPart] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise ValueError("a message has a content")
        return self


class ChatBody(Generation):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    logprobs: Annotated[bool, Field(strict=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Text | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


Texts = (
    Text
    | Annotated[list[Text], Field(min_length=1)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
)


class CompletionBody(Generation):
    """Body of `/v1/completions`. The prompt is one or several texts, each as a string or as token ids."""

    prompt: Texts
    best_of: PositiveInt | None = None
    echo: Annotated[bool, Field(strict=True)] | None = None
    suffix: Text | None = None
    logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None


class EmbeddingsBody(Common):
    """Body of `/v1/embeddings`."""

    input: Texts
    dimensions: PositiveInt | None = None
    encoding_format: Literal["float", "base64"] | None = None


class ResponsesBody(Sampled):
    """Body of `/v1/responses`, as far as the gateway has to know it; the engine judges the rest."""

    input: Text | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: Text | None = None
    max_output_tokens: PositiveInt | None = None


class AnthropicMessage(_Body):
    """One message of `/v1/messages`."""

    role: Literal["user", "assistant", "system"]
    content: Text | list[dict[str, Any]]


class MessagesBody(Sampled):
    """Body of `/v1/messages`, Anthropic's API, as far as the gateway has to know it."""

    messages: Annotated[list[AnthropicMessage], Field(min_length=1)]
    max_tokens: PositiveInt
    system: Text | list[dict[str, Any]] | None = None


BODIES: dict[Api, type[Common]] = {
    "chat": ChatBody,
    "completions": CompletionBody,
    "embeddings": EmbeddingsBody,
    "responses": ResponsesBody,
    "messages": MessagesBody,
}


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request, checked.

    Attributes:
        api: Name of the API.
        model: The model's name, as the client wrote it.
        stream: True if the answer is streamed.
        wants_usage: True if the client asked for the stream's usage block.
        affinity_key: Key that the policy `prefix_affinity` hashes.
        prompt_estimate: Prompt tokens, estimated.
        estimate: Prompt and answer tokens, estimated; a key is charged this number at first.
        body: The body as it came.
        clamped: Fields that asked for more than the limit, with the values that the engine gets.
    """

    api: Api
    model: str
    stream: bool
    wants_usage: bool
    affinity_key: str
    prompt_estimate: float
    estimate: float
    body: bytes
    clamped: Mapping[str, int]

    def body_for(self, model: str) -> bytes:
        """Return the body for an engine: with its name of the model, and usage asked for.

        It is the client's own bytes if nothing has to change.
        """
        asks_usage = self.stream and not self.wants_usage and self.api in ("chat", "completions")
        if model == self.model and not self.clamped and not asks_usage:
            return self.body
        fields = msgspec.json.decode(self.body)
        fields |= {"model": model, **self.clamped}
        if asks_usage:
            options = fields.get("stream_options") or {}
            fields["stream_options"] = {**options, "include_usage": True}
        return msgspec.json.encode(fields)


def parse(
    api: Api, body: bytes, limits: GatewayLimits, affinity: Affinity, session: str = ""
) -> ParsedRequest:
    """Check a body.

    Args:
        api: Name of the API.
        body: The body as it came.
        limits: Limits of the gateway.
        affinity: Settings of the policy `prefix_affinity`.
        session: Session that the client named in a header, or "".

    Raises:
        ApiError: 400, with the field that is wrong.
    """
    try:
        asked = BODIES[api].model_validate_json(body)
        fields = msgspec.json.decode(body)  # stricter: lone surrogates, numbers out of range
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, problem["loc"]))
        message = f"{field}: {problem['msg']}" if field else problem["msg"]
        raise ApiError(400, message, param=field or None, code="invalid_body") from None
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ApiError(400, f"The body isn't valid JSON: {error}", code="invalid_body") from None
    for name in OPERATORS:
        if fields.get(name) is not None:
            message = f"{name}: this field is for the engine's operator. Remove it."
            raise ApiError(400, message, param=name, code="invalid_body")
    prompt = _PROMPTS[api](asked)
    _at_most("messages" if api in ("chat", "messages") else "prompt", prompt.parts, limits.messages)
    choices = 1
    for name in ("n", "best_of"):
        _at_most(name, getattr(asked, name, None), limits.choices)
        choices = max(choices, getattr(asked, name, None) or 1)
    lengths = {name: fields[name] for name in LENGTHS if _is_length(name, fields.get(name))}
    clamped = {
        name: limits.max_tokens
        for name, value in lengths.items()
        if value > limits.max_tokens or value < 0  # llama.cpp: -1 is without an end
    }
    longest = max((lengths | clamped).values(), default=limits.max_tokens)
    answer = 0 if api == "embeddings" else longest * choices * prompt.count
    options = getattr(asked, "stream_options", None)
    return ParsedRequest(
        api=api,
        model=asked.model,
        stream=bool(asked.stream),
        wants_usage=bool(options and options.include_usage),
        affinity_key=session or asked.prompt_cache_key or prompt.beginning(affinity.characters),
        prompt_estimate=prompt.tokens,
        estimate=prompt.tokens + answer,
        body=body,
        clamped=clamped,
    )


def _is_length(name: str, value: object) -> bool:
    """Tell whether a field has a length; raise ApiError if it is of another type."""
    if value is None:
        return False
    if type(value) is not int:
        raise ApiError(400, f"{name}: write a whole number.", param=name, code="invalid_body")
    return True


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The text of a request.

    Attributes:
        shared: Text that many conversations begin with: the system message.
        first: The first text that is the request's own.
        tokens: Estimate of all its tokens.
        parts: Number of messages, or of prompts in a batch.
        count: Number of prompts that each get an answer.
    """

    shared: str
    first: str
    tokens: float
    parts: int
    count: int = 1

    def beginning(self, characters: int) -> str:
        """Return the whole system message and the first `characters` of the text after it."""
        return f"{self.shared}\n{self.first[:characters]}"


def _texts_prompt(texts: Any) -> _Prompt:
    batch = texts if isinstance(texts, list) and not isinstance(texts[0], int) else [texts]
    tokens = sum(
        len(text) / CHARACTERS_PER_TOKEN if isinstance(text, str) else len(text) for text in batch
    )
    first = batch[0] if isinstance(batch[0], str) else " ".join(map(str, batch[0]))
    return _Prompt("", first, tokens, len(batch), len(batch))


def _messages_prompt(messages: Sequence[tuple[str, Any]]) -> _Prompt:
    read = [(role, *_text_of(content)) for role, content in messages]
    system = [text for role, text, _ in read if role in ("system", "developer")]
    own = [text for role, text, _ in read if role not in ("system", "developer")]
    tokens = sum(len(text) / CHARACTERS_PER_TOKEN + more for _, text, more in read)
    return _Prompt("\n".join(system[:1]), own[0] if own else "", tokens, len(read))


def _text_of(content: Any) -> tuple[str, float]:
    """Return the text of a message's content, and the tokens of its other parts."""
    if not isinstance(content, list):
        return content or "", 0.0
    parts = [part if isinstance(part, dict) else vars(part) for part in content]
    texts = [part.get("text") for part in parts]
    others = sum(not isinstance(text, str) for text in texts)
    return "".join(text for text in texts if isinstance(text, str)), others * IMAGE_TOKENS


def _responses_prompt(asked: Any) -> _Prompt:
    items = asked.input if isinstance(asked.input, list) else [{"content": asked.input}]
    system = [("system", asked.instructions)] if asked.instructions else []
    rest = [(str(item.get("role", "user")), item.get("content")) for item in items]
    return _messages_prompt([*system, *rest])


def _anthropic_prompt(asked: Any) -> _Prompt:
    system = [("system", asked.system)] if asked.system else []
    return _messages_prompt([*system, *((m.role, m.content) for m in asked.messages)])


_PROMPTS: dict[Api, Callable[[Any], _Prompt]] = {
    "chat": lambda asked: _messages_prompt([(m.role, m.content) for m in asked.messages]),
    "completions": lambda asked: _texts_prompt(asked.prompt),
    "embeddings": lambda asked: _texts_prompt(asked.input),
    "responses": _responses_prompt,
    "messages": _anthropic_prompt,
}


def _at_most(field: str, value: int | None, limit: int) -> None:
    if value is not None and value > limit:
        raise ApiError(
            400,
            f"{field}: this gateway allows {limit}, not {value}.",
            param=field,
            code="too_large",
        )
