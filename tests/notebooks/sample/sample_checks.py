"""Checks of the sample lab."""

from utils.checks import check, expect_close, expect_equal

EXAMPLE = [(10.2, ""), (10.5, "Hel"), (10.6, "lo")]


def ttft_of(scheduled, chunks):
    return next(at for at, text in chunks if text) - scheduled


@check(reference=ttft_of, limit_s=1.0)
def ttft(attempt):
    """Examines `ttft(scheduled, chunks)`."""
    expect_close(attempt(10.0, EXAMPLE), 0.5, what="TTFT of the example", hint="In seconds?")
    expect_close(attempt(0.0, [(1.25, "a")]), 1.25, what="TTFT of a single chunk")


@check(reference=12288)
def kv_bytes(answer):
    """Examines the number."""
    expect_equal(answer, 12288, what="bytes per token")
