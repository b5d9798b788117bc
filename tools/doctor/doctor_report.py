"""The doctor's page: the machine in a line, a verdict for each lab, things to fix, and notes."""

from __future__ import annotations

import textwrap
from collections import Counter

from tools.doctor.diagnoses import BLOCKER, FIXABLE, INFO, OK, Diagnosis, stopped
from tools.doctor.facts import Machine
from tools.doctor.needs import GB, IMAGES, LABS, TITLES
from utils.fleet_plan import LabPlan, lab_plan
from utils.profiles import PROFILES

WIDTH = 96
GIB = 1024**3
HEADINGS = {
    BLOCKER: "What keeps labs from running",
    FIXABLE: "What `make lab` sets up",
    INFO: "Worth knowing",
}


def render(machine: Machine, diagnoses: tuple[Diagnosis, ...]) -> str:
    """Write the page."""
    parts = [head(machine), verdicts(machine, diagnoses)]
    for level, heading in HEADINGS.items():
        if subset := [diagnosis for diagnosis in diagnoses if diagnosis.level == level]:
            parts.append("\n".join([heading, *(show(diagnosis) for diagnosis in subset)]))
    fine = [diagnosis for diagnosis in diagnoses if diagnosis.level == OK]
    parts.append("\n".join(["In order", *(show(diagnosis) for diagnosis in fine)]))
    parts.append(last_word(diagnoses))
    return "\n\n".join(parts)


def head(machine: Machine) -> str:
    """Write the machine and its profile."""
    gpus = machine.gpu.name or "no NVIDIA GPU in use"
    where = "WSL, " if machine.wsl else ""
    memory = f"{machine.memory.total / GIB:.0f} GiB"
    lines = [
        f"{where}{machine.system} {machine.machine}, {machine.cores} cores, {memory} of memory, {gpus}",
        f"Profile {machine.profile}: {PROFILES[machine.profile].description}",
    ]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, WIDTH))


def verdicts(machine: Machine, diagnoses: tuple[Diagnosis, ...]) -> str:
    """Write a line for each lab."""
    off = stopped(diagnoses)
    lines = []
    for number, lab in LABS.items():
        reasons = sorted({f.topic for f in diagnoses if number in f.labs})
        without = [name for name in (*lab.engines, *lab.optional) if not offered(machine, name)]
        if number in off:
            verdict = f"cannot run: {', '.join(reasons)}"
        else:
            verdict = "runs in part" if set(without) & set(lab.engines) else "can run"
            verdict += ", after set-up" if machine.due else ""
            verdict += f"; without {', '.join(TITLES[name] for name in without)}" if without else ""
        if machine.on_gpu:
            verdict += f"; needs {plan_words(lab_plan(number, machine.sizes))}"
        lines.append(f"  3.3.{number}  {lab.title:<32}{verdict}")
    return "\n".join(lines)


def plan_words(plan: LabPlan) -> str:
    """Write the memory that a lab's engines need at once, such as `38 GB for 2 vLLM`."""
    counted = Counter(TITLES[need.engine] for need in plan.needs)
    engines = ", ".join(name if n == 1 else f"{n} {name}" for name, n in counted.items())
    return f"{plan.total / GB:.1f} GB for {engines}"


def offered(machine: Machine, engine: str) -> bool:
    """Return whether an engine runs on this profile at all."""
    if machine.in_containers:
        return engine in IMAGES or engine == "transformers"
    has = {"transformers": True, "ollama": not machine.answers["ollama"].missing}
    return has.get(engine, engine in {step.name.removesuffix("_cuda") for step in machine.steps})


def show(diagnosis: Diagnosis) -> str:
    """Write a diagnosis, with its fix below it."""
    first = f"  {diagnosis.topic}: "
    body = textwrap.wrap(first + diagnosis.text, WIDTH, subsequent_indent="    ")
    return "\n".join([*body, *(f"      {line}" for line in diagnosis.fix)])


def last_word(diagnoses: tuple[Diagnosis, ...]) -> str:
    """Tell what to do next."""
    off = stopped(diagnoses)
    if not off:
        return "All labs can run. Next: make lab"
    kept = [number for number in LABS if number not in off]
    if not kept:
        return "No lab can run yet. Do the first fix above, then: make doctor"
    names = ", ".join(f"3.3.{number}" for number in kept)
    return f"These labs can run: {names}. For the others do the fixes above, then: make doctor"
