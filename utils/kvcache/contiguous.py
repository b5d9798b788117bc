"""Contiguous KV memory: each request reserves one unbroken range for its longest possible output.

Serving systems before PagedAttention did it in this way, and the paper measures it in its
figures 2 and 3 (arXiv 2309.06180, section 3.1). A slot (room for one token) is then one of:

* **used**: holds the key and value of a token;
* **reserved**: will be used later by the request that holds it, by nobody else until then;
* **internal** fragmentation: reserved and never used, because the request ends before;
* **external** fragmentation: free, but in a gap too small for the next request;
* **free**: could be given out now.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Reservation = Literal["max", "pow2", "oracle"]


class OutOfSlots(RuntimeError):
    """No gap is long enough for the reservation."""


@dataclass(frozen=True)
class SlotUse:
    """Use of the slots of a KV cache at one moment; the five numbers add up to all slots."""

    used: int
    reserved: int
    internal: int
    external: int
    free: int

    @property
    def total(self) -> int:
        """All slots."""
        return self.used + self.reserved + self.internal + self.external + self.free

    @property
    def effective(self) -> float:
        """Share of the *occupied* memory that holds tokens, 0 to 1 (paper, figure 2)."""
        occupied = self.total - self.free
        return self.used / occupied if occupied else 1.0


@dataclass
class Region:
    """One request's range ``[start, start + length)`` in slots, with its real use."""

    start: int
    length: int
    used: int
    final: int


def reservation(prompt: int, output: int, max_length: int, rule: Reservation) -> int:
    """Slots reserved for a request (the three Orca variants of the paper's section 6.1).

    Args:
        prompt: Prompt tokens.
        output: Tokens it will really generate: only the oracle knows.
        max_length: The longest sequence the server admits.
        rule: ``max`` reserves the longest sequence, ``pow2`` the prompt and the next power of two
            above the output, ``oracle`` exactly the final length.

    Returns:
        Slots.

    Raises:
        ValueError: Unknown rule, or a request longer than ``max_length``.
    """
    if prompt + output > max_length:
        raise ValueError(f"{prompt} + {output} tokens exceed the longest sequence, {max_length}.")
    if rule == "max":
        return max_length
    if rule == "pow2":
        return min(prompt + (1 << max(output - 1, 0).bit_length()), max_length)
    if rule == "oracle":
        return prompt + output
    raise ValueError(
        f"Unknown reservation rule {rule!r}. Known: {', '.join(get_args(Reservation))}."
    )


class ContiguousPool:
    """First-fit allocation of unbroken ranges.

    Args:
        num_slots: Tokens that the memory holds.
    """

    def __init__(self, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"A pool needs slots, not {num_slots}.")
        self.num_slots = num_slots
        self.regions: dict[int, Region] = {}

    def gaps(self) -> list[tuple[int, int]]:
        """Free ranges as ``(start, length)``, in order of address."""
        gaps, end = [], 0
        for region in sorted(self.regions.values(), key=lambda region: region.start):
            if region.start > end:
                gaps.append((end, region.start - end))
            end = region.start + region.length
        if end < self.num_slots:
            gaps.append((end, self.num_slots - end))
        return gaps

    def allocate(self, request: int, length: int, used: int, final: int) -> Region:
        """Reserve the first gap that is long enough.

        Args:
            request: Its id.
            length: Slots to reserve.
            used: Slots used at once (the prompt).
            final: Slots used in the end, for the accounting.

        Raises:
            OutOfSlots: No gap is long enough.
            ValueError: The request has a range already, or would outgrow it.
        """
        if request in self.regions:
            raise ValueError(f"Request {request} has its range already.")
        if not used <= final <= length:
            raise ValueError(f"used {used} <= final {final} <= reserved {length} does not hold.")
        for start, gap in self.gaps():
            if gap >= length:
                self.regions[request] = Region(start, length, used, final)
                return self.regions[request]
        raise OutOfSlots(f"No gap of {length} slots.")

    def grow(self, request: int, tokens: int = 1) -> None:
        """Record tokens written to a request's range."""
        region = self.regions[request]
        if region.used + tokens > region.final:
            raise ValueError(f"Request {request} ends at {region.final} tokens.")
        region.used += tokens

    def release(self, request: int) -> None:
        """Free a request's range."""
        del self.regions[request]

    def slot_use(self, next_length: int) -> SlotUse:
        """Account for every slot.

        Args:
            next_length: Slots that the next waiting request would reserve: free gaps shorter than
                that are external fragmentation.
        """
        held = self.regions.values()
        gaps = [length for _, length in self.gaps()]
        external = sum(length for length in gaps if length < next_length)
        return SlotUse(
            used=sum(region.used for region in held),
            reserved=sum(region.final - region.used for region in held),
            internal=sum(region.length - region.final for region in held),
            external=external,
            free=sum(gaps) - external,
        )
