"""Writing files whole: beside their place first, then moved into it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_whole(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `folder`, then move each file into its place."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
        write(Path(part))
        for path in sorted(Path(part).iterdir()):
            path.chmod(0o644)
            os.replace(path, folder / path.name)
