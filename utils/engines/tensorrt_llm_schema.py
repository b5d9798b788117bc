"""JSON Schema of `trtllm-serve --config`, made from the keys in `trtllm_serve_config.yaml`.

The data file names its sources. Like NVIDIA's own schema it is a static check, so the engine that runs has
the last word. Rules that a schema can't express are in `tensorrt_llm_settings`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

KEYS = Path(__file__).with_name("trtllm_serve_config.yaml")
SCHEMA_VERSION = "1.4.0rc0"
# Keys in public recipes for earlier versions, with their replacement today.
FORMER: Mapping[str, str] = {
    "pytorch_backend_config": "write its keys at the top level",
    "use_cuda_graph": "write cuda_graph_config; null switches the graphs off",
    "cuda_graph_padding_enabled": "write cuda_graph_config: {enable_padding: true}",
    "cuda_graph_batch_sizes": "write cuda_graph_config: {batch_sizes: [...]}",
    "cuda_graph_max_batch_size": "write cuda_graph_config: {max_batch_size: N}",
    "enable_overlap_scheduler": "write disable_overlap_scheduler, with the opposite value",
    "kv_cache_dtype": "write kv_cache_config: {dtype: fp8}",
    "kv_cache_free_gpu_memory_fraction": "write kv_cache_config: {free_gpu_memory_fraction: 0.8}",
    "moe_backend": "write moe_config: {backend: ...}",
    "scheduler_policy": "write scheduler_config: {capacity_scheduler_policy: ...}",
}
_BOUND = re.compile(
    r"^(?P<kind>integer|number) *(?:(?P<sign>>=?) *(?P<low>-?\d+)|(?P<range>0\.\.1))?$"
)


@cache
def config_schema() -> dict[str, Any]:
    """Return the JSON Schema."""
    read = yaml.safe_load(KEYS.read_text(encoding="utf-8"))
    shared, methods = read["shared"], read["methods"]
    speculative = shared.pop("speculative")
    common = _properties(speculative)
    one_of = []
    for name, extras in methods.items():
        own = {} if extras == "object" else _properties(extras)
        closed = {"additionalProperties": False} if extras != "object" else {}
        properties = {**common, **own, "decoding_type": {"const": name}}
        one_of.append({"type": "object", "properties": properties, **closed})
    definitions = {name: _section(keys) for name, keys in shared.items()}
    definitions["speculative"] = {
        "type": "object",
        "properties": {"decoding_type": common["decoding_type"]},
        "required": ["decoding_type"],
        "allOf": [
            {
                "if": {"properties": {"decoding_type": {"const": name}}},
                "then": body,
            }
            for name, body in zip(methods, one_of, strict=True)
        ],
    }
    return {**_section(read["settings"]), "$defs": definitions}


def _section(keys: Mapping[str, str]) -> dict[str, Any]:
    return {"type": "object", "properties": _properties(keys), "additionalProperties": False}


def _properties(keys: Mapping[str, str]) -> dict[str, Any]:
    return {name: _kind(text) for name, text in keys.items()}


def _kind(text: str) -> dict[str, Any]:
    """Return the schema of a kind in the data file's notation."""
    text, _, status = text.partition(",")
    text = text.strip()
    if nullable := text.endswith("?"):
        text = text[:-1].strip()
    schema = _plain_kind(text)
    if nullable:
        schema = {"anyOf": [schema, {"type": "null"}]}
    return schema | ({"deprecated": True} if status else {})


def _plain_kind(text: str) -> dict[str, Any]:
    if text == "any":
        return {}
    if text.startswith("@"):
        return {"$ref": f"#/$defs/{text[1:]}"}
    if text.startswith("list of "):
        return {"type": "array", "items": _plain_kind(text.removeprefix("list of "))}
    if bound := _BOUND.match(text):
        schema: dict[str, Any] = {"type": bound["kind"]}
        if bound["range"]:
            return schema | {"minimum": 0, "maximum": 1}
        if bound["low"] is not None:
            limit = "minimum" if bound["sign"] == ">=" else "exclusiveMinimum"
            schema[limit] = int(bound["low"])
        return schema
    if text in ("boolean", "string", "object"):
        return {"type": text}
    return {"enum": [word.strip() for word in text.split("|")]}


def schema_faults(values: Mapping[str, Any]) -> list[str]:
    """Return what the engine would refuse in a file, with a proposal for each; [] if nothing is found."""
    validator = Draft202012Validator(config_schema())
    return [text for error in validator.iter_errors(values) for text in _explain(error)]


def deprecated_keys(values: Mapping[str, Any]) -> list[str]:
    """Return the deprecated keys that a file uses, with their section."""
    schema = config_schema()
    found = [k for k in values if schema["properties"].get(k, {}).get("deprecated")]
    for section, keys in _closed_sections(schema):
        inner = values.get(section)
        for key in inner if isinstance(inner, Mapping) else ():
            if keys.get(key, {}).get("deprecated"):
                found.append(f"{section}.{key}")
    return found


def _closed_sections(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    definitions = schema["$defs"]
    yield "kv_cache_config", definitions["kv_cache"]["properties"]
    methods = [case["then"]["properties"] for case in definitions["speculative"]["allOf"]]
    yield "speculative_config", {key: kind for keys in methods for key, kind in keys.items()}


def _explain(error: ValidationError) -> Iterator[str]:
    """Yield a sentence or more for each error of the schema."""
    if error.validator == "anyOf":  # a kind or null: the error of the kind says more
        for inner in error.context or ():
            if not (inner.validator == "type" and inner.validator_value == "null"):
                yield from _explain(inner)
        return
    name = ".".join(str(part) for part in error.absolute_path) or "the file"
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        for key in error.instance:
            if key not in known:
                yield _unknown(key, "" if name == "the file" else f"{name}.", known)
    elif error.validator == "enum":
        allowed = ", ".join(map(str, error.validator_value))
        medusa = " Medusa was for the removed backend." if error.instance == "Medusa" else ""
        yield f"{name} is {error.instance!r}. Write one of {allowed}.{medusa}"
    elif error.validator == "type":
        yield f"{name} is {error.instance!r}. Write {_WORDS[error.validator_value]}."
    elif error.validator == "required":
        yield f"{name} lacks {error.validator_value[0]}."
    else:
        yield f"{name} is {error.instance!r}: {error.message}."


_WORDS = {
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "array": "a list",
    "object": "keys of its own",
    "null": "null",
}


def _unknown(key: Any, where: str, known: Mapping[str, Any]) -> str:
    if not where and key in FORMER:
        return f"{key} is a key of older recipes. Today, {FORMER[key]}."
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]}?" if near else ""
    return (
        f"{where}{key} is no key of trtllm-serve's file that we know, and TensorRT-LLM refuses a file "
        f"with an unknown key.{guess}"
    )
