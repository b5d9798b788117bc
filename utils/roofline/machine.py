"""A machine's rates of reading memory and multiplying: measured (`rates`), or cited."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Read bandwidth over one working set.

    Attributes:
        working_set: Bytes that are read over and over.
        bytes_per_s: Best of several kernels and repeats.
        level: Which memory that is, as far as the system reports it ("L2", "L3", "memory").
    """

    working_set: int
    bytes_per_s: float
    level: str


@dataclass(frozen=True, slots=True)
class Machine:
    """The two numbers of a roofline, and where they come from.

    Attributes:
        name: Which machine.
        bandwidths: Read bandwidth by working set, smallest first; one entry if cited.
        flops: Dense matrix operations per second at `flops_dtype`.
        flops_dtype: "bfloat16" and the like.
        origin: "measured" or "cited".
        source: Method of the measurement, or the source of the figure.
    """

    name: str
    bandwidths: tuple[Bandwidth, ...]
    flops: float
    flops_dtype: str
    origin: Literal["measured", "cited"]
    source: str

    @property
    def bandwidth(self) -> float:
        """Read bandwidth of the largest measured working set, bytes/s."""
        return self.bandwidths[-1].bytes_per_s

    def __str__(self) -> str:
        lines = [f"{self.name} ({self.origin}: {self.source})"]
        for band in self.bandwidths:
            size = f"{band.working_set / MIB:,.0f} MiB in {band.level}"
            where = size if band.working_set else band.level
            lines.append(f"  read bandwidth, {where}: {band.bytes_per_s / 1e9:,.1f} GB/s")
        lines.append(f"  {self.flops_dtype} products: {self.flops / 1e12:,.2f} TFLOP/s")
        return "\n".join(lines)

    def bandwidth_for(self, working_set: float) -> Bandwidth:
        """Return the bandwidth that bounds reading this many bytes again and again.

        Takes the next *smaller* measured working set, which is at least as fast, so a bound
        that follows from it stays an upper bound.
        """
        below = [b for b in self.bandwidths if b.working_set <= working_set]
        return below[-1] if below else self.bandwidths[0]

    def flops_at(self, bits: float) -> float:
        """Operations per second with operands of fewer bits, at most twice as many per halving.

        Only for cited accelerators, whose units double that way. A measured rate is returned
        as it is, since a CPU widens quantised weights before it multiplies.
        """
        return self.flops if self.origin == "measured" else self.flops * 16 / min(bits, 16)
