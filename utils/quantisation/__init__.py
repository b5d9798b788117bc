"""Quantised weights and KV caches: what they save, how fast they are, and what they cost in quality."""
