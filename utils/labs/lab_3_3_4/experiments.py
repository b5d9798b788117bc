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
    in_batches,
    measure_served,
    speculation,
)
from utils.speculative.dataset import TRAINED, Prompt, load_tokenizer, prompts_of
from utils.speculative.drafters import Drafter, News, PlainDrafter
from utils.speculative.generate import Generation, acceptance_length, generate
from utils.speculative.target import Target
from utils.speculative.tree import DraftTree, chain
from utils.speculative.verify import Rule, Verdict
from utils.tinymodel.evaluate import has_loop, repeats

CHAIN = "Medusa, chain of 4"  # as the lab names it
SHIPPED_PROMPTS = train_config.ROUNDS * train_config.PROMPTS
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
    """The target's most probable next token behind each token of a text, from one forward pass."""
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
    """Puts a learner's mask and positions into a tree, in place of those it would compute itself."""
    parents = list(tree.parents)
    tree.mask = torch.tensor(mask(parents))
    tree.depths = torch.tensor(positions(parents, 0))
    return tree


@torch.inference_mode()
def tree_error(
    target: Target, text: Sequence[int], tree: DraftTree, tokens: Sequence[int]
) -> float:
    """What a tree's mask and positions change: logits of its nodes in one pass, and of each path by itself.

    Args:
        target: The model.
        text: Token ids that stand in front; its last one is the root.
        tree: Under test.
        tokens: Of its nodes.

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
    """Answers of plain decoding, by the course's own greedy rule, and of every drafter by `rule`."""
    found = {"plain": in_batches(target, PlainDrafter(), prompts, max_new_tokens)}
    for name, drafter in drafters.items():
        found[name] = in_batches(target, drafter, prompts, max_new_tokens, rule)
    return found


def accepted_by_head(answers: Sequence[Generation], heads: int) -> list[float]:
    """Share of the verifications of a chain in which the guess of head 0, 1, ... was accepted."""
    steps = [n for g in answers for n in g.accepted]
    return [sum(n > k + 1 for n in steps) / max(1, len(steps)) for k in range(heads)]


@dataclass(frozen=True)
class KindAcceptance:
    """What one kind of text makes of the drafters.

    Attributes:
        asked: Prompts.
        loop_free: Of them, those whose plain answer does not go round in circles; only they count.
        by_head: Share of verifications in which each head's guess was accepted, in a chain.
        medusa: Mean tokens per verification of the chain.
        ngram: Of n-gram lookup on the same prompts.
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
        prompts: Of several kinds.
        answers: To these prompts, by method: "plain", "n-gram" and `CHAIN` are looked at.
        heads: Of the chain.

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
            accepted_by_head(chain_, heads),
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
        prompts: Of several kinds.
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
    model = profile.models["vllm"]
    if model == str(MODELS / "tiny"):
        return prompts
    return prompts_of(load_tokenizer(model), max(1, len(prompts) // len(TRAINED)))


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
class TransformersBaseline:
    """Plain decoding by transformers beside our own, on the same prompts and threads.

    Attributes:
        transformers: Decoding tokens per second of transformers, one per repeat.
        ours: Of the own loop.
        same: Share of answers that are the same.
        threads: Of PyTorch.
    """

    transformers: list[float]
    ours: list[float]
    same: float
    threads: int

    @property
    def ratio(self) -> float:
        """Own loop over transformers, median of the repeats."""
        return median(a / b for a, b in zip(self.ours, self.transformers, strict=True))


@torch.inference_mode()
def transformers_baseline(
    target: Target, prompts: Sequence[Sequence[int]], max_new_tokens: int, repeats: int = 3
) -> TransformersBaseline:
    """Times transformers' `generate` and the own plain loop on the same prompts, in turn.

    Both decode greedily and one prompt at a time; counted are the tokens after the first of each answer, and
    the time from the first token on.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target.path, dtype=target.dtype)
    model.to(target.device).eval()
    transformers, ours, same = [], [], 0
    _with_transformers(model, prompts[0], 4)
    for _ in range(repeats):
        spent = {"transformers": [0, 0.0], "ours": [0, 0.0]}
        same = 0
        for prompt in prompts:
            tokens, seconds = _with_transformers(model, prompt, max_new_tokens)
            spent["transformers"][0] += len(tokens) - 1
            spent["transformers"][1] += seconds
            run = generate(target, [prompt], PlainDrafter(), max_new_tokens=max_new_tokens)
            spent["ours"][0] += run.decoded
            spent["ours"][1] += run.decode_seconds
            same += tokens == run.generations[0].tokens
        transformers.append(spent["transformers"][0] / spent["transformers"][1])
        ours.append(spent["ours"][0] / spent["ours"][1])
    return TransformersBaseline(transformers, ours, same / len(prompts), torch.get_num_threads())


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


def vllm_variants(profile: Profile, heads: int = 4) -> dict[str, dict[str, Any]]:
    """Options of the engines that serve the same prompts: plain, Medusa where it has heads, n-gram."""
    variants: dict[str, dict[str, Any]] = {"plain": {}}
    if "medusa_heads" in profile.models:
        variants["Medusa"] = speculation("medusa", heads, profile.models["medusa_heads"])
    return {**variants, "n-gram": speculation("ngram", heads)}


def serve(
    fleet: Fleet, profile: Profile, prompts: Sequence[Sequence[int]], limit: int, turns: int
) -> dict[str, list[ServedSpeculation]]:
    """The same prompts to every engine, one at a time, the engines in turn; a first turn is thrown away."""

    def ask(name: str, engine: RunningEngine, turn: int) -> ServedSpeculation:
        label = f"vLLM, {name}, warm-up" if turn == 0 else f"vLLM, {name}"
        asked = prompts[:2] if turn == 0 else prompts
        return measure_served(engine, profile, asked, label, max_tokens=limit)

    return {name: each[1:] for name, each in fleet.each(ask, turns=turns + 1).items()}


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
    """The method with the highest measured speed-up."""
    return max(names, key=lambda name: results[name].speedup)
