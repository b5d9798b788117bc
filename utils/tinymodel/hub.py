"""Finding, checking and loading a model folder."""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

from utils.profiles import ROOT

TINY = ROOT / "models" / "tiny"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
GGUF_FILES = ("tiny-BF16.gguf", "tiny-Q8_0.gguf")
RESTORE = "git checkout -- {folder}   # the files as shipped"
REMAKE = (
    "python -m tools.tinymodel export --run RUN --model {folder}   # from a training of your own"
)


class ModelIncompleteError(Exception):
    """A model folder lacks files or holds damaged ones; the message names them and the command to run."""


def fault(path: Path) -> str | None:
    """Return the fault of one file of a model, or None."""
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if path.suffix == ".json":
        try:
            json.loads(path.read_text("utf-8"))
        except ValueError:
            return "not valid JSON"
    if path.suffix == ".gguf" and head[:4] != b"GGUF":
        return "not a GGUF file"
    if path.suffix == ".safetensors":
        return _fault_safetensors(path)
    return None


def _fault_safetensors(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            return "cut off"
        try:
            header = json.loads(file.read(length))
        except ValueError:
            return "not a safetensors file"
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return None if ends and 8 + length + max(ends) == size else "cut off"


def verify(folder: Path | str = TINY, *, with_gguf: bool = False) -> Path:
    """Check that a model folder is complete; returns it.

    Raises:
        ModelIncompleteError: naming each missing or damaged file and the command that restores it.
    """
    folder = Path(folder)
    wanted = FILES + (GGUF_FILES if with_gguf else ())
    faults = {name: bad for name in wanted if (bad := fault(folder / name))}
    if not faults:
        return folder
    lines = [f"The model folder {folder} is incomplete:"]
    lines += [f"  {name}: {bad}" for name, bad in faults.items()]
    lines += ["To restore it:"]
    lines += [f"  {command.format(folder=folder)}" for command in (RESTORE, REMAKE)]
    raise ModelIncompleteError("\n".join(lines))


def load(folder: Path | str = TINY, dtype: str = "float32") -> tuple[Any, Any]:
    """Return the transformers model (in evaluation mode) and tokenizer of a complete model folder.

    Raises:
        ModelIncompleteError: if files are missing or damaged.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = verify(folder)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_on_card(folder: Path) -> dict[str, str]:
    """File names and SHA-256 as the model card's table gives them."""
    card = (folder / "README.md").read_text("utf-8")
    return {
        name: digest for name, digest in re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})`", card, re.M)
    }


def check(folder: Path = TINY) -> list[str]:
    """Differences between the files and the hashes on their card, as lines that say what to run."""
    if not (folder / "README.md").is_file():
        return [f"{folder}/README.md: missing; `python -m tools.tinymodel card` makes it"]
    listed = hashes_on_card(folder)
    found = []
    for name in (*FILES, *GGUF_FILES):
        if bad := fault(folder / name):
            found.append(f"{name}: {bad}; {RESTORE.format(folder=folder)}")
        elif name not in listed:
            found.append(f"{name}: not on the card; `python -m tools.tinymodel card` writes it")
        elif sha256(folder / name) != listed[name]:
            built = "gguf" if name.endswith(".gguf") else "export"
            found.append(
                f"{name}: differs from its hash on the card; restore it with "
                f"`git checkout -- {folder / name}`, or, if it was made anew "
                f"(`python -m tools.tinymodel {built}`), measure and describe it again: "
                "`python -m tools.tinymodel evaluate card`"
            )
    return found
