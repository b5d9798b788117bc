"""The measurements of lab 3.3.5 in words and tables, computed from the runs handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

import pandas as pd

from utils.labs.lab_3_3_5.experiments import Level
from utils.speculative.comparison import ServedSpeculation, SpeculationResult

TARGET_SPEEDUP = 2.5
TARGET_ACCEPTANCE = 3.0
AGREEMENT = 0.1
BROKEN = 0.5  # share of the accepted guesses below which an engine's sampling is not ours
STEEP = 0.1  # a fall of accuracy by this much from the first to the last step is worth a word


def explain_probe(accuracy: Mapping[str, float]) -> str:
    """Right guesses by what the linear map reads."""
    names = list(accuracy)
    lines = [f"{share:6.1%} right from {name} (measured)" for name, share in accuracy.items()]
    gain = 100 * (accuracy[names[-1]] - accuracy[names[0]])
    best = max(accuracy, key=lambda name: accuracy[name])
    lines.append(
        f"The three hidden states change {gain:+.0f} points over the token alone; best is {best}."
    )
    return "\n".join(lines)


def explain_ablation(accuracy: Mapping[str, Sequence[float]]) -> str:
    """Per draft: accuracy of the first and of the last guess, and what lies between."""
    words = []
    for name, shares in accuracy.items():
        fall = shares[0] - shares[-1]
        kind = "falls" if fall > STEEP else "stays about flat" if fall > -STEEP else "rises"
        each = ", ".join(f"{share:.0%}" for share in shares)
        words.append(f"{name}: {each} by guess (measured). It {kind}: {-100 * fall:+.0f} points.")
    return "\n".join(words)


def explain_targets(
    outcomes: Mapping[str, SpeculationResult],
    costs: Mapping[int, float],
    drafting: Mapping[str, float],
) -> str:
    """The course's targets beside what was measured, and why where one is missed.

    Args:
        outcomes: Of the comparison.
        costs: Seconds of a forward pass over n tokens, by n.
        drafting: Seconds of a draft, by method.
    """
    ours = {name: o for name, o in outcomes.items() if name.startswith("EAGLE-3")}
    best = max(ours, key=lambda name: ours[name].speedup)
    fastest, lookup = ours[best], outcomes["n-gram"]
    longest = max(ours, key=lambda name: ours[name].acceptance_length)
    length = ours[longest].acceptance_length
    rows = [
        ("speed-up", fastest.speedup, TARGET_SPEEDUP, best),
        ("acceptance length", length, TARGET_ACCEPTANCE, longest),
        ("speed-up over n-gram's", fastest.speedup / lookup.speedup, 1.0, best),
    ]
    words = [
        f"EAGLE-3, {what}: {value:.2f} ({name}, measured); the course's target is {wanted:g}: "
        + ("reached." if value >= wanted else "MISSED.")
        for what, value, wanted, name in rows
    ]
    if fastest.speedup < TARGET_SPEEDUP:
        words.append(_reason(best, fastest, costs, drafting[best]))
    if length < TARGET_ACCEPTANCE:
        words.append(
            f"  Acceptance: the best draft here is accepted {length - 1:.2f} guesses deep. Better data "
            "and longer training of the draft raise that; a faster machine does not."
        )
    if fastest.speedup < lookup.speedup:
        words.append(
            f"  n-gram lookup costs nothing, and {lookup.acceptance_length:.2f} tokens per verification "
            "is what these answers give it: they repeat their prompts."
        )
    return "\n".join(words)


def _reason(
    name: str, outcome: SpeculationResult, costs: Mapping[int, float], draft_s: float
) -> str:
    most = 1 + max(n for g in outcome.generations for n in g.drafted)
    verify = costs[min(costs, key=lambda n: abs(n - most))] / costs[1]
    draft = draft_s / costs[1]
    length = outcome.acceptance_length
    return (
        f"  Why: on this machine a verification of {most} tokens costs {verify:.2f} and a draft "
        f"{draft:.2f} plain steps (measured), so {length:.2f} tokens per verification give "
        f"{length:.2f} / ({verify:.2f} + {draft:.2f}) = {length / (verify + draft):.2f} (derived "
        f"from medians of each); with verification and drafts for free it would be {length:.2f}."
    )


def cost_table(
    outcomes: Mapping[str, SpeculationResult],
    costs: Mapping[int, float],
    drafting: Mapping[str, float],
) -> pd.DataFrame:
    """One row per method: what a cycle costs in plain steps, and what speed-up that explains."""
    rows = {}
    for name, outcome in outcomes.items():
        if name == "plain":
            continue
        drafted = [n for g in outcome.generations for n in g.drafted]
        verify = mean(_interpolated(costs, n + 1) for n in drafted) / costs[1]
        draft = drafting[name] / costs[1]
        length = outcome.acceptance_length
        rows[name] = {
            "tokens verified": round(1 + mean(drafted), 1),
            "verification / T(1)": round(verify, 2),
            "draft / T(1)": round(draft, 2),
            "acceptance length": round(length, 2),
            "derived speed-up": round(length / (verify + draft), 2),
            "measured": round(outcome.speedup, 2),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _interpolated(costs: Mapping[int, float], n: int) -> float:
    """Seconds of n tokens, on the line between the sizes that were measured."""
    below = max((size for size in costs if size <= n), default=min(costs))
    above = min((size for size in costs if size >= n), default=max(costs))
    if above == below:
        return costs[below]
    share = (n - below) / (above - below)
    return (1 - share) * costs[below] + share * costs[above]


def explain_same(same: Mapping[str, tuple[int, int]]) -> str:
    """Answers that are plain decoding's, token for token."""
    return "\n".join(
        f"{name}: {equal} of {count} answers are plain decoding's, token for token (measured, float32)"
        + ("." if equal == count else ": NOT LOSSLESS. That is an error.")
        for name, (equal, count) in same.items()
    )


def explain_agreement(ours: SpeculationResult, theirs: ServedSpeculation) -> str:
    """Acceptance in our own loop and by the engine's counters."""
    difference = theirs.acceptance_length / ours.acceptance_length - 1
    steps = sum(len(g.accepted) for g in ours.generations)
    guessed = sum(n - 1 for g in ours.generations for n in g.accepted)
    verdict = "within" if abs(difference) <= AGREEMENT else "MORE than"
    return (
        f"Our own chain of 3: {steps} drafts, {guessed} guesses accepted, acceptance length "
        f"{ours.acceptance_length:.3f}. vLLM's counters: {theirs.drafts:.0f} drafts, "
        f"{theirs.accepted:.0f} accepted, {theirs.acceptance_length:.3f}. They differ by "
        f"{difference:+.1%}, {verdict} {AGREEMENT:.0%} (measured)."
    )


def served_table(served: Mapping[str, ServedSpeculation], base: str = "plain") -> pd.DataFrame:
    """One row per way of serving: speed of one request at a time, acceptance, same answers."""
    plain = served[base]
    rows = {
        name: {
            "output tok/s": round(one.run.throughput, 1),
            "times plain": round(one.run.throughput / plain.run.throughput, 2),
            "acceptance length": round(one.acceptance_length, 2),
            "same answers as plain": f"{_same(plain.texts, one.texts)} of {len(one.texts)}",
        }
        for name, one in served.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _same(first: Sequence[str], second: Sequence[str]) -> int:
    return sum(a == b for a, b in zip(first, second, strict=True))


def explain_served(served: Mapping[str, ServedSpeculation], dtype: str, base: str = "plain") -> str:
    """Whether the engine's answers are plain's, and what explains a difference."""
    words = []
    for name, one in served.items():
        if name == base:
            continue
        equal, count = _same(served[base].texts, one.texts), len(one.texts)
        words.append(f"vLLM, {name}: {equal} of {count} answers equal plain vLLM's (measured).")
        if equal < count:
            words.append(
                f"  In {dtype} a product of several rows is rounded otherwise than that of one, and of "
                "two tokens of nearly the same probability the other may come first."
            )
    return "\n".join(words)


def ratios(
    found: Mapping[str, Sequence[Level]], temperature: float, name: str, base: str = "plain"
) -> dict[int, float]:
    """Throughput over plain's by requests in flight, at one temperature."""
    return {
        a.concurrency: mean(a.throughput) / mean(b.throughput)
        for a, b in zip(found[name], found[base], strict=True)
        if a.temperature == temperature
    }


def crossover_table(found: Mapping[str, Sequence[Level]], base: str = "plain") -> pd.DataFrame:
    """One row per temperature and level: throughput of each, their ratio, acceptance."""
    rows = []
    for name in (n for n in found if n != base):
        for a, b in zip(found[name], found[base], strict=True):
            rows.append(
                {
                    "temperature": a.temperature,
                    "in flight": a.concurrency,
                    f"{base}, tok/s": round(mean(b.throughput), 1),
                    f"{name}, tok/s": round(mean(a.throughput), 1),
                    "ratio": round(mean(a.throughput) / mean(b.throughput), 2),
                    "acceptance length": round(a.acceptance, 2),
                }
            )
    return pd.DataFrame(rows).set_index(["temperature", "in flight"])


def explain_crossover(found: Mapping[str, Sequence[Level]], name: str, base: str = "plain") -> str:
    """Where speculation stops paying, per temperature."""
    words = []
    for temperature in sorted({level.temperature for level in found[name]}):
        by_level = ratios(found, temperature, name, base)
        stops = [level for level, ratio in sorted(by_level.items()) if ratio < 1]
        accepted = mean(a.acceptance for a in found[name] if a.temperature == temperature)
        if not stops:
            where = f"{name} pays at every level up to {max(by_level)} in flight"
        elif stops[0] == min(by_level):
            where = f"{name} does not pay even with {stops[0]} in flight"
        else:
            where = f"{name} pays below {stops[0]} in flight, and no longer there"
        words.append(
            f"Temperature {temperature:g}: {where}; acceptance length {accepted:.2f} on average (measured)."
        )
    return "\n".join(words)


def explain_published(
    served: Mapping[str, ServedSpeculation], heads: str, base: str = "plain"
) -> str:
    """Published heads on the served model, beside what their model card reports."""
    words = []
    for name, one in served.items():
        if name == base:
            continue
        ratio = one.run.throughput / served[base].run.throughput
        words.append(
            f"{name}: {one.run.throughput:.0f} against {served[base].run.throughput:.0f} output tok/s, "
            f"{ratio:.2f} times plain, acceptance length {one.acceptance_length:.2f} (measured)."
        )
    words.append(
        f"The model card of {heads}: 187 to 365 tok/s, 1.95 times (SGLang, one H200; cited)."
    )
    return "\n".join(words)


def explain_temperature(accepted: Mapping[float, float]) -> str:
    """Acceptance length by temperature in our own loop."""
    each = ", ".join(f"{length:.2f} at {temperature:g}" for temperature, length in accepted.items())
    temperatures = list(accepted)
    fall = accepted[temperatures[0]] - accepted[temperatures[-1]]
    return (
        f"Our own loop, acceptance length of a chain of 3 by temperature: {each} (measured). From "
        f"{temperatures[0]:g} to {temperatures[-1]:g} it loses {fall:.2f}."
    )


def explain_sampling(ours: float, theirs: float) -> str:
    """Whether vLLM's acceptance at temperature 1 is what exact sampling gives.

    Args:
        ours: Acceptance length of our own loop.
        theirs: By vLLM's counters.
    """
    words = f"Temperature 1: vLLM's acceptance length is {theirs:.2f}, our own loop's {ours:.2f} (measured)."
    if theirs - 1 >= BROKEN * (ours - 1):
        return words
    return words + (
        " That is no effect of temperature. In vLLM 0.32.0's CPU build the temperatures of the drafted "
        "tokens are written into a copy that is thrown away (vllm/utils/cpu_triton_utils.py, "
        "_expand_kernel_impl, for numbers that are no integers), and the logits are divided by what "
        "happened to be in memory. So on a CPU do not sample with speculation there: the answers are not the "
        "target's. Throughput at temperature 1: not run here for that reason."
    )
