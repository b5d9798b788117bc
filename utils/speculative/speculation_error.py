"""What goes wrong in speculative decoding, said in words."""


class SpeculationError(ValueError):
    """Heads, trees or settings that do not fit; the message says which, and what to do."""
