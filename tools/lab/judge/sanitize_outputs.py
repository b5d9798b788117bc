"""Outputs of cells, made anew: text and pictures, nothing that a browser would run."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

MAX_OUTPUTS = 12
MAX_TEXT = 25_000
MAX_PICTURE = 600_000  # characters of base64
_COLOURS = re.compile(r"\x1b\[[0-9;:?]{0,40}[a-zA-Z]")  # what terminals take for colours
_UNPRINTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_PNG = b"\x89PNG\r\n\x1a\n"


def harmless(nodes: Any) -> list[dict[str, Any]]:
    """Keep the text and the PNG pictures of outputs in nbformat's form."""
    if not isinstance(nodes, list):
        return []
    kept = (_harmless(node) for node in nodes[:MAX_OUTPUTS] if isinstance(node, dict))
    return [node for node in kept if node]


def _harmless(node: dict[str, Any]) -> dict[str, Any]:
    kind = node.get("output_type")
    if kind == "stream":
        name = "stderr" if node.get("name") == "stderr" else "stdout"
        return {"output_type": "stream", "name": name, "text": _text(node.get("text"))}
    if kind == "error":
        name, value = _text(node.get("ename"))[:100], _text(node.get("evalue"))[:2000]
        traceback = [f"{name}: {value}"]
        return {"output_type": "error", "ename": name, "evalue": value, "traceback": traceback}
    bundle = node.get("data")
    if kind not in ("display_data", "execute_result") or not isinstance(bundle, dict):
        return {}
    data = {"text/plain": _text(bundle.get("text/plain"))}
    picture = _text(bundle.get("image/png"), MAX_PICTURE + 1).replace("\n", "")
    if picture and len(picture) <= MAX_PICTURE and _is_png(picture):
        data["image/png"] = picture
    return {"output_type": "display_data", "data": data, "metadata": {}}


def _text(value: Any, most: int = MAX_TEXT) -> str:
    return plain("".join(map(str, value)) if isinstance(value, list) else str(value or ""), most)


def plain(text: str, most: int = MAX_TEXT) -> str:
    """Return a text without what only terminals understand: colours, a line that overwrites itself."""
    lines = writable(text[:most]).replace("\r\n", "\n").split("\n")
    shown = "\n".join(line.rsplit("\r", 1)[-1] for line in lines)  # a progress bar's last state
    return _UNPRINTED.sub("", _COLOURS.sub("", shown))


def writable(text: str) -> str:
    """Return a text without half characters (lone surrogates), which JSON can hold and no file."""
    return text.encode("utf-8", "replace").decode()


def _is_png(picture: str) -> bool:
    try:
        return base64.b64decode(picture, validate=True).startswith(_PNG)
    except (ValueError, binascii.Error):
        return False
