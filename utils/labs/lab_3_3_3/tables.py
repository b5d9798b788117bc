"""Measurements of lab 3.3.3 in words. Every sentence is computed from the records handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from utils.benchmark.engine_run import Run
from utils.labs.lab_3_3_3.experiments import lag_at, latency_at, throughput_at


def beside(guess: float | None, derived: float, what: str, origin: str) -> str:
    """A learner's guess beside a figure that is not measured, with that figure's origin.

    Args:
        guess: What the learner said; None if nothing.
        derived: What came out.
        what: The quantity, with its unit.
        origin: ``derived`` or ``predicted``.
    """
    said = "you made no prediction" if guess is None else f"you said {guess:.3g}"
    return f"{what}: {derived:.3g} ({origin}); {said}."


def speedup(runs: Sequence[Run], base: int, top: int) -> float:
    """Throughput at level ``top`` over throughput at level ``base``, means over the repeats."""
    return throughput_at(runs, top).value / throughput_at(runs, base).value


def explain_speedup(runs: Sequence[Run], base: int, top: int) -> str:
    """Why the throughput grew as it did from one level to another.

    Splits the growth into what longer steps allow, ``(top / base) x TPOT(base) / TPOT(top)``, and
    what the wait for first tokens takes away again.
    """
    tpot = {level: latency_at(runs, level, "median_tpot_ms") for level in (base, top)}
    ttft = {level: latency_at(runs, level, "median_ttft_ms") for level in (base, top)}
    e2e = {level: latency_at(runs, level, "median_e2el_ms") for level in (base, top)}
    longer = tpot[top] / tpot[base]
    from_steps = top / base / longer
    reached = speedup(runs, base, top)
    return (
        f"With {base} in flight a token takes {tpot[base]:.2f} ms; with {top} it takes "
        f"{tpot[top]:.2f} ms, {longer:.2f} times as long, and each step gives {top} of them. "
        f"That alone would make {from_steps:.1f} times the throughput; measured: {reached:.1f} "
        f"times. A request waits for its first token {ttft[base]:.0f} ms of {e2e[base]:.0f} "
        f"({ttft[base] / e2e[base]:.0%}) with {base} in flight, and {ttft[top]:.0f} ms of "
        f"{e2e[top]:.0f} ({ttft[top] / e2e[top]:.0%}) with {top}: prefill of the others and the "
        "queue, which the simple prediction leaves out." + _busy(runs, base, top)
    )


def _busy(runs: Sequence[Run], *levels: int) -> str:
    worst = max(lag_at(runs, level) for level in levels)
    if worst < latency_at(runs, levels[0], "median_e2el_ms") / 10:
        return ""
    return (
        f" Beware: something else kept this machine busy. The client itself was late by up to "
        f"{worst:.0f} ms, so single latencies are uncertain by as much; medians suffer least."
    )


def explain_waves(continuous: Run, waves: Sequence[Run], predicted_gain: float) -> str:
    """Continuous batching against waves of the same requests, measured and predicted."""
    waves_s = sum(wave.result.duration for wave in waves)
    gain = waves_s / continuous.result.duration
    ends = [
        [trace.finished - wave.result.started for trace in wave.result.traces] for wave in waves
    ]
    idle = 1 - sum(sum(wave) for wave in ends) / sum(len(wave) * max(wave) for wave in ends)
    return (
        f"In waves the same {len(continuous.result.traces)} requests took {waves_s:.2f} s, "
        f"continuously {continuous.result.duration:.2f} s: {gain:.2f} times as fast; predicted: "
        f"{predicted_gain:.2f} times. In the waves {idle:.0%} of the places stood empty, waiting "
        "for the slowest of their wave."
    )


def explain_pressure(roomy: Run, others: Mapping[str, Run]) -> str:
    """What too small a cache cost, beside the same burst in a roomy one."""
    words = [f"With room for all: {roomy.throughput:.0f} tok/s, no request lost its cache."]
    if lost := roomy.series.increase("preemptions"):
        words = [f"Even with room, {lost:.0f} preemptions; {roomy.throughput:.0f} tok/s."]
    for name, run in others.items():
        lost, peak = run.series.increase("preemptions"), run.series.peak("kv_usage")
        counted = "not reported" if lost is None else f"{lost:.0f}"
        share = run.throughput / roomy.throughput
        used = "" if peak is None else f", KV cache at most {peak:.0%} in use"
        words.append(
            f"{name}: {counted} preemptions{used}; {run.throughput:.0f} tok/s, {share:.0%} of that."
        )
    return "\n".join(words)


def explain_modes(
    runs: Mapping[str, Sequence[Run]], start_seconds: Mapping[str, float], levels: Sequence[int]
) -> str:
    """Two ways of running the same engine: what one costs at the start and gives afterwards.

    Args:
        runs: Measured runs of exactly two modes, by name.
        start_seconds: Seconds from launch to healthy, by the same names.
        levels: Concurrency levels that both measured.
    """
    first, second = runs
    longer = start_seconds[second] - start_seconds[first]
    words = [
        f"{first}: ready after {start_seconds[first]:.0f} s; {second}: after "
        f"{start_seconds[second]:.0f} s."
    ]
    for level in levels:
        one, other = throughput_at(runs[first], level), throughput_at(runs[second], level)
        if one.overlaps(other):
            verdict = "the intervals overlap, so neither is called faster"
        else:
            faster = second if other.value > one.value else first
            factor = max(one.value, other.value) / min(one.value, other.value)
            verdict = f"{faster} is {factor:.2f} times as fast"
        words.append(f"{level} in flight: {first} {one}, {second} {other} tok/s: {verdict}.")
    gain = (
        throughput_at(runs[second], levels[-1]).value - throughput_at(runs[first], levels[-1]).value
    )
    if longer > 0 and gain > 0:
        tokens = longer * throughput_at(runs[first], levels[-1]).value
        seconds = longer + tokens / gain
        words.append(
            f"At {levels[-1]} in flight the longer start is made good {seconds:.0f} s after launch."
        )
    return "\n".join(words)
