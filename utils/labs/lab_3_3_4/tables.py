"""The measurements of lab 3.3.4 in words and tables, computed from the runs handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

import pandas as pd

from utils.labs.lab_3_3_4.experiments import (
    KindAcceptance,
    TransformersBaseline,
    served_speed,
)
from utils.speculative.comparison import ServedSpeculation, SpeculationResult, same_share
from utils.speculative.dataset import UNLIKE
from utils.speculative.generate import Generation, acceptance_length
from utils.speculative.lossless import ChiSquare

Answers = Mapping[str, Sequence[Generation]]
SPEEDUP_TARGET, ACCEPTANCE_TARGET = 2.0, 2.5
SIGNIFICANT = 0.001  # below this p-value a distribution counts as another one
AGREE = 0.10  # of two acceptance lengths
GOOD_BASELINE = 0.9  # of what transformers reaches


def same_table(answers: Answers) -> pd.DataFrame:
    """One row per method: answers equal to plain decoding's, and how many forward passes they took."""
    plain = answers["plain"]
    rows = {}
    for name, mine in answers.items():
        steps = sum(len(g.accepted) for g in mine)
        rows[name] = {
            "prompts": len(mine),
            "same as plain": f"{same_share(plain, mine):.1%}",
            "tokens": sum(len(g.tokens) for g in mine),
            "verifications": steps,
            "acceptance length": round(acceptance_length(mine), 2),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def explain_same(answers: Answers, dtype: str) -> str:
    """Whether every answer of every method is plain decoding's, and where the first other one differs."""
    plain = answers["plain"]
    words = []
    for name, mine in answers.items():
        other = [
            i for i, (a, b) in enumerate(zip(plain, mine, strict=True)) if a.tokens != b.tokens
        ]
        if name == "plain":
            continue
        if not other:
            words.append(f"{name}: all {len(mine)} answers are plain decoding's, token for token.")
            continue
        a, b = plain[other[0]].tokens, mine[other[0]].tokens
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
        words.append(
            f"{name}: {len(other)} of {len(mine)} answers differ; the first (number {other[0] + 1}) from "
            f"token {at + 1} on. In {dtype} that is "
            + (
                "a fault: verification, mask or positions are wrong."
                if dtype == "float32"
                else "to be expected now and then: sums of other shapes are rounded otherwise."
            )
        )
    return "\n".join(words)


def chi_table(tests: Mapping[str, ChiSquare]) -> pd.DataFrame:
    """One row per rule: the statistic, and whether the distribution is still the target's."""
    rows = {
        name: {
            "draws": one.draws,
            "chi-square": round(one.statistic, 1),
            "degrees of freedom": one.degrees,
            "p-value": f"{one.p_value:.2g}",
            "the target's distribution": "yes" if one.p_value >= SIGNIFICANT else "NO",
        }
        for name, one in tests.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def explain_chi(tests: Mapping[str, ChiSquare], lossless: Sequence[str]) -> str:
    """Whether the rules that claim to be exact passed, and all others failed."""
    words = []
    for name, one in tests.items():
        passed = one.p_value >= SIGNIFICANT
        expected = passed == (name in lossless)
        verdict = "keeps the distribution" if passed else "changes the distribution"
        surprise = (
            ""
            if expected
            else " THIS IS NOT WHAT THEORY SAYS: run it again, then look for the fault."
        )
        words.append(f"{name}: {verdict} (p = {one.p_value:.2g}, {one.draws} draws).{surprise}")
    return "\n".join(words)


def explain_typical(p: Sequence[float], q: Sequence[float], counts: Sequence[int]) -> str:
    """Whose distribution typical acceptance gives: the target's p, or the drafter's q.

    The distance is total variation: half the sum of differences, 0 for the same and 1 for nothing in common.
    """
    total = sum(counts)
    drawn = [count / total for count in counts]
    to_p, to_q = (sum(abs(a - b) for a, b in zip(drawn, of, strict=True)) / 2 for of in (p, q))
    nearer = "the drafter's" if to_q < to_p else "the target's"
    return (
        f"What typical acceptance gives is {to_p:.2f} away from the target's p and {to_q:.2f} from the "
        f"drafter's q (total variation, 0 to 1): here it is nearer to {nearer}."
    )


def heads_table(accuracy: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """One row per set of heads: how often the best guess of each head is right."""
    return pd.DataFrame(
        {
            name: {f"head {k}": f"{share:.1%}" for k, share in enumerate(shares)}
            for name, shares in accuracy.items()
        }
    ).T


def explain_training(
    mine: Sequence[float], shipped: Sequence[float], answers: int, shipped_answers: int
) -> str:
    """A learner's heads beside the shipped ones."""
    first, other = mine[0], shipped[0]
    share = first / other if other else 0.0
    return (
        f"Head 0 guesses {first:.0%} right after {answers} answers of training data, the shipped one "
        f"{other:.0%} after {shipped_answers}: {share:.0%} of it for "
        f"{answers / max(1, shipped_answers):.1%} of the data. Same heads, same target: "
        + (
            "what is missing is data and steps."
            if first < other
            else "on these prompts more data would not have helped."
        )
    )


def kinds_table(kinds: Mapping[str, KindAcceptance]) -> pd.DataFrame:
    """One row per kind of text: acceptance of Medusa's chain by head, the control, and repeats."""
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


def explain_kinds(kinds: Mapping[str, KindAcceptance]) -> str:
    """Where the heads are good, whether they beat the control, and what unlike text does to them."""
    best = max(kinds, key=lambda name: kinds[name].medusa)
    worst = min(kinds, key=lambda name: kinds[name].medusa)
    behind = [name for name, kind in kinds.items() if kind.ngram >= kind.medusa]
    words = [
        f"Most is accepted in {best} ({kinds[best].medusa:.2f} tokens a step), least in {worst} "
        f"({kinds[worst].medusa:.2f})."
    ]
    words.append(
        f"N-gram lookup, free of charge, is as good or better in: {', '.join(behind)}."
        if behind
        else "Medusa is ahead of n-gram lookup in every kind of text."
    )
    if UNLIKE in kinds:
        trained = [kind.medusa for name, kind in kinds.items() if name != UNLIKE]
        if trained:
            drop = kinds[UNLIKE].medusa / (sum(trained) / len(trained))
            words.append(
                f"On {UNLIKE}, which the heads were not trained on, a step gives {drop:.0%} of the mean "
                "of the other kinds."
            )
    lost = sum(kind.asked - kind.loop_free for kind in kinds.values())
    words.append(f"{lost} prompts were left out because their plain answer goes round in circles.")
    return "\n".join(words)


def prediction_table(predicted: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """One row per tree: what goes into the prediction, and what comes out."""
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
    predicted: Mapping[str, Mapping[str, float]], outcomes: Mapping[str, SpeculationResult]
) -> pd.DataFrame:
    """One row per tree: acceptance and speed-up, predicted and measured."""
    rows = {}
    for name, row in predicted.items():
        one = outcomes[name]
        rows[name] = {
            "E predicted": round(row["tokens"], 2),
            "acceptance length measured": round(one.acceptance_length, 2),
            "speed-up predicted": round(row["speedup"], 2),
            "speed-up measured": round(one.speedup, 2),
            "difference": f"{one.speedup / row['speedup'] - 1:+.0%}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def explain_optimum(
    predicted: Mapping[str, Mapping[str, float]], outcomes: Mapping[str, SpeculationResult]
) -> str:
    """Which tree is the best one, predicted and measured, and what the largest one accepts."""
    names = list(predicted)
    said = max(names, key=lambda name: predicted[name]["speedup"])
    best = max(names, key=lambda name: outcomes[name].speedup)
    most = max(names, key=lambda name: outcomes[name].acceptance_length)
    words = [
        f"The model says {said}; measured, {best} is fastest: {outcomes[best].speedup:.2f} times plain "
        "decoding."
    ]
    if most != best:
        ratio = predicted[most]["step_s"] / predicted[most]["plain_s"]
        words.append(
            f"Most tokens a step come from {most} ({outcomes[most].acceptance_length:.2f}), but a forward "
            f"pass over its nodes costs {ratio:.2f} times one over a single token on this machine: more "
            "accepted tokens are not more speed."
        )
    for i, name in enumerate(names):
        for other in names[:i]:
            same = all(predicted[name][key] == predicted[other][key] for key in ("nodes", "tokens"))
            if same:
                words.append(
                    f"{other} and {name} are the same tree here: {outcomes[other].speedup:.2f} and "
                    f"{outcomes[name].speedup:.2f} times is what the noise of this machine makes of it."
                )
    return " ".join(words)


def speedup_series(
    predicted: Mapping[str, Mapping[str, float]], outcomes: Mapping[str, SpeculationResult]
) -> tuple[dict[str, int], dict[str, float], dict[str, list[float]], dict[str, float]]:
    """What `plots.plot_speedups` draws: nodes, predicted and measured speed-ups, tokens a step."""
    return (
        {name: int(row["nodes"]) for name, row in predicted.items()},
        {name: row["speedup"] for name, row in predicted.items()},
        {name: outcomes[name].speedups for name in predicted},
        {name: outcomes[name].acceptance_length for name in predicted},
    )


def explain_targets(
    best: SpeculationResult,
    ngram: SpeculationResult,
    costs: Mapping[int, float],
    nodes: int,
    dtype: str,
) -> str:
    """The course's targets beside what was measured; where one is missed, the arithmetic of why."""
    ratio = costs[nodes] / costs[1]
    words = [
        _target("speed-up", best.speedup, SPEEDUP_TARGET),
        _target("acceptance length", best.acceptance_length, ACCEPTANCE_TARGET),
        f"n-gram lookup on the same prompts: {ngram.speedup:.2f} times, {ngram.acceptance_length:.2f} tokens "
        f"a step. {best.name} is {'ahead' if best.speedup > ngram.speedup else 'NOT ahead'} in speed, "
        f"{'ahead' if best.acceptance_length > ngram.acceptance_length else 'NOT ahead'} in acceptance.",
        f"Repeated 8-grams in the answers: {best.repeated:.1%}.",
    ]
    if best.speedup < SPEEDUP_TARGET:
        words.append(_why(best, ratio, nodes, dtype))
    return "\n".join(words)


def _why(best: SpeculationResult, ratio: float, nodes: int, dtype: str) -> str:
    """The arithmetic of a speed-up below the target."""
    price = (
        f"Why: here, in {dtype}, verifying {nodes} nodes takes {ratio:.2f} times as long as one token "
        "(measured above)."
    )
    allowed, needed = best.acceptance_length / ratio, SPEEDUP_TARGET * ratio
    if allowed >= SPEEDUP_TARGET:
        return (
            f"{price} Alone that would allow {best.acceptance_length:.2f} / {ratio:.2f} = {allowed:.2f}; "
            f"drafting took {best.draft_share:.0%} of the decoding time, and masks, moving keys and values "
            "and walking the tree in Python took the rest."
        )
    cure = (
        "A processor that reads weights for many tokens as quickly as for one (a GPU, a CPU with bfloat16 "
        "instructions) has a smaller ratio."
        if ratio > 1.3
        else "The heads have to guess better, or the text has to be more predictable."
    )
    return (
        f"{price} Even with drafts for nothing, {SPEEDUP_TARGET} times would need {SPEEDUP_TARGET} x "
        f"{ratio:.2f} = {needed:.2f} accepted tokens a step, and {best.acceptance_length:.2f} came. {cure}"
    )


def _target(what: str, measured: float, target: float) -> str:
    verdict = "reached" if measured >= target else "MISSED"
    return f"{what}: {measured:.2f} (measured), target {target}: {verdict}."


def explain_baseline(baseline: TransformersBaseline) -> str:
    """How good the plain loop is that all speed-ups are counted against."""
    theirs, ours = median(baseline.theirs), median(baseline.ours)
    good = baseline.ratio >= GOOD_BASELINE
    return (
        f"transformers' generate: {theirs:.0f} tok/s; our plain loop: {ours:.0f} tok/s, "
        f"{baseline.ratio:.2f} of it (medians; the same prompts in turn, {baseline.threads} thread(s); "
        f"{baseline.same:.0%} of the answers the same). "
        + (
            "No speed-up here comes from a slow baseline."
            if good
            else "OUR BASELINE IS TOO SLOW: divide every speed-up above by what is missing."
        )
    )


def served_table(served: Mapping[str, Sequence[ServedSpeculation]]) -> pd.DataFrame:
    """One row per engine: decoding speed over the turns, and its own counters of speculation."""
    plain = [served_speed(one) for one in served.get("plain", [])]
    rows = {}
    for name, turns in served.items():
        speeds = [served_speed(one) for one in turns]
        ratios = [a / b for a, b in zip(speeds, plain, strict=False)]
        last = turns[-1]
        rows[name] = {
            "tok/s": round(median(speeds), 1),
            "speed-up": round(median(ratios), 2) if ratios else float("nan"),
            "least ... most": f"{min(ratios):.2f} ... {max(ratios):.2f}" if ratios else "",
            "drafts": int(last.drafts or 0),
            "accepted": int(last.accepted or 0),
            "1 + accepted/drafts": round(last.acceptance_length, 2),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def served_speedup(served: Mapping[str, Sequence[ServedSpeculation]], name: str) -> float:
    """Median over the turns of an engine's decoding speed over that of the plain engine."""
    pairs = zip(served[name], served["plain"], strict=True)
    return median(served_speed(a) / served_speed(b) for a, b in pairs)


def explain_served(
    served: Mapping[str, Sequence[ServedSpeculation]], ours: Sequence[Generation]
) -> str:
    """VLLM's counters beside our own verification, and whether speculation changed its answers."""
    words = []
    plain = served["plain"][-1].texts if "plain" in served else []
    for name, turns in served.items():
        if name == "plain":
            continue
        same = sum(a == b for a, b in zip(plain, turns[-1].texts, strict=True))
        words.append(
            f"{name}: {same} of {len(plain)} answers are plain vLLM's, character for character."
        )
    if "Medusa" in served:
        theirs, mine = served["Medusa"][-1].acceptance_length, acceptance_length(ours)
        off = theirs / mine - 1
        agree = "they agree within" if abs(off) <= AGREE else "they do NOT agree within"
        words.append(
            f"Acceptance length, chain of 4: {theirs:.3f} by vLLM's counters, {mine:.3f} by our own "
            f"verification of the same prompts, {off:+.1%}: {agree} {AGREE:.0%}. (vLLM also counts guesses "
            "accepted behind the end of an answer, which ours leaves out.)"
        )
    return "\n".join(words)


def explain_own_and_served(same: float, count: int, dtype: str) -> str:
    """Share of plain vLLM's answers that are ours too."""
    words = f"Our plain answers and vLLM's: {same:.0%} of {count} the same text."
    if same < 1:
        words += (
            f" Two implementations sum in another order, and in {dtype} two tokens that are nearly as "
            "probable may change places; from there on the answers differ."
        )
    return words
