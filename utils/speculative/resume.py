"""Torch files that a stopped run goes on from: read whole or refused, and only where they belong."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.speculative.speculation_error import SpeculationError


def read_torch(file: Path) -> Any:
    """What `torch.save` wrote, on the CPU, tensors and plain values alone.

    Raises:
        SpeculationError: It is cut off, or no such file at all (a web page, a git-lfs pointer).
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        said = str(error).strip().split("\n")[0]
        raise SpeculationError(
            f"{file} cannot be read ({said}). It is probably incomplete, or a page or pointer in place "
            "of the file: delete it, then download or make it again."
        ) from error


def digest(values: Iterable[object]) -> str:
    """A short hash of tensors (their float32 or integer values) and of anything with a plain `repr`."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            plain = value.detach().cpu()
            plain = plain.float() if plain.is_floating_point() else plain
            found.update(repr(tuple(plain.shape)).encode() + plain.contiguous().numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def go_on(file: Path, about: Mapping[str, object]) -> dict[str, Any]:
    """What a stopped run left, if it is this run's.

    Args:
        file: Of `torch.save`, a dictionary whose "about" says what it was made of.
        about: What this run is made of.

    Raises:
        SpeculationError: It cannot be read, or was made of something else; says of what.
    """
    saved: dict[str, Any] = read_torch(file)
    old = saved.get("about") if isinstance(saved, dict) else None
    if not isinstance(old, dict):
        raise SpeculationError(
            f"{file} does not say what it was made of, so it cannot be gone on from: use another "
            "folder, or delete it to begin anew."
        )
    if other := [name for name in about if old.get(name) != about[name]]:
        name = other[0]
        raise SpeculationError(
            f"{file} is another run's: {', '.join(other)} differ ({name}: {old.get(name)} there, "
            f"{about[name]} here). Use another folder, or delete it to begin anew."
        )
    return saved
