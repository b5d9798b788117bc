"""Names of SGLang's kernel package that SGLang imports on a CPU, and in plain serving never calls.

SGLang's CPU kernels are built from its sources and are on no package index. Without them SGLang 0.5.23
serves in plain PyTorch (attention backend `torch_native`); but where SGLANG_USE_CPU_ENGINE=1, modules that
belong to speculative decoding import these names when they are loaded, and they are always loaded. Here each
is a function that refuses to be called, so that nothing of SGLang is imitated. Nothing is registered under
`torch.ops.sgl_kernel`, by which SGLang sees that its kernels are not there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

IMPORTED = frozenset(
    {
        "assign_draft_cache_locs_contiguous_cpu",
        "assign_extend_cache_locs_cpu",
        "assign_req_to_token_pool_cpu",
        "build_tree_kernel_efficient_cpu",
        "copy_all_layer_kv_cache_cpu",
        "fill_accept_out_cache_loc_cpu",
        "fill_bonus_tokens_cpu",
        "verify_tree_greedy_cpu",
    }
)


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """A stand-in for the kernel `name`, which raises NotImplementedError when it is called.

    Raises:
        AttributeError: The name is none that SGLang imports here.
    """
    if name not in IMPORTED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def kernel(*_: object, **__: object) -> NoReturn:
        raise NotImplementedError(
            f"{name} belongs to SGLang's CPU kernels, which are on no package index and not installed: "
            "without them SGLang serves, but offers no speculative decoding."
        )

    return kernel
