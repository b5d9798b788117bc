"""The mechanisms of lab 3.3.3: sizes of a KV cache, blocks, fragmentation, schedulers."""
