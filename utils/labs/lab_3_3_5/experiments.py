"""Measured runs of lab 3.3.5, which its cells call."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from utils.engines import EngineError, RunningEngine, launch
from utils.engines.fleet import Fleet
from utils.engines.registry import get_spec
from utils.profiles import Profile
from utils.speculative.comparison import (
    ServedSpeculation,
    in_batches,
    loop_free,
    measure_served,
    speculation,
)
from utils.speculative.dataset import (
    TRAINED,
    UNLIKE,
    Prompt,
    Recorded,
    held_out,
    load_tokenizer,
    prompts_of,
    self_generated,
    training_prompts,
)
from utils.speculative.drafters import (
    Draft,
    Drafter,
    EagleDrafter,
    MedusaDrafter,
    News,
    NGramDrafter,
    PlainDrafter,
)
from utils.speculative.generate import Generation, generate
from utils.speculative.heads import Eagle3Draft, default_aux_layers
from utils.speculative.pretrained import Shipped, calibration
from utils.speculative.target import Seen, Target
from utils.speculative.training import LogLine, TrainingConfig, eagle_accuracy, train_eagle3
from utils.speculative.tree import best_choices, chain
from utils.speculative.verify import SpeculativeSampling

TREE = {"depth": 4, "width": 3, "nodes": 8}
CHAINS = (3, 4, 6)
ADAPTIVE, LONGEST, UNSURE = "EAGLE-3, adaptive chain", 6, 0.3
ROWS = 4  # sequences of a step of the ablation
FASTER = 1.6  # assumed of a method when time is planned
SHARE = 0.3  # of the profile's time, for the timed comparison
HESITATES = 0.6  # probability of a best guess where a tree is worth drawing
DRAFT_VOCAB = 512  # of the ablation: a small vocabulary for a small training


def drafters(shipped: Shipped) -> dict[str, Drafter]:
    """Every way of drafting that section 6 compares, by name; fresh objects."""
    choices = best_choices(calibration(), TREE["nodes"])
    return {
        "n-gram": NGramDrafter(),
        "Medusa, chain": MedusaDrafter(shipped.medusa),
        "Medusa, tree": MedusaDrafter(shipped.medusa, choices),
        "EAGLE-1, chain of 3": EagleDrafter(shipped.eagle1, 3),
        **{f"EAGLE-3, chain of {k}": EagleDrafter(shipped.eagle3, k) for k in CHAINS},
        ADAPTIVE: EagleDrafter(shipped.eagle3, LONGEST, threshold=UNSURE),
        "EAGLE-3, dynamic tree": EagleDrafter(shipped.eagle3, **TREE),
    }


def make_data(
    target: Target, tokenizer: Any, profile: Profile, aux_layers: tuple[int, ...]
) -> tuple[list[Recorded], list[Recorded]]:
    """The target's own answers for the small trainings: four fifths to learn from, one fifth to test on.

    The shorter half of twice as many prompts is answered: long ones cost most of the time.
    """
    sizes = profile.load.speculation
    drawn = training_prompts(tokenizer, 2 * sizes.training_prompts, seed=335)
    prompts = drawn[: sizes.training_prompts]
    data = self_generated(
        target,
        [p.ids for p in prompts],
        [p.answer for p in prompts],
        aux_layers,
        max_new_tokens=sizes.answer_tokens,
    )
    random.Random(335).shuffle(data)
    cut = len(data) // 5
    return data[cut:], data[:cut]


@torch.inference_mode()
def hidden_states(target: Target, ids: Sequence[int]) -> Tensor:
    """Return all hidden states of a text, [layers + 1, tokens, hidden], as float32 on the CPU."""
    target.aux_layers = tuple(range(target.shape.layers + 1))
    given = torch.tensor([list(ids)], device=target.device)
    seen: Seen = target(given, [chain(len(ids) - 1)], target.cache(1, len(ids)))
    assert seen.features is not None
    states: Tensor = seen.features[0].float().cpu().view(len(ids), -1, target.shape.hidden)
    return states.transpose(0, 1)


@dataclass(frozen=True)
class Trained:
    """A small draft, the log of its training, and its accuracy by step on answers held out from it."""

    eagle: Eagle3Draft
    log: list[LogLine]
    accuracy: list[float]


def train_small(
    target: Target,
    data: tuple[list[Recorded], list[Recorded]],
    profile: Profile,
    unrolled: int,
    looked_at: int,
) -> Trained:
    """Train a small EAGLE-3 draft.

    Args:
        target: Its target.
        data: To learn from, and to test on.
        profile: Gives the optimizer steps.
        unrolled: Steps of training-time test; 1 is without.
        looked_at: Steps of drafting on that are tested.
    """
    learn, test = data
    steps = profile.load.speculation.training_steps
    aux = default_aux_layers(target.shape.layers)
    config = TrainingConfig(steps=steps, rate=4e-3, rows=ROWS)
    eagle, log = train_eagle3(
        target, learn, aux, config, unrolled=unrolled, draft_vocab=DRAFT_VOCAB
    )
    return Trained(eagle, log, eagle_accuracy(target, eagle, test, looked_at))


@dataclass(frozen=True)
class Expansion:
    """A dynamic tree before its re-ranking.

    Attributes:
        parents: Parent of each node; -1 for the root, node 0.
        probabilities: Draft's probability of each node given its parent; 1 for the root.
        tokens: Token of each node.
        answer: Target's final text, from the root on.
    """

    parents: list[int]
    probabilities: list[float]
    tokens: list[int]
    answer: list[int]

    def accepted(self, kept: Sequence[int]) -> list[int]:
        """Kept nodes, root first, that say what the target wrote."""
        path = [0]
        for token in self.answer[1:]:
            found = [n for n in kept if self.parents[n] == path[-1] and self.tokens[n] == token]
            if not found:
                break
            path.append(found[0])
        return path


class _Keeping(EagleDrafter):
    """Keeps its first draft. It drafts in PyTorch, so that a hook sees the logits."""

    first: Draft | None = None

    def start(self, target: Target, rows: int, slots: int) -> None:
        super().start(target, rows, slots)
        self._compiled = None

    def draft(self, row: int, news: News) -> Draft:
        draft = super().draft(row, news)
        self.first = self.first or draft
        return draft


def expand(
    target: Target,
    eagle: Eagle3Draft,
    prompt: Sequence[int],
    depth: int,
    width: int,
    behind: Sequence[int] = range(1, 13),
) -> Expansion:
    """Return the expanded tree of one draft, at a place of an answer where the draft hesitates.

    Args:
        target: Model that answers.
        eagle: Its draft.
        prompt: Token ids.
        depth: Levels.
        width: Children tried of a node, and nodes expanded of a level.
        behind: Largest number of tokens of the answer before it; that one is taken where the probability of
            the best first guess is nearest to `HESITATES`.
    """
    limit = max(behind) + depth + 1
    answer = generate(target, [prompt], PlainDrafter(), max_new_tokens=limit).generations[0].tokens
    places = [n for n in behind if n < len(answer)] or [0]
    trees = [_expand_at(target, eagle, prompt, answer, n, depth, width) for n in places]
    return min(trees, key=lambda tree: abs(tree.probabilities[1] - HESITATES))


def _expand_at(
    target: Target,
    eagle: Eagle3Draft,
    prompt: Sequence[int],
    answer: list[int],
    skip: int,
    depth: int,
    width: int,
) -> Expansion:
    drafter = _Keeping(eagle, depth, width, nodes=width + (depth - 1) * width**2)
    levels: list[Tensor] = []
    hook = eagle.lm_head.register_forward_hook(lambda module, given, out: levels.append(out))
    try:
        start = [*prompt, *answer[:skip]]
        generate(target, [start], drafter, max_new_tokens=2, ignore_end=True)
    finally:
        hook.remove()
    draft = drafter.first
    assert draft is not None
    best = [torch.softmax(out.float(), -1).topk(width).values for out in levels[:depth]]
    probabilities = [1.0, *torch.cat([p.flatten() for p in best]).tolist()]
    after = answer[skip : skip + depth + 1]
    return Expansion(list(draft.tree.parents), probabilities, draft.tokens, after)


def held_out_prompts(
    target: Target, tokenizer: Any, profile: Profile
) -> tuple[list[Prompt], list[Prompt]]:
    """Held-out prompts whose answers do not loop: of the kinds known to the heads, and of prose.

    The tiny model's prose soon goes round in circles: twice as many are tried, and half as long answers.
    """
    sizes = profile.load.speculation
    known = [p for kind in TRAINED for p in held_out(tokenizer, kind, sizes.prompts, seed=5)]
    unlike = held_out(tokenizer, UNLIKE, 2 * sizes.prompts, seed=5)
    kept = loop_free(target, known, sizes.answer_tokens, batch=len(known))
    shorter = sizes.answer_tokens // 2
    return kept, loop_free(target, unlike, shorter, batch=len(unlike))[: sizes.prompts]


def fit_prompts(prompts: Sequence[Prompt], step_s: float, profile: Profile) -> list[list[int]]:
    """As many prompts as a comparison has time for here, the kinds in turn, two of each kind at least.

    A share of the profile's time for a notebook, over what a prompt takes: plain decoding and nine methods
    at an assumed `FASTER` times its speed, the repeats of the profile. The answers are not looked at.

    Args:
        prompts: Possible prompts, the kinds one after the other.
        step_s: Seconds of a plain step.
        profile: Gives time, repeats and lengths.
    """
    sizes = profile.load.speculation
    each = sizes.repeats * limit_of(profile) * step_s * (1 + 9 / FASTER)
    count = max(2 * len(TRAINED), int(SHARE * profile.time_budget_s / each))
    by_kind: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_kind.setdefault(prompt.kind, []).append(prompt)
    turns = [p.ids for row in zip_longest(*by_kind.values()) for p in row if p is not None]
    return turns[:count]


def limit_of(profile: Profile) -> int:
    """Longest answer of the timed comparisons, tokens."""
    return 2 * profile.load.speculation.answer_tokens // 3


def by_temperature(
    target: Target,
    eagle: Eagle3Draft,
    prompts: Sequence[Sequence[int]],
    profile: Profile,
    temperatures: Sequence[float] = (0.0, 0.5, 1.0, 1.5),
) -> dict[float, float]:
    """Acceptance length of a chain of 3 in our own loop, exact at every temperature, by temperature."""
    found = {}
    for temperature in temperatures:
        generator = torch.Generator(target.device).manual_seed(335)
        rule = SpeculativeSampling(temperature, generator) if temperature else None
        run = generate(
            target, prompts, EagleDrafter(eagle, 3), max_new_tokens=limit_of(profile), rule=rule
        )
        found[temperature] = run.acceptance_length
    return found


def check_same(
    target: Target,
    methods: Mapping[str, Drafter],
    tokenizer: Any,
    profile: Profile,
    batch: int = 16,
) -> dict[str, tuple[int, int]]:
    """Count the held-out answers that are plain decoding's, token for token, in batches.

    Args:
        target: In float32, where the result does not depend on how many rows are computed together.
        methods: Drafters by name.
        tokenizer: The target's.
        profile: Gives how many prompts.
        batch: Prompts answered together.

    Returns:
        Same answers and all answers, by name.
    """
    sizes = profile.load.speculation
    each = -(-sizes.same // len(TRAINED))
    prompts = prompts_of(tokenizer, each, seed=6)[: sizes.same]
    limit = sizes.answer_tokens // 3
    wanted = in_batches(target, PlainDrafter(), prompts, limit, batch=batch)
    found = {}
    for name, drafter in methods.items():
        answers = in_batches(target, drafter, prompts, limit, batch=batch)
        same = sum(a.tokens == b.tokens for a, b in zip(wanted, answers, strict=True))
        found[name] = (same, len(prompts))
    return found


def acceptance_rate(generations: Sequence[Generation]) -> float:
    """Share of the guesses that were looked at which were right, 0 to 1.

    The rest of a chain after its first wrong guess is not looked at: a verification that accepted j of k
    guesses looked at min(j + 1, k). The last verification of each answer is left out: the answer's end cuts
    it off, and the guesses after the cut were not found wrong.
    """
    correct = looked_at = 0
    for g in generations:
        for gained, drafted in list(zip(g.accepted, g.drafted, strict=True))[:-1]:
            correct += gained - 1
            looked_at += min(gained, drafted)
    return correct / max(1, looked_at)


@dataclass(frozen=True)
class Level:
    """One point of the crossover.

    Attributes:
        concurrency: Requests in flight.
        temperature: Temperature of sampling.
        throughput: Output tokens per second, one number per turn.
        acceptance: Mean tokens per verification, of the last turn; 1 without speculation.
    """

    concurrency: int
    temperature: float
    throughput: tuple[float, ...]
    acceptance: float


def crossover(
    fleet: Fleet,
    profile: Profile,
    tokenizer: Any,
    names: Sequence[str],
    temperatures: Sequence[float] = (0.0, 1.0),
) -> dict[str, list[Level]]:
    """Throughput against requests in flight and temperature, the engines in turn.

    Returns:
        Points by engine, in the same order for each.
    """
    load = profile.load
    highest = max(load.requests_at(level) for level in load.levels)
    kinds = [held_out(tokenizer, kind, -(-highest // len(TRAINED)), seed=8) for kind in TRAINED]
    prompts = [p.ids for row in zip(*kinds, strict=False) for p in row]
    turns = min(2, load.repeats)

    def work(
        name: str, engine: RunningEngine, turn: int
    ) -> list[tuple[int, float, ServedSpeculation]]:
        found = []
        for temperature in temperatures:
            for level in load.levels:
                asked = [prompts[i % len(prompts)] for i in range(load.requests_at(level))]
                label = f"{name}, temperature {temperature:g}"
                served = measure_served(
                    engine,
                    profile,
                    asked,
                    label,
                    concurrency=level,
                    max_tokens=load.output_tokens,
                    temperature=temperature,
                )
                found.append((level, temperature, served))
        return found

    return {
        name: [
            Level(
                points[0][0],
                points[0][1],
                tuple(served.run.throughput for _, _, served in points),
                points[-1][2].acceptance_length,
            )
            for points in zip(*several, strict=True)
        ]
        for name, several in fleet.each(work, turns=turns, only=names).items()
    }


def served_prompts(tokenizer: Any, profile: Profile) -> list[list[int]]:
    """Held-out prompts in another model's tokens; whether its answers loop is not looked at."""
    count = profile.load.speculation.prompts
    return [p.ids for kind in TRAINED for p in held_out(tokenizer, kind, count, seed=5)]


NO_HEADS = "not run here: no EAGLE-3 heads are public for the model of this profile"


def vllm_variants(profile: Profile) -> dict[str, dict[str, Any]]:
    """Return the options of `launch("vllm", ...)` by name. EAGLE-3 is left out if the model has no heads."""
    variants: dict[str, dict[str, Any]] = {"plain": {}}
    if heads := profile.models.get("eagle3_heads"):
        variants["EAGLE-3"] = speculation("eagle3", 3, heads)
    else:
        print(f"EAGLE-3 in vLLM: {NO_HEADS} ({profile.models['vllm']}).")
    return variants | {"n-gram": speculation("ngram", 3)}


def sglang_options(profile: Profile, guesses: int = 3) -> dict[str, Any]:
    """Options of `launch("sglang", ...)` for EAGLE-3 with a chain of guesses."""
    return {
        "extra_arguments": (
            *("--speculative-algorithm", "EAGLE3"),
            *("--speculative-draft-model-path", profile.models["eagle3_heads"]),
            *("--speculative-num-steps", str(guesses)),
            *("--speculative-eagle-topk", "1"),
            *("--speculative-num-draft-tokens", str(guesses + 1)),
        ),
    }


def try_sglang(profile: Profile) -> str:
    """Return whether SGLang drafts with EAGLE-3 here, in words.

    In containers it is started. As a local process it has no kernels of its own (tools/setup/sglang_cpu): the
    one that builds a tree is called in its environment, and reports that.
    """
    if "eagle3_heads" not in profile.models:
        return f"SGLang with EAGLE-3: {NO_HEADS} ({profile.models['sglang']})."
    if profile.device == "cuda":
        try:
            with launch("sglang", profile, quiet=True, **sglang_options(profile)) as engine:
                prompts = served_prompts(load_tokenizer(profile.models["vllm"]), profile)
                served = measure_served(engine, profile, prompts, "SGLang, EAGLE-3")
                return f"SGLang with EAGLE-3: {served.run.throughput:.0f} output tok/s (measured)."
        except EngineError as error:
            return str(error)
    local = get_spec("sglang").local
    if local is None or not local.needs.exists():
        return "SGLang: not run here, it is not set up on this machine."
    kernel = "build_tree_kernel_efficient_cpu"
    called = subprocess.run(
        [local.command[0], "-c", f"import sgl_kernel; sgl_kernel.{kernel}()"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    errors = called.stderr.strip().splitlines()
    return "SGLang with EAGLE-3: not run here. " + (errors[-1] if errors else f"{kernel} is there.")
