"""Torch files from which a stopped run resumes: each is read whole or refused, and only by its own run."""

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
    """Read a file of `torch.save` onto the CPU, with tensors and plain values only.

    Raises:
        SpeculationError: The file is incomplete, or of another kind (a web page, a git-lfs pointer).
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise SpeculationError(
            f"{file} cannot be read ({reason}). It is probably incomplete, or a web page or a git-lfs "
            "pointer. Delete it, then download or make it again."
        ) from error


def digest(values: Iterable[object]) -> str:
    """Return a short hash of tensors (their float32 or integer values) and of values with a plain `repr`."""
    found = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            plain = value.detach().cpu()
            plain = plain.float() if plain.is_floating_point() else plain
            found.update(repr(tuple(plain.shape)).encode() + plain.contiguous().numpy().tobytes())
        else:
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def resume(file: Path, about: Mapping[str, object]) -> dict[str, Any]:
    """Read the checkpoint of a stopped run, if it is this run's.

    Args:
        file: File that `torch.save` wrote, a dictionary with the run's description as "about".
        about: Description of this run.

    Raises:
        SpeculationError: The file cannot be read, or is another run's.
    """
    saved: dict[str, Any] = read_torch(file)
    old = saved.get("about") if isinstance(saved, dict) else None
    if not isinstance(old, dict):
        raise SpeculationError(
            f"{file} does not say what it was made of, so no run can resume from it. Use another "
            "folder, or delete the file to start again."
        )
    if other := [name for name in about if old.get(name) != about[name]]:
        name = other[0]
        raise SpeculationError(
            f"{file} is another run's: {', '.join(other)} differ ({name}: {old.get(name)} there, "
            f"{about[name]} here). Use another folder, or delete the file to start again."
        )
    return saved
