"""The decoder step in C++ (`step.cpp`), which is built on this machine at its first use."""

from utils.speculative.compiled_step.step import use_compiled_step

__all__ = ["use_compiled_step"]
