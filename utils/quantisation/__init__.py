"""Quantised weights and KV caches: their savings, their speed, and their cost in quality."""
