"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class RecordError(ValueError):
    """A record or report that cannot be written, or a file that is no usable record."""


def write_whole(path: Path, text: str) -> Path:
    """Writes beside `path`, then renames; returns `path`.

    Raises:
        RecordError: If it cannot be written (disk full, no permission).
    """
    beside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w",
            dir=path.parent,
            prefix=f".{path.stem}-",
            delete=False,
            encoding="utf-8",
            errors="replace",
        ) as stream:
            beside = Path(stream.name)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        beside.chmod(0o644)
        return beside.replace(path)
    except BaseException as error:
        if beside is not None:
            beside.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise RecordError(
            f"cannot write {path}: {error.strerror or error}. Free some space, or set "
            "COURSE_RECORDS to a folder that can be written"
        ) from error


def encodable(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which no file can hold.

    Two halves that belong together become the character that they stand for.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def to_json(values: Mapping[str, Any]) -> str:
    """Strict JSON: NaN and infinity become null."""
    return json.dumps(plain(values), allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Plain values for JSON: no NaN, no tuples, no numpy scalars, no paths, no half characters."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {encodable(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, bytes):  # numpy scalar
        return plain(value.item())
    if isinstance(value, Path):
        return encodable(str(value))
    return value
