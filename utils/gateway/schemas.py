"""What a request asks for: its JSON checked, within the limits, ready to be sent on.

Fields that the gateway does not know pass through: engines have many of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from utils.gateway.http_errors import ApiError
from utils.gateway.settings import GatewayLimits

Api = Literal["chat", "completions"]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
Text = Annotated[str, Field(strict=True)]
CHARACTERS_PER_TOKEN = 4.0  # for estimates before the engine has counted; English text


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow")


class StreamOptions(_Body):
    """`stream_options`."""

    include_usage: Annotated[bool, Field(strict=True)] | None = None


class Common(_Body):
    """What both APIs have."""

    model: Annotated[str, Field(strict=True, min_length=1, max_length=256)]
    stream: Annotated[bool, Field(strict=True)] | None = None
    stream_options: StreamOptions | None = None
    max_tokens: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
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
    """What a tool is called."""

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


class ChatBody(Common):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: PositiveInt | None = None
    logprobs: Annotated[bool, Field(strict=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Text | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None


class CompletionBody(Common):
    """Body of `/v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[Annotated[int, Field(ge=0, lt=2**31, strict=True)]], Field(min_length=1)]
    )
    best_of: PositiveInt | None = None
    echo: Annotated[bool, Field(strict=True)] | None = None
    suffix: Text | None = None
    logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None


BODIES: dict[Api, type[ChatBody] | type[CompletionBody]] = {
    "chat": ChatBody,
    "completions": CompletionBody,
}


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request, checked.

    Attributes:
        api: `chat` or `completions`.
        model: The model's name, as the client wrote it.
        stream: Whether the answer is streamed.
        wants_usage: Whether the client asked for the stream's usage block.
        prefix: The beginning of the prompt: what `prefix_affinity` hashes.
        prompt_estimate: Prompt tokens, estimated.
        estimate: Prompt and answer tokens, estimated: what a key is charged at first.
        body: The body as it came.
    """

    api: Api
    model: str
    stream: bool
    wants_usage: bool
    prefix: str
    prompt_estimate: float
    estimate: float
    body: bytes

    def body_for(self, model: str) -> bytes:
        """The body for an engine: with its name of the model, and usage asked for.

        As it came where nothing has to change, so that engines see what clients sent.
        """
        if model == self.model and (self.wants_usage or not self.stream):
            return self.body
        fields = msgspec.json.decode(self.body)
        fields["model"] = model
        if self.stream:
            options = fields.get("stream_options") or {}
            fields["stream_options"] = {**options, "include_usage": True}
        return msgspec.json.encode(fields)


def parse(api: Api, body: bytes, limits: GatewayLimits, prefix_characters: int) -> ParsedRequest:
    """Checks a body.

    Raises:
        ApiError: 400, with the field that is wrong.
    """
    try:
        asked = BODIES[api].model_validate_json(body)
        msgspec.json.decode(body)  # stricter in places: lone surrogates, numbers out of range
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, problem["loc"]))
        message = f"{field}: {problem['msg']}" if field else problem["msg"]
        raise ApiError(400, message, param=field or None, code="invalid_body") from None
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise ApiError(400, f"This is no JSON: {error}", code="invalid_body") from None
    _at_most("max_tokens", asked.max_tokens, limits.max_tokens)
    _at_most("n", asked.n, limits.choices)
    if asked.model_extra and "n_predict" in asked.model_extra:
        message = "n_predict: write max_tokens; engines would let n_predict go over it."
        raise ApiError(400, message, param="n_predict", code="invalid_body")
    wanted, choices = asked.max_tokens, asked.n or 1
    prompt: str
    count = 1
    if isinstance(asked, ChatBody):
        wanted = asked.max_completion_tokens or wanted
        _at_most("max_completion_tokens", asked.max_completion_tokens, limits.max_tokens)
        _at_most("messages", len(asked.messages), limits.messages)
        prompt = "\n".join(f"{m.role}:{_text_of(m)}" for m in asked.messages)
    else:
        _at_most("best_of", asked.best_of, limits.choices)
        choices = max(choices, asked.best_of or 1)
        texts = asked.prompt if isinstance(asked.prompt, list) else [asked.prompt]
        if texts and isinstance(texts[0], str):
            _at_most("prompt", len(texts), limits.messages)
            count = len(texts)
        prompt = " ".join(map(str, texts))
    answer = (wanted or limits.max_tokens) * choices * count
    options = asked.stream_options
    return ParsedRequest(
        api=api,
        model=asked.model,
        stream=bool(asked.stream),
        wants_usage=bool(options and options.include_usage),
        prefix=prompt[:prefix_characters],
        prompt_estimate=len(prompt) / CHARACTERS_PER_TOKEN,
        estimate=len(prompt) / CHARACTERS_PER_TOKEN + answer,
        body=body,
    )


def _text_of(message: Message) -> str:
    if isinstance(message.content, list):
        return "".join(piece.text or piece.type for piece in message.content)
    return message.content or ""


def _at_most(field: str, value: int | None, limit: int) -> None:
    if value is not None and value > limit:
        raise ApiError(
            400,
            f"{field}: this gateway allows {limit}, not {value}.",
            param=field,
            code="too_large",
        )
