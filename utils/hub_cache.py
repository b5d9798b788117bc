"""Places of the hub's models on this machine. Standard library only.

Source: huggingface_hub 1.x, `constants.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def hub_home(environment: Mapping[str, str]) -> Path:
    """Return the folder of all Hugging Face programs: HF_HOME, or the default."""
    if home := environment.get("HF_HOME"):
        return Path(home).expanduser()
    if cache := environment.get("XDG_CACHE_HOME"):
        return Path(cache).expanduser() / "huggingface"
    return Path(os.path.expanduser("~/.cache/huggingface"))


def hub_cache(environment: Mapping[str, str]) -> Path:
    """Return the folder of downloaded models: HF_HUB_CACHE, or `hub` in `hub_home`."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if cache := environment.get(name):
            return Path(cache).expanduser()
    return hub_home(environment) / "hub"


def foreign_owner(folder: Path, user: int) -> tuple[Path, int] | None:
    """Return the first file or folder below `folder` that belongs to somebody else, with its owner's id."""
    try:
        if (owner := folder.stat().st_uid) != user:
            return folder, owner
    except OSError:
        return None
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            try:
                owner = path.lstat().st_uid
            except OSError:
                continue
            if owner != user:
                return path, owner
    return None
