"""A plugin for SGLang on a CPU: a prompt's attention is computed for its new tokens only.

SGLang's attention in plain PyTorch (`torch_native`, 0.5.23: TorchNativeAttnBackend._run_sdpa_forward_extend)
puts the cached tokens' places in front of the new queries, computes attention for all of them, and throws the
first part away: what the radix cache has saved is computed again. SGLang's kernels for GPUs and CPUs do not.
Here the same PyTorch function gets the new queries alone, and a mask that lets each see what comes before it.
Cases that the course does not use (cross-attention, sliding windows, no causality) go to SGLang's own code.

Found by SGLang through the entry point `sglang.srt.plugins`.
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """Replaces one method of SGLang's PyTorch attention backend."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
    from torch import Tensor, arange
    from torch.nn.functional import scaled_dot_product_attention

    upstream = TorchNativeAttnBackend._run_sdpa_forward_extend

    def run(
        self: Any,
        query: Tensor,
        output: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        req_to_token: Tensor,
        req_pool_indices: Tensor,
        seq_lens: Tensor,
        extend_prefix_lens: Tensor,
        extend_seq_lens: Tensor,
        *others: Any,
        **options: Any,
    ) -> Any:
        """As upstream's.

        Args:
            self: The backend.
            query: [new tokens of all requests, heads, head size].
            output: Likewise; written to.
            k_cache: [slots, KV heads, head size].
            v_cache: Likewise.
            req_to_token: [requests, slots of their tokens].
            req_pool_indices: Rows of `req_to_token`, one for each sequence.
            seq_lens: Tokens of each sequence.
            extend_prefix_lens: Of these, cached.
            extend_seq_lens: Of these, new.
            others: Lengths of an encoder, None without one.
            options: `scaling`, `enable_gqa`, `causal`, `is_cross_attn`, `sliding_window_size`.
        """
        lengths = (req_pool_indices, seq_lens, extend_prefix_lens, extend_seq_lens)
        special = options.get("is_cross_attn") or options.get("sliding_window_size") is not None
        if special or not options.get("causal") or any(other is not None for other in others):
            tensors = (query, output, k_cache, v_cache, req_to_token)
            return upstream(self, *tensors, *lengths, *others, **options)
        start = 0
        for request, total, cached, new in zip(*(one.tolist() for one in lengths), strict=True):
            slots = req_to_token[request, :total]
            q = query[start : start + new].transpose(0, 1).unsqueeze(0)
            k = k_cache[slots].to(query.dtype).transpose(0, 1).unsqueeze(0)
            v = v_cache[slots].to(query.dtype).transpose(0, 1).unsqueeze(0)
            mask = arange(total) <= arange(cached, total).unsqueeze(1) if cached else None
            found = scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=options.get("scaling"),
                enable_gqa=bool(options.get("enable_gqa")),
            )
            output[start : start + new] = found.squeeze(0).transpose(0, 1)
            start += new
        return output

    TorchNativeAttnBackend._run_sdpa_forward_extend = run
