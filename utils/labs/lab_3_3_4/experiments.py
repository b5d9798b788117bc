"""Measured runs of lab 3.3.4, which its cells call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from utils.engines import RunningEngine
from utils.engines.fleet import Fleet
from utils.profiles import MODELS, Profile
from utils.speculative import train_config
from utils.speculative.comparison import (
    ServedSpeculation,
    SpeculationResult,
    accepted_by_position,
    in_batches,
    measure_served,
    speculation,
)
from utils.speculative.compiled_step.step import CompiledStep
from utils.speculative.dataset import TRAINED, Prompt, load_tokenizer, prompts_of
from utils.speculative.drafters import Drafter, News, PlainDrafter
from utils.speculative.generate import Generation, acceptance_length, generate
from utils.speculative.target import Target
from utils.speculative.tree import DraftTree, chain
from utils.speculative.verify import Rule, Verdict
from utils.tinymodel.evaluate import has_loop, repeats

CHAIN = "Medusa, chain of 4"  # as the lab names it
SHIPPED_PROMPTS = train_config.ROUNDS * train_config.PROMPTS
OURS, READABLE = "our plain loop", "the same in PyTorch"
LLAMA_CPP = "llama.cpp, 1 thread"
ENGINES = {LLAMA_CPP: LLAMA_CPP, "vLLM": "plain"}  # how the table calls a variant of the fleet
NO_MEDUSA = (
    "not run here: nobody has published Medusa heads for this profile's model, and heads fit one model only. "
    "vLLM is measured with n-gram lookup; lab 3.3.5 serves the published EAGLE-3 heads."
)


@torch.inference_mode()
def states_of(target: Target, tokens: Sequence[int]) -> Tensor:
    """Hidden states of a text, each after the tokens up to its own, without a KV cache: [n, hidden]."""
    ids = torch.tensor([list(tokens)], device=target.device)
    states: Tensor = target(ids, [chain(len(tokens) - 1)], target.cache(1, len(tokens))).hidden[0]
    return states


def best_next(target: Target, tokens: Sequence[int]) -> list[int]:
    """Return the target's most probable next token after each token of a text, from one forward pass."""
    best: list[int] = target.logits(states_of(target, tokens)).argmax(-1).tolist()
    return best


class OwnRule:
    """Greedy verification by a function that takes plain lists.

    Args:
        accept: (parents, tokens, the target's best next token at each node) to accepted nodes, root first.
    """

    name, lossless = "greedy, by the learner's function", True

    def __init__(self, accept: Callable[[list[int], list[int], list[int]], list[int]]) -> None:
        self.accept = accept

    def __call__(
        self, tree: DraftTree, tokens: Sequence[int], logits: Tensor, draft: Tensor | None = None
    ) -> Verdict:
        """See `verify.Rule`."""
        best = logits.argmax(-1).tolist()
        path = self.accept(list(tree.parents), list(tokens), best)
        return Verdict(path, best[path[-1]])


def own_tree(
    tree: DraftTree,
    mask: Callable[[list[int]], list[list[bool]]],
    positions: Callable[[list[int], int], list[int]],
) -> DraftTree:
    """Put a learner's mask and positions into a tree, in place of those it would compute itself."""
    parents = list(tree.parents)
    tree.mask = torch.tensor(mask(parents))
    tree.depths = torch.tensor(positions(parents, 0))
    return tree


@torch.inference_mode()
def tree_error(
    target: Target, text: Sequence[int], tree: DraftTree, tokens: Sequence[int]
) -> float:
    """Return the effect of mask and positions: logits of its nodes in one pass, and of each path by itself.

    Args:
        target: The model.
        text: Token ids in front of the tree; the last one is its root.
        tree: Tree under test.
        tokens: Tokens of its nodes.

    Returns:
        Largest difference between two logits.
    """
    before = list(text[:-1])
    cache = target.cache(1, len(text) + tree.size)
    target(torch.tensor([before], device=target.device), [chain(len(before) - 1)], cache)
    cache.lengths[0] = len(before)
    ids = torch.tensor([list(tokens)], device=target.device)
    together = target.logits(target(ids, [tree], cache).hidden[0])
    worst = 0.0
    for leaf in (node for node, below in enumerate(tree.children) if not below):
        path = tree.path(leaf)
        alone = states_of(target, [*before, *(tokens[node] for node in path)])[-len(path) :]
        worst = max(worst, float((together[path] - target.logits(alone)).abs().max()))
    return worst


def answer_all(
    target: Target,
    drafters: Mapping[str, Drafter],
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    rule: Rule | None = None,
) -> dict[str, list[Generation]]:
    """Return the answers of plain decoding, by the course's greedy rule, and of every drafter by `rule`."""
    found = {"plain": in_batches(target, PlainDrafter(), prompts, max_new_tokens)}
    for name, drafter in drafters.items():
        found[name] = in_batches(target, drafter, prompts, max_new_tokens, rule)
    return found


@dataclass(frozen=True)
class KindAcceptance:
    """Acceptance of the drafters on one kind of text.

    Attributes:
        asked: Prompts.
        loop_free: Those of them whose plain answer does not go round in circles; only they count.
        by_head: Share of verifications in which each head's guess was accepted, in a chain.
        medusa: Mean tokens per verification of the chain.
        ngram: Acceptance of n-gram lookup on the same prompts.
        repeated: Share of the answers' 8-grams that occurred in them before.
    """

    asked: int
    loop_free: int
    by_head: list[float]
    medusa: float
    ngram: float
    repeated: float


def by_kind(
    prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Generation]], heads: int = 4
) -> dict[str, KindAcceptance]:
    """Acceptance per head and per kind of text, with n-gram lookup as the control.

    Args:
        prompts: Prompts of several kinds.
        answers: To these prompts, by method: "plain", "n-gram" and `CHAIN` are looked at.
        heads: Heads of the chain.

    Returns:
        By kind; one of which every plain answer has a loop is left out.
    """
    found = {}
    for kind in dict.fromkeys(p.kind for p in prompts):
        here = [i for i, p in enumerate(prompts) if p.kind == kind]
        good = [i for i in here if not has_loop(answers["plain"][i].tokens)]
        if not good:
            continue
        chain_, ngram = ([answers[name][i] for i in good] for name in (CHAIN, "n-gram"))
        found[kind] = KindAcceptance(
            len(here),
            len(good),
            accepted_by_position(chain_, heads),
            acceptance_length(chain_),
            acceptance_length(ngram),
            repeats([g.tokens for g in chain_]),
        )
    return found


def fair_prompts(
    prompts: Sequence[Prompt], plain: Sequence[Generation], each: int, shortest: int = 8
) -> list[Prompt]:
    """Prompts to compare speeds on: of each kind the first few whose plain answer has no loop.

    Args:
        prompts: Prompts of several kinds.
        plain: Their plain answers.
        each: Prompts of each kind.
        shortest: Answers of fewer tokens are left out: there is little to measure in them.
    """
    chosen: dict[str, list[Prompt]] = {}
    for prompt, answer in zip(prompts, plain, strict=True):
        of_kind = chosen.setdefault(prompt.kind, [])
        good = len(answer.tokens) >= shortest and not has_loop(answer.tokens)
        if good and len(of_kind) < each:
            of_kind.append(prompt)
    return [prompt for several in chosen.values() for prompt in several]


def prompts_for_engine(profile: Profile, prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts if the engine serves the tiny model, else as many by its own model's tokenizer."""
    if serves_tiny_model(profile):
        return prompts
    return prompts_of(load_tokenizer(profile.models["vllm"]), max(1, len(prompts) // len(TRAINED)))


@torch.inference_mode()
def draft_seconds(target: Target, drafter: Drafter, repeats: int = 60) -> float:
    """Seconds that one draft takes, median; for drafters that need no more than one hidden state."""
    drafter.start(target, 1, 64)
    hidden = torch.zeros(1, target.shape.hidden, device=target.device, dtype=target.dtype)
    taken = []
    for repeat in range(repeats + 5):
        began = time.perf_counter()
        drafter.draft(0, News([1, 2, 3], hidden, None))
        if repeat >= 5:
            taken.append(time.perf_counter() - began)
    return median(taken)


@dataclass(frozen=True)
class Baselines:
    """Plain decoding by several programs on the same prompts, in alternation.

    Attributes:
        speeds: Decoding tokens per second by program, one number per repeat. `OURS` is the first.
        same: Share of answers that read like ours, by program.
    """

    speeds: dict[str, list[float]]
    same: dict[str, float]

    def ratios(self, name: str) -> list[float]:
        """Return our speed over a program's, one number per repeat."""
        return [a / b for a, b in zip(self.speeds[OURS], self.speeds[name], strict=True)]

    def ratio(self, name: str) -> float:
        """Return the median of the repeats."""
        return median(self.ratios(name))

    @property
    def fastest_other(self) -> str:
        """The program of somebody else that our loop has the lowest ratio to; "" without any."""
        others = [name for name in self.speeds if name not in (OURS, READABLE)]
        return min(others, key=self.ratio, default="")


def baselines(
    target: Target,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    profile: Profile,
    fleet: Fleet,
    tokenizer: Any,
    repeats: int = 3,
) -> Baselines:
    """Time plain decoding by our loop, by its readable twin, by transformers and by engines, in turn.

    All decode greedily and one prompt at a time. Counted are the tokens after the first of each answer, and
    the time from the first token on. Engines take part where they serve the same model.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target.path, dtype=target.dtype)
    model.to(target.device).eval()
    compiled = target.compiled

    def own(step: CompiledStep | None) -> Callable[[], tuple[float, list[str]]]:
        def work() -> tuple[float, list[str]]:
            target.compiled = step
            try:
                runs = [
                    generate(target, [p], PlainDrafter(), max_new_tokens=max_new_tokens)
                    for p in prompts
                ]
            finally:
                target.compiled = compiled
            texts = [_text(tokenizer, run.generations[0].tokens) for run in runs]
            return sum(r.decoded for r in runs) / sum(r.decode_seconds for r in runs), texts

        return work

    def transformers() -> tuple[float, list[str]]:
        answers = [_with_transformers(model, prompt, max_new_tokens) for prompt in prompts]
        tokens = sum(len(ids) - 1 for ids, _ in answers)
        speed = tokens / sum(seconds for _, seconds in answers)
        return speed, [_text(tokenizer, ids) for ids, _ in answers]

    def served(name: str) -> Callable[[], tuple[float, list[str]]]:
        def work() -> tuple[float, list[str]]:
            with fleet.one(name) as engine:
                label = f"plain decoding, {name}"
                run = measure_served(engine, profile, prompts, label, max_tokens=max_new_tokens)
            return served_speed(run), run.texts

        return work

    programs = {OURS: own(compiled)}
    if compiled:
        programs[READABLE] = own(None)
    programs["transformers"] = transformers
    if serves_tiny_model(profile):
        for name, variant in ENGINES.items():
            if fleet.has(variant):
                programs[name] = served(variant)
    _with_transformers(model, prompts[0], 4)
    found: dict[str, list[tuple[float, list[str]]]] = {name: [] for name in programs}
    for repeat in range(repeats):
        order = list(programs)
        for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
            found[name].append(programs[name]())
    ours = found[OURS][-1][1]
    return Baselines(
        {name: [speed for speed, _ in several] for name, several in found.items()},
        {
            name: sum(a == b for a, b in zip(ours, several[-1][1], strict=True)) / len(ours)
            for name, several in found.items()
        },
    )


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text


@torch.inference_mode()
def bit_identical(target: Target, ids: Sequence[int], lengths: Sequence[int]) -> dict[int, bool]:
    """Return, by length, whether a chain has exactly the logits that one token at a time has.

    Args:
        target: The model.
        ids: Text. Its first half is in the KV cache, and the chains begin after that.
        lengths: Tokens of the chains.
    """
    half = len(ids) // 2
    rest = torch.tensor([list(ids[half:])], device=target.device)
    cache = target.cache(1, len(ids))
    before = torch.tensor([list(ids[:half])], device=target.device)
    target(before, [chain(half - 1)], cache)
    single = []
    for i in range(max(lengths)):
        cache.lengths = [half + i]
        single.append(target.logits(target(rest[:, i : i + 1], [chain(0)], cache).hidden[0]))
    found = {}
    for n in lengths:
        cache.lengths = [half]
        together = target.logits(target(rest[:, :n], [chain(n - 1)], cache).hidden[0])
        found[n] = torch.equal(together, torch.cat(single[:n]))
    return found


def _with_transformers(model: Any, prompt: Sequence[int], limit: int) -> tuple[list[int], float]:
    """Answer, and seconds from its first token on."""
    times: list[float] = []

    def note(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    ids = torch.tensor([list(prompt)], device=model.device)
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=limit,
        do_sample=False,
        stopping_criteria=[note],
    )
    return out[0, len(prompt) :].tolist(), times[-1] - times[0]


def serves_tiny_model(profile: Profile) -> bool:
    """Return whether the profile's engines serve the model of this notebook."""
    return profile.models["vllm"] == str(MODELS / "tiny")


def engine_variants(profile: Profile, heads: int = 4) -> dict[str, dict[str, Any]]:
    """Return options of the engines: vLLM plain, with Medusa where it has heads, with n-gram; llama.cpp.

    llama.cpp gets one thread, like the loop of this notebook, and is left out where it serves another model.
    """
    variants: dict[str, dict[str, Any]] = {"plain": {}}
    if "medusa_heads" in profile.models:
        variants["Medusa"] = speculation("medusa", heads, profile.models["medusa_heads"])
    variants["n-gram"] = speculation("ngram", heads)
    if serves_tiny_model(profile):
        variants[LLAMA_CPP] = {"engine": "llama_cpp", "extra_arguments": ("--threads", "1")}
    return variants


def serve(
    fleet: Fleet, profile: Profile, prompts: Sequence[Sequence[int]], limit: int, turns: int
) -> dict[str, list[ServedSpeculation]]:
    """The same prompts to every engine, one at a time, the engines in turn; a first turn is thrown away."""

    def ask(name: str, engine: RunningEngine, turn: int) -> ServedSpeculation:
        label = f"vLLM, {name}, warm-up" if turn == 0 else f"vLLM, {name}"
        asked = prompts[:2] if turn == 0 else prompts
        return measure_served(engine, profile, asked, label, max_tokens=limit)

    names = [name for name in fleet.variants if name != LLAMA_CPP]
    return {name: each[1:] for name, each in fleet.each(ask, turns=turns + 1, only=names).items()}


def served_speed(served: ServedSpeculation) -> float:
    """Decoding tokens per second: those after the first of each answer, from the first on."""
    traces = served.run.result.traces
    tokens = sum(max(0, (t.completion_tokens or 0) - 1) for t in traces)
    seconds = sum((t.finished or 0.0) - (t.first_token or 0.0) for t in traces)
    return float(tokens / seconds) if seconds else 0.0


def same_texts(answers: Sequence[Generation], texts: Sequence[str], tokenizer: Any) -> float:
    """Share of our answers that read as the engine's do."""
    ours: list[str] = [tokenizer.decode(g.tokens, skip_special_tokens=True) for g in answers]
    return sum(a == b for a, b in zip(ours, texts, strict=True)) / len(texts)


def best_of(results: Mapping[str, SpeculationResult], names: Sequence[str]) -> str:
    """Return the method with the highest measured speed-up."""
    return max(names, key=lambda name: results[name].speedup)
