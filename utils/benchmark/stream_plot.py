"""Pictures that explain a metric rather than report a result."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from utils.benchmark.plot_style import BLUE, GREY
from utils.benchmark.trace import RequestTrace


def draw_stream(trace: RequestTrace) -> Figure:
    """Return one streamed request on a time axis: waiting for the first text, then a mark per chunk.

    Args:
        trace: A successful streamed request.

    Raises:
        ValueError: The request failed, or nothing was streamed; holds its error.
    """
    if trace.first_token is None or not trace.ok:
        raise ValueError(f"there is no stream to draw: {trace.error or 'no text arrived'}")
    ttft_ms = 1000 * trace.ttft()
    chunks_ms = [1000 * (at - trace.sent) for at in trace.chunk_times]
    figure, axes = plt.subplots(figsize=(9, 1.8), layout="constrained")
    axes.barh([0], [ttft_ms], height=0.5, color=GREY)
    axes.vlines(chunks_ms, -0.35, 0.35, color=BLUE, linewidth=1)
    axes.annotate("TTFT: prefill", (ttft_ms / 2, 0.3), ha="center", va="bottom")
    if len(chunks_ms) > 1:
        middle = (chunks_ms[0] + chunks_ms[-1]) / 2
        axes.annotate("decode: one mark per chunk", (middle, 0.4), ha="center", va="bottom")
    axes.set_ylim(-0.5, 0.8)
    axes.set_yticks([])
    axes.set_xlabel("milliseconds after sending")
    figure.set_label(
        f"A stream of {len(chunks_ms)} chunks: first text after {ttft_ms:.0f} ms, "
        f"last after {chunks_ms[-1]:.0f} ms."
    )
    return figure
