"""The doctor's page: the machine in a line, a verdict for each lab, what to fix, what is worth knowing."""

from __future__ import annotations

import textwrap

from tools.doctor.diagnoses import FINE, MEND, NOTE, STOP, Finding, stopped
from tools.doctor.facts import Facts
from tools.doctor.needs import IMAGES, LABS, TITLES
from utils.profiles import PROFILES

WIDTH = 96
GIB = 1024**3
HEADINGS = {
    STOP: "What keeps labs from running",
    MEND: "What `make lab` sets up",
    NOTE: "Worth knowing",
}


def render(facts: Facts, findings: tuple[Finding, ...]) -> str:
    """The page."""
    parts = [head(facts), verdicts(facts, findings)]
    for level, heading in HEADINGS.items():
        if some := [finding for finding in findings if finding.level == level]:
            parts.append("\n".join([heading, *(show(finding) for finding in some)]))
    fine = [finding for finding in findings if finding.level == FINE]
    parts.append("\n".join(["In order", *(show(finding) for finding in fine)]))
    parts.append(last_word(findings))
    return "\n\n".join(parts)


def head(facts: Facts) -> str:
    """The machine and its profile."""
    gpus = facts.gpus[0].name if facts.gpus else "no NVIDIA GPU in use"
    where = "WSL, " if facts.wsl else ""
    memory = f"{facts.memory.total / GIB:.0f} GiB"
    lines = [
        f"{where}{facts.system} {facts.machine}, {facts.cores} cores, {memory} of memory, {gpus}",
        f"Profile {facts.profile}: {PROFILES[facts.profile].description}",
    ]
    return "\n".join(line for text in lines for line in textwrap.wrap(text, WIDTH))


def verdicts(facts: Facts, findings: tuple[Finding, ...]) -> str:
    """A line for each lab."""
    off = stopped(findings)
    missing = {step.name for step in facts.steps if not step.done}
    lines = []
    for number, lab in LABS.items():
        reasons = sorted({f.topic for f in findings if number in f.labs})
        without = [name for name in (*lab.engines, *lab.optional) if not offered(facts, name)]
        if number in off:
            verdict = f"cannot run: {', '.join(reasons)}"
        else:
            verdict = "runs in part" if set(without) & set(lab.engines) else "can run"
            verdict += ", after set-up" if missing else ""
            verdict += f"; without {', '.join(TITLES[name] for name in without)}" if without else ""
        lines.append(f"  3.3.{number}  {lab.title:<32}{verdict}")
    return "\n".join(lines)


def offered(facts: Facts, engine: str) -> bool:
    """Whether an engine runs on this profile at all."""
    if PROFILES[facts.profile].runtime == "docker":
        return engine in IMAGES or engine == "transformers"
    has = {"transformers": True, "ollama": facts.ollama}
    return has.get(engine, engine in {step.name for step in facts.steps})


def show(finding: Finding) -> str:
    """One finding, its fix below it."""
    first = f"  {finding.topic}: "
    body = textwrap.wrap(first + finding.text, WIDTH, subsequent_indent="    ")
    return "\n".join([*body, *(f"      {line}" for line in finding.fix)])


def last_word(findings: tuple[Finding, ...]) -> str:
    """What to do next."""
    off = stopped(findings)
    if not off:
        return "All labs can run. Next: make lab"
    kept = [number for number in LABS if number not in off]
    if not kept:
        return "No lab can run yet. Do the first fix above, then: make doctor"
    names = ", ".join(f"3.3.{number}" for number in kept)
    return f"These labs can run: {names}. For the others do the fixes above, then: make doctor"
