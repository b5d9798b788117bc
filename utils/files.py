"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> Path:
    """Write a text file whole or not at all, and return `path`.

    Raises:
        OSError: If it cannot be written (disk full, no permission). An earlier file is then untouched.
    """
    return write_file(path, lambda part: part.write_text(text, encoding="utf-8", errors="replace"))


def write_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file of the same name elsewhere, then move it to `path`; return `path`.

    Raises:
        OSError: As `write_whole` does.
    """
    fill_folder(path.parent, lambda part: write(part / path.name))
    return path


def fill_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder, then move each of its files into `folder`.

    Raises:
        OSError: As `write_whole` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Inside `folder`, because a file can be moved only within one file system.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
        write(Path(part))
        built = sorted(Path(part).iterdir())
        for path in built:
            path.chmod(0o644)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        for path in built:
            path.replace(folder / path.name)


def encodable(text: str) -> str:
    """Return the text with U+FFFD for each half of a surrogate pair, which no file can hold.

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
