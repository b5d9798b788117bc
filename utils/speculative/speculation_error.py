"""Errors of speculative decoding, in words."""


class SpeculationError(ValueError):
    """Heads, trees or settings that do not fit; the message names them, and the next step."""
