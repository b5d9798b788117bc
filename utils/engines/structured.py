"""Constrained answers: one way to ask for them, in each engine's own words.

Sources: vLLM 0.32.0 (``sampling_params.py``, ``StructuredOutputsParams``); SGLang 0.5.23
(``srt/entrypoints/openai/protocol.py``); llama.cpp ``tools/server/README.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import jsonschema

from utils.engines.engine_errors import UnsupportedOption
from utils.engines.spec import EngineSpec

Constraint = Mapping[str, Any]  # {"json_schema": {...}}, {"regex": "..."} or {"choice": [...]}


# JSON allows blanks between its parts, as many as one likes: a grammar that allows them too need not end.
COMPACT_JSON: Mapping[str, tuple[str, ...]] = {
    "sglang": ("--constrained-json-disable-any-whitespace",),
    "vllm": (
        "--structured-outputs-config",
        '{"backend": "xgrammar", "disable_any_whitespace": true}',
    ),
}


def request_fields(spec: EngineSpec, constraint: Constraint) -> dict[str, Any]:
    """Return the fields of a request's JSON body that make the answer obey; empty for no constraint.

    Args:
        spec: The engine.
        constraint: One of ``json_schema``, ``regex`` and ``choice``, with its value; or nothing.

    Raises:
        UnsupportedOption: The engine has no such constraint.
    """
    if not constraint:
        return {}
    ((kind, value),) = constraint.items()
    offered = spec.capabilities.structured_output
    if kind == "choice" and "choice" not in offered and "regex" in offered:
        kind, value = "regex", "|".join(map(re.escape, value))
    if kind not in offered:
        known = ", ".join(offered) or "none"
        raise UnsupportedOption(f"{spec.title} has no {kind!r} constraint. It has: {known}.")
    if kind == "json_schema":
        described = {"name": "answer", "schema": value}
        return {"response_format": {"type": "json_schema", "json_schema": described}}
    if spec.name == "vllm":
        return {"structured_outputs": {kind: value}}
    return {kind: value}


def fault(text: str, constraint: Constraint) -> str:
    """Why an answer does not obey its constraint, in words; "" if it does.

    Judged by libraries that no engine uses: :mod:`jsonschema` and :mod:`re`.
    """
    if not constraint:
        return ""
    ((kind, value),) = constraint.items()
    if kind == "choice":
        return "" if text in value else f"{text!r} is none of the choices"
    if kind == "regex":
        return "" if re.fullmatch(value, text) else f"{text!r} does not match"
    try:
        jsonschema.validate(json.loads(text), value)
    except json.JSONDecodeError as error:
        return f"no JSON: {error}: {text!r}"
    except jsonschema.ValidationError as error:
        return f"{error.message}: {text!r}"
    return ""
