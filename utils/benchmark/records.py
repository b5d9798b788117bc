"""Record files: one JSON per run, in one folder.

A number shown anywhere in the course comes from a `Record` (measured), a `Cited` row (published,
with its source) or a roofline (predicted); each carries its origin.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

from utils.benchmark.record import Cited, Record, RecordError, make_record
from utils.files import plain, to_json, write_whole
from utils.profiles import ROOT

__all__ = [
    "Cited",
    "Record",
    "RecordError",
    "RecordWarning",
    "load_all",
    "make_record",
    "read_record",
    "records_dir",
    "write_record",
]


class RecordWarning(UserWarning):
    """A record file that was left out."""


def records_dir() -> Path:
    """Return the folder of records: the one in COURSE_RECORDS, else `records/` of the repository."""
    return Path(os.environ.get("COURSE_RECORDS") or ROOT / "records")


def write_record(record: Record, directory: str | Path | None = None) -> Path:
    """Write `<directory>/<id>.json`, whole or not at all, and return its path.

    Args:
        record: Record to write.
        directory: Default, `records_dir()`.

    Raises:
        RecordError: If it cannot be written (disk full, no permission), or its id is no file name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}", record.id):
        raise RecordError(
            f"a record's id is the name of its file: letters, digits, '.', '_' and '-', at most "
            f"200 of them and no '.' in front, not {record.id[:80]!r}"
        )
    folder = records_dir() if directory is None else Path(directory)
    path = folder / f"{record.id}.json"
    return save(path, to_json(record.to_dict()))


def save(path: Path, text: str) -> Path:
    """Write a record or report whole or not at all, and return `path`.

    Raises:
        RecordError: If it cannot be written (disk full, no permission).
    """
    try:
        return write_whole(path, text)
    except OSError as error:
        raise RecordError(
            f"cannot write {path}: {error.strerror or error}. Free some space, or set "
            "COURSE_RECORDS to a folder that can be written"
        ) from error


def read_record(path: str | Path) -> Record:
    """Read one record.

    Raises:
        RecordError: If the file is missing, damaged or not a record; names the file.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # Windows editors write the mark
        values = json.loads(text)
        # Half a surrogate pair can stand in JSON as an escape, and nowhere else.
        return Record.from_dict(plain(values) if "\\ud" in text.lower() else values)
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise RecordError(f"{path} is damaged: {error}. Delete it and measure again") from error
    except RecursionError as error:
        raise RecordError(f"{path} is not a usable record: nested too deeply") from error
    except ValueError as error:  # RecordError, not UTF-8, a number of thousands of digits
        raise RecordError(f"{path} is not a usable record: {error}") from error


def load_all(directory: str | Path | None = None) -> list[Record]:
    """Read every record of a folder, oldest first; an absent folder has none.

    Files that are no usable record, and copies of a record, are left out with a `RecordWarning` that names
    them.
    """
    folder = records_dir() if directory is None else Path(directory)
    records: list[Record] = []
    seen: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*.json"), key=lambda path: (len(path.name), path.name)):
        try:
            record = read_record(path)
        except RecordError as error:
            warnings.warn(f"left out: {error}", RecordWarning, stacklevel=2)
            continue
        if first := seen.get(record.id):
            message = f"left out: {path} is a copy of {first.name}, not another run"
            warnings.warn(message, RecordWarning, stacklevel=2)
            continue
        seen[record.id] = path
        records.append(record)
    return sorted(records, key=lambda record: (record.date, record.id))


def without_duplicates(records: Iterable[Record]) -> list[Record]:
    """Return records in their order, each id once, with a `RecordWarning` about the others."""
    found: dict[str, Record] = {}
    copies = 0
    for record in records:
        copies += record.id in found
        found.setdefault(record.id, record)
    if copies:
        warnings.warn(
            f"left out: {copies} records that occur twice are copies, not repeats",
            RecordWarning,
            stacklevel=3,
        )
    return list(found.values())
