"""Measurements of speculation: our own loop with several drafters, and the same heads in vLLM."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

from utils import loopback
from utils.benchmark import Request
from utils.benchmark.engine_run import Run as EngineRun
from utils.benchmark.engine_run import measure
from utils.benchmark.host import describe_host, model_hash
from utils.benchmark.records import records_dir, save
from utils.engines import EngineError, RunningEngine
from utils.files import to_json
from utils.profiles import Profile
from utils.speculative.dataset import Prompt
from utils.speculative.drafters import Drafter, PlainDrafter
from utils.speculative.generate import Generation, GenerationRun, acceptance_length, generate
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Target
from utils.speculative.tree import chain
from utils.speculative.verify import Greedy, Rule
from utils.telemetry.snapshot import read_text, samples_by_name
from utils.tinymodel.evaluate import has_loop, repeats

PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
FOLDER = "speculative"  # of the records folder: these are no runs of an engine
DEFINITIONS = {
    "acceptance_length": "mean tokens per verification, the target's own included; 1 is plain decoding",
    "tokens_per_second": "tokens after the first of each answer over decoding time, batch 1; median",
    "speedup": "median over repeats of tokens per second over plain decoding's of the same repeat",
    "same": "share of answers equal to plain decoding's, token for token",
    "repeated_8grams": "share of the answers' 8-grams that occurred in them before",
}


@dataclass(frozen=True)
class SpeculationResult:
    """Result of one way of decoding a set of prompts.

    Attributes:
        name: Name of the method.
        generations: Answers of the last repeat.
        speeds: Decoding tokens per second, one per repeat.
        speedups: Speed over plain decoding's in the same repeat.
        same: Share of answers equal to plain decoding's.
        draft_share: Share of decoding time that drafting took.
    """

    name: str
    generations: list[Generation]
    speeds: list[float]
    speedups: list[float]
    same: float
    draft_share: float

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per verification."""
        return acceptance_length(self.generations)

    @property
    def speedup(self) -> float:
        """Median over the repeats."""
        return median(self.speedups)

    @property
    def repeated(self) -> float:
        """Repeated share of the answers' 8-grams, 0 to 1, each answer by itself."""
        return repeats([g.tokens for g in self.generations])


@dataclass
class MethodTally:
    """Sums of one method while a comparison runs.

    Attributes:
        drafter: Drafter of the method.
        speeds: Decoding tokens per second of each finished repeat.
        generations: Answers of the present repeat.
        seconds: Decoding time of the present repeat.
        tokens: Tokens decoded in the present repeat.
        total_seconds: Decoding time of all repeats.
        draft_seconds: Drafting time of all repeats.
    """

    drafter: Drafter
    speeds: list[float] = field(default_factory=list)
    generations: list[Generation] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    total_seconds: float = 0.0
    draft_seconds: float = 0.0

    def begin_repeat(self) -> None:
        """Forget the answers and the time of the repeat before."""
        self.generations, self.seconds, self.tokens = [], 0.0, 0

    def add(self, run: GenerationRun) -> None:
        """Count one answer."""
        self.generations += run.generations
        self.tokens += run.decoded
        self.seconds += run.decode_seconds
        self.total_seconds += run.decode_seconds
        self.draft_seconds += run.draft_seconds

    def end_repeat(self) -> None:
        """Keep the speed of the repeat.

        Raises:
            SpeculationError: Nothing was decoded.
        """
        if not self.tokens:
            raise SpeculationError(
                "Every answer ends with its first token, so nothing was decoded. Use other prompts."
            )
        self.speeds.append(self.tokens / self.seconds)

    def result(self, name: str, plain: MethodTally) -> SpeculationResult:
        """Return the result, compared with plain decoding."""
        return SpeculationResult(
            name,
            self.generations,
            self.speeds,
            [own / base for own, base in zip(self.speeds, plain.speeds, strict=True)],
            same_share(plain.generations, self.generations),
            self.draft_seconds / self.total_seconds,
        )


def compare(
    target: Target,
    drafters: Mapping[str, Drafter],
    prompts: Sequence[Sequence[int]],
    *,
    label: str,
    max_new_tokens: int = 128,
    repeats: int = 5,
    rule: Rule | None = None,
    profile: Profile | None = None,
) -> dict[str, SpeculationResult]:
    """Decode the same prompts with every drafter and plainly, one prompt at a time, in turn.

    Each prompt is answered by every method before the next one comes, so a slow moment of the machine meets
    all of them; which method begins changes with each prompt.

    Args:
        target: The model.
        drafters: By name; "plain" is added in front.
        prompts: Token ids.
        label: Label of the record that is written to records/speculative.
        max_new_tokens: Of each answer.
        repeats: Times that all of it is done.
        rule: Rule of acceptance; None is greedy.
        profile: Named in the record.

    Returns:
        Results by name, "plain" first.

    Raises:
        SpeculationError: Nothing to decode, so no speed.
    """
    if max_new_tokens < 2 or repeats < 1 or not prompts:
        raise SpeculationError(
            "A comparison needs a prompt, a repeat, and answers of 2 tokens or more: the first is prefill's."
        )
    tallies = {name: MethodTally(d) for name, d in {"plain": PlainDrafter(), **drafters}.items()}
    names = list(tallies)
    began = time.time()
    for tally in tallies.values():  # warm-up
        generate(target, prompts[:1], tally.drafter, max_new_tokens=8, rule=rule)
    for repeat in range(repeats):
        for tally in tallies.values():
            tally.begin_repeat()
        for i, prompt in enumerate(prompts):
            first = (i + repeat) % len(names)
            for name in names[first:] + names[:first]:
                drafter = tallies[name].drafter
                tallies[name].add(
                    generate(target, [prompt], drafter, max_new_tokens=max_new_tokens, rule=rule)
                )
        for tally in tallies.values():
            tally.end_repeat()
    results = {name: tally.result(name, tallies["plain"]) for name, tally in tallies.items()}
    _record(target, results, prompts, label, began, max_new_tokens, rule or Greedy(), profile)
    return results


def same_share(plain: Sequence[Generation], others: Sequence[Generation]) -> float:
    """Return the share of answers that are the same, token for token."""
    pairs = list(zip(plain, others, strict=True))
    return sum(a.tokens == b.tokens for a, b in pairs) / len(pairs)


def _record(
    target: Target,
    results: Mapping[str, SpeculationResult],
    prompts: Sequence[Sequence[int]],
    label: str,
    began: float,
    max_new_tokens: int,
    rule: Rule,
    profile: Profile | None,
) -> None:
    date = datetime.fromtimestamp(began, UTC)
    summary = {
        name: {
            "tokens_per_second": median(o.speeds),
            "speedup": o.speedup,
            "speedups": o.speedups,
            "acceptance_length": o.acceptance_length,
            "same": o.same,
            "repeated_8grams": o.repeated,
        }
        for name, o in results.items()
    }
    values = {
        "origin": "measured",
        "label": label,
        "software": f"utils.speculative, torch {torch.__version__}",
        "model": target.path,
        "model_sha256": model_hash(target.path),
        "dtype": str(target.dtype).removeprefix("torch."),
        "device": str(target.device),
        "profile": profile.name if profile else None,
        "host": describe_host(),
        "date": date.isoformat(),
        "prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "threads": torch.get_num_threads(),
        "rule": rule.name,
        "duration": time.time() - began,
        "summary": summary,
        "metric_definitions": DEFINITIONS,
    }
    name = f"{date:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}.json"
    save(records_dir() / FOLDER / name, to_json(values))


def result_table(results: Mapping[str, SpeculationResult]) -> pd.DataFrame:
    """Return a row per method: speed, acceptance, and the signs of a fair comparison."""
    rows = {
        name: {
            "tok/s": round(median(o.speeds), 1),
            "speed-up": round(o.speedup, 2),
            "least ... most": f"{min(o.speedups):.2f} ... {max(o.speedups):.2f}",
            "acceptance length": round(o.acceptance_length, 2),
            "time drafting": f"{o.draft_share:.0%}",
            "same as plain": f"{o.same:.0%}",
            "repeated 8-grams": f"{o.repeated:.1%}",
        }
        for name, o in results.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def in_batches(
    target: Target,
    drafter: Drafter,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    rule: Rule | None = None,
    batch: int = 16,
) -> list[Generation]:
    """Answer prompts in batches, and return the answers in the order of the prompts."""
    answers: list[Generation] = []
    for start in range(0, len(prompts), batch):
        ids = [p.ids for p in prompts[start : start + batch]]
        run = generate(target, ids, drafter, max_new_tokens=max_new_tokens, rule=rule)
        answers += run.generations
    return answers


def loop_free(
    target: Target, prompts: Sequence[Prompt], max_new_tokens: int, batch: int = 16
) -> list[Prompt]:
    """The prompts whose plain answer does not go round in circles: a loop is accepted by any drafter."""
    answers = in_batches(target, PlainDrafter(), prompts, max_new_tokens, batch=batch)
    return [p for p, g in zip(prompts, answers, strict=True) if not has_loop(g.tokens)]


@torch.inference_mode()
def step_costs(
    target: Target, sizes: Sequence[int], context: int = 128, repeats: int = 40
) -> dict[int, float]:
    """Seconds that one forward pass over n nodes takes, the sizes in turn, median of repeats.

    Args:
        target: The model.
        sizes: Nodes, the root included.
        context: Tokens in the KV cache.
        repeats: Repeats of each size.
    """
    cache = target.cache(1, context + max(sizes))
    target.aux_layers = ()
    taken: dict[int, list[float]] = {n: [] for n in sizes}
    for repeat in range(repeats + 3):
        for n in sizes:
            cache.lengths = [context]
            ids = torch.zeros(1, n, dtype=torch.int64, device=target.device)
            began = time.perf_counter()
            seen = target(ids, [chain(n - 1)], cache)
            target.logits(seen.hidden).argmax(-1).tolist()
            if repeat >= 3:
                taken[n].append(time.perf_counter() - began)
    return {n: median(values) for n, values in taken.items()}


def draft_cost(result: SpeculationResult) -> float:
    """Return the seconds that one draft took on average in a measured comparison."""
    steps = sum(len(g.accepted) for g in result.generations)
    tokens = sum(len(g.tokens) - 1 for g in result.generations)
    return result.draft_share * tokens / median(result.speeds) / max(1, steps)


@dataclass(frozen=True)
class ServedSpeculation:
    """Result of an engine with a set of prompts, and its counters of speculation.

    Attributes:
        run: The measured run.
        drafts: Drafts verified, by the engine's own counter; None without speculation.
        drafted: Tokens drafted.
        accepted: Drafted tokens accepted.
        by_position: Share of the drafts whose guess 1, 2, ... was accepted; empty without such a counter.
    """

    run: EngineRun
    drafts: float | None
    drafted: float | None
    accepted: float | None
    by_position: tuple[float, ...] = ()

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per verification by the engine's counters, its own token included."""
        return 1 + (self.accepted or 0) / self.drafts if self.drafts else 1.0

    @property
    def texts(self) -> list[str]:
        """The answers."""
        return [trace.text for trace in self.run.result.traces]


def speculation(method: str, tokens: int, heads: Path | str | None = None) -> dict[str, Any]:
    """Options of `launch("vllm", ...)` for speculative decoding.

    Args:
        method: "medusa", "eagle", "eagle3" or "ngram".
        tokens: Drafted at a time; for Medusa the number of heads (vLLM drafts chains, no trees).
        heads: Folder or hub id; None for n-gram lookup.
    """
    config: dict[str, Any] = {"method": method, "num_speculative_tokens": tokens}
    if method == "ngram":
        config |= {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
    elif heads is None:
        raise SpeculationError(f"{method} needs the folder of its heads, or their hub id.")
    else:
        config["model"] = str(heads)
    return {"extra_arguments": ("--speculative-config", json.dumps(config))}


def measure_served(
    engine: RunningEngine,
    profile: Profile,
    prompts: Sequence[Sequence[int]],
    label: str,
    *,
    concurrency: int = 1,
    max_tokens: int = 128,
    temperature: float = 0.0,
) -> ServedSpeculation:
    """Send prompts to a running engine, and read its counters of speculation before and after.

    Raises:
        EngineError: A request failed.
    """
    requests = [
        Request(prompt=tuple(p), max_tokens=max_tokens, temperature=temperature, seed=i)
        for i, p in enumerate(prompts)
    ]
    before = _accepted_by_position(engine)
    run = measure(engine, profile, requests, concurrency, label)
    failed = [trace.error for trace in run.result.traces if not trace.ok]
    if failed:
        raise EngineError(f"{len(failed)} requests failed, the first with: {failed[0]}")
    increase = run.series.increase
    drafts = increase("drafts")
    counted = [now - then for now, then in zip(_accepted_by_position(engine), before, strict=False)]
    return ServedSpeculation(
        run,
        drafts,
        increase("drafted_tokens"),
        increase("accepted_tokens"),
        tuple(count / drafts for count in counted) if drafts else (),
    )


def _accepted_by_position(engine: RunningEngine) -> list[float]:
    """Return vLLM's counter of accepted guesses by their number in the draft; empty for other engines."""
    if engine.spec.name != "vllm":
        return []
    with loopback.client(timeout=5.0) as client:
        text = read_text(engine, client)
    samples = samples_by_name(text, (PER_POSITION,)).get(PER_POSITION, [])
    found: dict[int, float] = {}
    for sample in samples:
        position = int(sample.labels["position"])
        found[position] = found.get(position, 0.0) + sample.value
    return [found[position] for position in sorted(found)]


def accepted_by_position(generations: Sequence[Generation], guesses: int) -> list[float]:
    """Return the share of verifications whose guess 1, 2, ... of a chain was accepted."""
    gained = [n for g in generations for n in g.accepted]
    return [sum(n > k + 1 for n in gained) / max(1, len(gained)) for k in range(guesses)]
