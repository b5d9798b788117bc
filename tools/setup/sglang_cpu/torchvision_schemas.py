"""Lets `import torchvision` succeed beside a CPU build of PyTorch.

SGLang and transformers import torchvision. The wheel on the package index is linked against CUDA, so beside a
CPU build its C++ operators do not load, and `import torchvision` ends with "operator torchvision::nms does
not exist": it describes two operators that nobody has declared. They are declared here, without code: calling
one is an error, and no language model does.

Loaded at the start of Python by torchvision_schemas.pth; does nothing until torchvision is imported.
"""

from __future__ import annotations

import sys
from typing import Any

OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DeclareBeforeTorchvision:
    """An import hook that finds no module; the first question for torchvision makes it act and go."""

    def __init__(self) -> None:
        self.library: Any = None  # what it declares is gone when it goes

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Declares the operators when `name` is torchvision."""
        if name == "torchvision" and self.library is None:
            import torch

            if torch.version.cuda is None:
                self.library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
                for operator in OPERATORS:
                    self.library.define(operator + SIGNATURE)


sys.meta_path.insert(0, DeclareBeforeTorchvision())
