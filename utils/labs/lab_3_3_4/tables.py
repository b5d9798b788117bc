"""Tables and guards of lab 3.3.4, computed from its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import pandas as pd

from utils.labs.lab_3_3_4.experiments import Baselines, KindAcceptance, served_speed
from utils.speculative.comparison import ServedSpeculation, SpeculationResult, same_share
from utils.speculative.generate import Generation, acceptance_length
from utils.speculative.lossless import ChiSquare

Answers = Mapping[str, Sequence[Generation]]
SPEEDUP_TARGET, ACCEPTANCE_TARGET = 2.0, 2.5
SIGNIFICANT = 0.001  # below this p-value a distribution counts as another one
GOOD_BASELINE = 0.8  # least share of the fastest program's speed that our plain loop must reach


def same_table(answers: Answers) -> pd.DataFrame:
    """Return a row per method: answers equal to plain decoding's, and forward passes that they took."""
    plain = answers["plain"]
    rows = {
        name: {
            "prompts": len(own),
            "same as plain": f"{same_share(plain, own):.1%}",
            "first difference": _first_difference(plain, own),
            "tokens": sum(len(g.tokens) for g in own),
            "verifications": sum(len(g.accepted) for g in own),
            "acceptance length": round(acceptance_length(own), 2),
        }
        for name, own in answers.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _first_difference(plain: Sequence[Generation], own: Sequence[Generation]) -> str:
    """Return the place where the first other answer departs from plain decoding's, or "none"."""
    for number, (a, b) in enumerate(zip(plain, own, strict=True), 1):
        if a.tokens != b.tokens:
            shared = zip(a.tokens, b.tokens, strict=False)
            end = min(len(a.tokens), len(b.tokens))
            token = next((i for i, (x, y) in enumerate(shared) if x != y), end)
            return f"answer {number}, token {token + 1}"
    return "none"


def chi_table(tests: Mapping[str, ChiSquare], lossless: Sequence[str]) -> pd.DataFrame:
    """Return a row per rule: the statistic, and whether the distribution is still the target's.

    Args:
        tests: Test of each rule.
        lossless: Rules that keep the target's distribution in theory.
    """
    rows = {
        name: {
            "draws": test.draws,
            "chi-square": round(test.statistic, 1),
            "degrees of freedom": test.degrees,
            "p-value": f"{test.p_value:.2g}",
            "the target's distribution": _yes(test.p_value >= SIGNIFICANT),
            "in theory": _yes(name in lossless),
        }
        for name, test in tests.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def warn_against_theory(tests: Mapping[str, ChiSquare], lossless: Sequence[str]) -> None:
    """Warn about rules whose test contradicts the theory."""
    for name, test in tests.items():
        if (test.p_value >= SIGNIFICANT) != (name in lossless):
            print(
                f"NOT WHAT THEORY SAYS: {name} (p = {test.p_value:.2g}). Run the cell again. If it happens "
                "again, look for the fault in the rule."
            )


def draws_table(
    p: Sequence[float], q: Sequence[float], counts: Mapping[str, Sequence[int]]
) -> pd.DataFrame:
    """Return a row per distribution: share of each token, and the distance to p and to q.

    The distance is total variation: half the sum of the absolute differences, 0 if two distributions are
    the same, 1 if they have nothing in common.
    """
    shares = {"the target's p": list(p), "the drafter's q": list(q)}
    for name, counted in counts.items():
        shares[name] = [count / sum(counted) for count in counted]
    rows = {
        name: {f"token {i}": round(share, 4) for i, share in enumerate(own)}
        | {
            "distance to p": round(_distance(own, p), 3),
            "distance to q": round(_distance(own, q), 3),
        }
        for name, own in shares.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def heads_table(
    accuracy: Mapping[str, Sequence[float]], trained_on: Mapping[str, int]
) -> pd.DataFrame:
    """Return a row per set of heads: answers in its training data, and how often each head is right.

    Args:
        accuracy: Share of right best guesses by head, for each set.
        trained_on: Number of answers that each set was trained on.
    """
    rows = {
        name: {
            "trained on (answers)": trained_on[name],
            **{f"head {k}": f"{share:.1%}" for k, share in enumerate(shares)},
        }
        for name, shares in accuracy.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def kinds_table(kinds: Mapping[str, KindAcceptance]) -> pd.DataFrame:
    """Return a row per kind of text: acceptance of Medusa's chain by head, the control, and repeats."""
    rows = {}
    for name, kind in kinds.items():
        heads = {f"head {k} accepted": f"{share:.0%}" for k, share in enumerate(kind.by_head)}
        rows[name] = {
            "prompts without loops": f"{kind.loop_free} of {kind.asked}",
            **heads,
            "Medusa, tokens a step": round(kind.medusa, 2),
            "n-gram, tokens a step": round(kind.ngram, 2),
            "repeated 8-grams": f"{kind.repeated:.1%}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def prediction_table(predicted: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Return a row per tree: the numbers that the prediction uses, and the predicted speed-up."""
    rows = {
        name: {
            "nodes": int(row["nodes"]),
            "E (tokens a step)": round(row["tokens"], 2),
            "T(n)/T(1)": round(row["step_s"] / row["plain_s"], 2),
            "draft/T(1)": round(row["draft_s"] / row["plain_s"], 3),
            "speed-up, predicted": round(row["speedup"], 2),
        }
        for name, row in predicted.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def measured_table(
    predicted: Mapping[str, Mapping[str, float]], results: Mapping[str, SpeculationResult]
) -> pd.DataFrame:
    """Return a row per tree: acceptance and speed-up, predicted and measured."""
    rows = {}
    for name, row in predicted.items():
        result = results[name]
        rows[name] = {
            "nodes": int(row["nodes"]),
            "T(n)/T(1)": round(row["step_s"] / row["plain_s"], 2),
            "E predicted": round(row["tokens"], 2),
            "acceptance length measured": round(result.acceptance_length, 2),
            "speed-up predicted": round(row["speedup"], 2),
            "speed-up measured": round(result.speedup, 2),
            "difference": f"{result.speedup / row['speedup'] - 1:+.0%}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def targets_table(best: SpeculationResult, ngram: SpeculationResult) -> pd.DataFrame:
    """Return a row per target of the course: the best tree, n-gram lookup, and whether it is reached."""
    rows = {
        "speed-up": (best.speedup, ngram.speedup, SPEEDUP_TARGET),
        "acceptance length": (best.acceptance_length, ngram.acceptance_length, ACCEPTANCE_TARGET),
    }
    return pd.DataFrame.from_dict(
        {
            name: {
                f"measured, {best.name}": round(own, 2),
                "measured, n-gram": round(control, 2),
                "target": target,
                "reached": _yes(own >= target),
                "ahead of n-gram": _yes(own > control),
            }
            for name, (own, control, target) in rows.items()
        },
        orient="index",
    )


def speedup_series(
    predicted: Mapping[str, Mapping[str, float]], results: Mapping[str, SpeculationResult]
) -> tuple[dict[str, int], dict[str, float], dict[str, list[float]], dict[str, float]]:
    """Return the arguments of `plots.plot_speedups`: nodes, both speed-ups, tokens a step."""
    return (
        {name: int(row["nodes"]) for name, row in predicted.items()},
        {name: row["speedup"] for name, row in predicted.items()},
        {name: results[name].speedups for name in predicted},
        {name: results[name].acceptance_length for name in predicted},
    )


def baseline_table(baselines: Baselines) -> pd.DataFrame:
    """Return a row per program: its speed, and the speed of our plain loop over it."""
    rows = {}
    for name, speeds in baselines.speeds.items():
        ratios = baselines.ratios(name)
        rows[name] = {
            "tok/s": round(median(speeds), 1),
            "ours / this": round(baselines.ratio(name), 2),
            "least ... most": f"{min(ratios):.2f} ... {max(ratios):.2f}",
            "same text as ours": f"{baselines.same[name]:.0%}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def warn_slow_baseline(baselines: Baselines) -> None:
    """Warn if plain decoding, against which all speed-ups are counted, is slower than another program's."""
    other = baselines.fastest_other
    if other and baselines.ratio(other) < GOOD_BASELINE:
        print(
            f"OUR BASELINE IS TOO SLOW: it reaches {baselines.ratio(other):.2f} of the speed of {other}. "
            "Multiply every speed-up above by this number."
        )


def identical_table(found: Mapping[str, Mapping[int, bool]]) -> pd.DataFrame:
    """Return a row per step: chains whose logits are bit for bit those of one token at a time."""
    rows = {
        name: {f"{n} tokens": _yes(same) for n, same in own.items()} for name, own in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def served_table(served: Mapping[str, Sequence[ServedSpeculation]]) -> pd.DataFrame:
    """Return a row per engine: decoding speed over the turns, its counters, and answers like plain's."""
    plain = [served_speed(turn) for turn in served.get("plain", [])]
    texts = served["plain"][-1].texts if plain else []
    rows = {}
    for name, turns in served.items():
        speeds = [served_speed(turn) for turn in turns]
        ratios = [a / b for a, b in zip(speeds, plain, strict=False)]
        last = turns[-1]
        same = sum(a == b for a, b in zip(texts, last.texts, strict=False))
        rows[name] = {
            "tok/s": round(median(speeds), 1),
            "speed-up": round(median(ratios), 2) if ratios else float("nan"),
            "least ... most": f"{min(ratios):.2f} ... {max(ratios):.2f}" if ratios else "",
            "drafts": int(last.drafts or 0),
            "accepted": int(last.accepted or 0),
            "1 + accepted/drafts": round(last.acceptance_length, 2),
            "same answers as plain": f"{same} of {len(texts)}" if texts else "",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def served_speedup(served: Mapping[str, Sequence[ServedSpeculation]], name: str) -> float:
    """Return the median over the turns of an engine's decoding speed over that of the plain engine."""
    pairs = zip(served[name], served["plain"], strict=True)
    return median(served_speed(a) / served_speed(b) for a, b in pairs)
