"""`make progress`: the course's seven milestones, from the learner's own notebooks and records."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.lab.labs import count
from tools.lab.self_check import evaluate
from utils.benchmark.record import Record
from utils.benchmark.records import RecordWarning, load_all, records_dir
from utils.profiles import load_profile

Evidence = Callable[[Sequence[Record]], str]
_SIGNS = {"done": "✔", "begun": "◐", "open": "○", "to come": "·"}


@dataclass(frozen=True)
class Milestone:
    """One of the course's milestones.

    Attributes:
        title: what a learner has at the end of it.
        lab: number of the lab that leads there.
        evidence: describes what the learner has measured for it, or "" while that is missing.
        missing: what is missing then.
    """

    title: str
    lab: str
    evidence: Evidence
    missing: str


@dataclass(frozen=True)
class Standing:
    """State of a learner at one milestone: `state` is "done", "begun", "open" or "to come"."""

    milestone: Milestone
    state: str
    exercises: str
    measured: str
    to_do: tuple[str, ...] = ()


def _report(records: Sequence[Record]) -> str:
    engines = {record.engine for record in records}
    if len(engines) < 2 or not (records_dir() / "report.html").is_file():
        return ""
    return f"report.html, {count(len(records), 'run')} of {len(engines)} engines"


def _runs(of: Callable[[Record], bool]) -> Evidence:
    def evidence(records: Sequence[Record]) -> str:
        found = sum(map(of, records))
        return count(found, "run") if found else ""

    return evidence


def _levels(records: Sequence[Record]) -> str:
    levels = {record.load.get("concurrency") for record in records if record.engine == "vllm"} - {
        None
    }
    return f"vLLM at {len(levels)} levels of concurrency" if len(levels) > 1 else ""


def _tensorrt_llm(records: Sequence[Record]) -> str:
    """Return the runs of TensorRT-LLM, or the lab's runs of other engines if this machine can't run it."""
    if found := sum(record.engine == "tensorrt_llm" for record in records):
        return count(found, "run")
    others = sum(record.label.startswith("lab 3.3.6") for record in records)
    if not others or load_profile().runtime == "docker":
        return ""
    return f"{count(others, 'run')} of other engines; TensorRT-LLM is not run here"


def _speculates(method: str) -> Evidence:
    return _runs(lambda record: method in " ".join(record.command).lower())


MILESTONES = (
    Milestone("benchmark report", "3.3.1", _report, "a report of two engines or more"),
    Milestone(
        "SGLang with RadixAttention",
        "3.3.2",
        _runs(lambda record: record.engine == "sglang" and "shared prefix" in record.label),
        "a run of SGLang with a shared prefix",
    ),
    Milestone(
        "vLLM continuous batching", "3.3.3", _levels, "runs of vLLM at two levels of concurrency"
    ),
    Milestone("Medusa speed-up", "3.3.4", _speculates("medusa"), "a run with Medusa heads"),
    Milestone("EAGLE-3 comparison", "3.3.5", _speculates("eagle3"), "a run with EAGLE-3"),
    Milestone(
        "TensorRT-LLM",
        "3.3.6",
        _tensorrt_llm,
        "a run of TensorRT-LLM, or without an NVIDIA GPU the lab's other engines",
    ),
    Milestone(
        "production API",
        "3.3.7",
        _runs(lambda record: record.engine == "gateway"),
        "a run against your API",
    ),
)


def standings(root: Path) -> Iterator[Standing]:
    """Return the state of the learner in this folder, milestone by milestone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RecordWarning)
        records = load_all()
    for milestone in MILESTONES:
        yield _standing(root, milestone, records)


def _standing(root: Path, milestone: Milestone, records: Sequence[Record]) -> Standing:
    paths = (root / "labs").glob(f"lab-{milestone.lab}-*.ipynb")
    path = min(paths, key=lambda path: len(path.name), default=None)  # not one of its copies
    measured = milestone.evidence(records)
    if path is None:
        return Standing(milestone, "to come", "", measured)
    try:
        found = evaluate(path.read_bytes())
    except (OSError, ValueError, RuntimeError) as error:
        return Standing(milestone, "open", "not judged", measured, (f"{path.name}: {error}",))
    results = found.judgement.exercises
    right = sum(result.verdict == "right" for result in results)
    exercises = f"{right} of {count(len(results), 'exercise')}"
    to_do = [f"{r.id}: {r.message}" for r in results if r.verdict not in ("right", "not attempted")]
    to_do += [note.learner for note in found.judgement.notes if note.learner]
    to_do += [f"{id_}: nothing is written yet" for id_ in found.unwritten]
    if right == len(results) and measured:
        return Standing(milestone, "done", exercises, measured, tuple(to_do))
    state = "begun" if found.begun or measured else "open"
    return Standing(milestone, state, exercises, measured, tuple(to_do) if found.begun else ())


def print_progress(root: Path) -> int:
    """Print the milestones, and the missing work of those that are begun."""
    print(f"{'milestone':<30} {'lab':<6} {'right':<18} measured by you")
    done = 0
    for standing in standings(root):
        milestone = standing.milestone
        if standing.state == "to come":
            facts = f"{'to come':<18} {standing.measured}"
        else:
            measured = standing.measured or f"missing: {milestone.missing}"
            facts = f"{standing.exercises:<18} {measured}"
        sign = _SIGNS[standing.state]
        print(f"{sign} {milestone.title:<28} {milestone.lab:<6} {facts}".rstrip(), flush=True)
        for line in standing.to_do:
            text = " ".join(line.split())
            print(f"      {text[:160]}{'...' if len(text) > 160 else ''}", flush=True)
        done += standing.state == "done"
    print(f"\n{done} of {len(MILESTONES)} milestones done. Your records are in {records_dir()}.")
    return 0
