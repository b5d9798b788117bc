"""Finding a model before an engine is started with it."""

from __future__ import annotations

import json
from pathlib import Path

from utils.engines.engine_errors import ModelMissing
from utils.tinymodel.hub import TINY, ModelIncompleteError, fault, verify

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def find_model(model: str) -> str:
    """Return the absolute path of a local model that is whole, or a hub id as it is.

    Args:
        model: Folder, `.gguf` file or hub id; with `.`, `/` or `~` in front, or `.gguf` at its end, a path.

    Raises:
        ModelMissing: It is a path, and nothing whole is there; names what is missing.
    """
    path = Path(model).expanduser()
    if not path.exists():
        if model.startswith((".", "/", "~")) or model.endswith(".gguf"):
            raise ModelMissing(
                f"There is no model at {path.absolute()}. The tiny model ships with the course: "
                "git checkout -- models"
            )
        return model
    path = path.resolve()
    if path == TINY.resolve():
        try:
            verify(path)
        except ModelIncompleteError as error:
            raise ModelMissing(str(error)) from error
    elif path.is_dir():
        _check_folder(path)
    elif found := fault(path):
        raise ModelMissing(f"{path}: {found}. Download it again.")
    return str(path)


def _check_folder(folder: Path) -> None:
    faults = [f"config.json: {found}" for found in [fault(folder / "config.json")] if found]
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        faults.append(f"no tokenizer ({', '.join(_TOKENIZERS)})")
    index = folder / "model.safetensors.index.json"
    weights = sorted(folder.glob("*.safetensors"))
    if index.is_file():
        weights = [
            folder / name for name in set(json.loads(index.read_text())["weight_map"].values())
        ]
    if not weights and not any(folder.glob("*.bin")):
        faults.append("no weights (*.safetensors)")
    faults += [f"{path.name}: {found}" for path in weights if (found := fault(path))]
    if faults:
        raise ModelMissing(
            f"The model folder {folder} is not whole:\n  "
            + "\n  ".join(faults)
            + "\nDownload it again."
        )
