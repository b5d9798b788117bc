"""Ahead-of-time compilation: a model exported, built into an engine file, and compared with eager."""
