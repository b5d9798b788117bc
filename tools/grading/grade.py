"""`make grade`: a folder of submissions becomes a gradebook, feedback pages, a CSV file and a report.

Two stages. Each notebook is judged in a process of its own, and the findings are written to
`OUT/judged/`; then they are entered into nbgrader's gradebook, one after the other, while the next ones
are judged. Both go on where they were stopped, and neither does again what is done: findings carry a
digest of all that they depend on.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path

from tools.authoring.build import read_labs
from tools.authoring.check_selftest import modules
from tools.authoring.notebook import render
from tools.grading.collect import Collected, Submission, collect
from tools.grading.gradebook import Gradebook, GradebookError
from tools.grading.graded_report import Graded, print_summary, write_report
from tools.grading.submission_view import showable
from tools.grading.verdict_files import Findings, findings_path, read_findings
from tools.lab.course_error import CourseError
from tools.lab.judge.cells import ANSWER, MAX_FILE_BYTES, LabCells, merge, pick, read_lab_cells
from tools.lab.judge.hidden_tests import DEFAULT_SEED, FOLDER, Grading, load_gradings
from tools.lab.judge.judge import Judge
from tools.lab.judge.parent_death_signal import end_with_parent
from tools.lab.judge.sandbox import Sandbox, SandboxError, SandboxLimits, find_sandbox
from tools.lab.judge.seal import build_sealed
from tools.lab.judge.session import Session
from tools.lab.labs import count
from utils.checks import checks_of
from utils.checks.attempt import Stopped
from utils.files import to_json, write_whole

COURSE_FILE = "course.json"
ENTERED = ".entered"
_MEMORY_BYTES = 3 << 30  # of one notebook's judge, which reads what the learner's code returns


@dataclass(frozen=True)
class Options:
    """Settings of grading.

    Attributes:
        sandbox: "bubblewrap" or "none".
        seed: of the hidden parts' inputs; a gradebook keeps to the one it began with.
        jobs: notebooks judged at the same time.
        limits: Limits of a submission.
    """

    sandbox: str = "bubblewrap"
    seed: str = DEFAULT_SEED
    jobs: int = os.cpu_count() or 1
    limits: SandboxLimits = field(default_factory=SandboxLimits)


@dataclass(frozen=True)
class GradedLab:
    """A lab with all that its grades depend on; `digest` stands for that."""

    notebook: str
    cells: LabCells
    gradings: Mapping[str, Grading]
    number: str
    digest: str


def grade(root: Path, submissions: Path, out: Path, options: Options | None = None) -> int:
    """Grade a folder of submissions.

    Args:
        root: the instructors' repository.
        submissions: `<student>/lab-3.3.N-*.ipynb`.
        out: nbgrader's course folder; made, or gone on with.
        options: how.

    Returns:
        0, or 1 when something could not be graded.

    Raises:
        CourseError: It can't begin; the message has the next step.
    """
    options = options or Options()
    if out.is_relative_to(submissions) or submissions.is_relative_to(out):
        raise CourseError(f"{out} and {submissions} must not contain one another. Keep them apart.")
    labs = read_graded_labs(root, options)
    found = collect(submissions, labs)
    with _hold(out, options) as scratch:
        sandbox = _sandbox(root, scratch, labs, options)
        _begin(out, options)
        for line in sandbox.protections():
            print(f"  {line}")
        print(f"  {options.limits}\n", flush=True)
        book = Gradebook(out)
        for name in dict.fromkeys(item.lab for item in found.submissions):
            book.add_lab(name, labs[name].notebook)
        for student in found.students:
            book.add_student(student)
        failed: dict[str, str] = {}
        judging = _judge_all(root, out, found.submissions, labs, sandbox, options, failed)
        with contextlib.closing(judging):
            outdated = _enter_all(book, out, judging, labs, failed)
        judged = [item for item in found.submissions if str(item) not in failed]
        scores = book.scores()
        graded = [
            Graded(
                item.student,
                item.lab,
                item.path,
                *scores[item.student, item.lab],
                read_findings(out, item.student, item.lab).judgement,
            )
            for item in judged
        ]
        facts = {
            "protections": [*sandbox.protections(), str(options.limits)],
            "seed": options.seed,
            "complaints": [*found.complaints, *_absent(found)],
            "failed": failed,
            "earlier": sorted(
                {f"{s}/{lab}" for s, lab in scores} - set(map(str, found.submissions))
            ),
            "outdated": outdated,
        }
        paths = [book.export(), write_report(out, graded, facts)]
    print_summary(graded, facts, [*paths, out / "feedback", out / "gradebook.db"])
    return 1 if failed else 0


def _absent(found: Collected) -> list[str]:
    """Return the students who handed in some lab, but not each that others did."""
    labs = sorted({item.lab for item in found.submissions})
    handed = {(item.student, item.lab) for item in found.submissions}
    return [
        f"{student}: handed in nothing for {lab}"
        for student in found.students
        for lab in labs
        if (student, lab) not in handed and any((student, other) in handed for other in labs)
    ]


def read_graded_labs(root: Path, options: Options) -> dict[str, GradedLab]:
    """Return all labs with exercises, by name.

    Raises:
        CourseError: a source breaks a rule, or this is a release.
    """
    try:
        gradings = load_gradings(root)
    except FileNotFoundError as error:
        raise CourseError(str(error)) from error
    machinery = [
        *(root / "tools" / "lab" / "judge").glob("*.py"),
        *(root / "utils" / "checks").glob("[!l]*.py"),
    ]
    found = {}
    for lab in read_labs(root):
        if not lab.exercises:
            continue
        notebook = render(lab, solved=False)
        number, name = lab.source.number, lab.source.stem
        module = f"lab_{number.replace('.', '_')}.py"
        digest = hashlib.sha256(f"{notebook} {options.seed} {options.sandbox}".encode())
        for path in [
            root / FOLDER / module,
            root / "utils" / "checks" / module,
            *sorted(machinery),
        ]:
            digest.update(path.read_bytes())
        cells = read_lab_cells(json.loads(notebook), name)
        by_exercise = gradings.get(number, {})
        if missing := [slot.id for slot in cells.exercises if slot.id not in by_exercise]:
            raise CourseError(f"{FOLDER / module} does not grade {', '.join(missing)} of {name}.")
        found[name] = GradedLab(notebook, cells, by_exercise, number, digest.hexdigest())
    return found


def _sandbox(root: Path, scratch: Path, labs: Mapping[str, GradedLab], options: Options) -> Sandbox:
    sealed, home = scratch / "course", scratch / "home"
    home.mkdir()
    gradings = [grading for lab in labs.values() for grading in lab.gradings.values()]
    build_sealed(root, sealed, [seal for grading in gradings for seal in grading.seals()])
    try:
        return find_sandbox(options.sandbox, sealed, root / "models", home)
    except SandboxError as error:
        raise CourseError(str(error)) from error


@contextlib.contextmanager
def _hold(out: Path, options: Options) -> Iterator[Path]:
    """Take the folder for this grading alone, if it is one of ours; gives a scratch folder in it."""
    course, scratch = out / COURSE_FILE, out / ".scratch"
    if out.exists() and not out.is_dir():
        raise CourseError(f"OUT={out} is a file. Name a folder.")
    if out.is_dir() and not course.is_file() and {p.name for p in out.iterdir()} - {".lock"}:
        raise CourseError(
            f"{out} holds other things than grades. Name an empty folder, or a new one."
        )
    if course.is_file():
        seed = json.loads(course.read_text(encoding="utf-8")).get("seed")
        if seed != options.seed:
            raise CourseError(
                f"{out} was graded with SEED={seed}. Go on with that, or name another OUT."
            )
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CourseError(
                f"Another grading writes to {out}. Wait for it, or stop it."
            ) from error
        shutil.rmtree(scratch, ignore_errors=True)  # of a grading that was killed
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _begin(out: Path, options: Options) -> None:
    """Mark the folder as ours."""
    facts = {"made_by": "make grade", "seed": options.seed}
    if not (out / COURSE_FILE).is_file():
        write_whole(out / COURSE_FILE, to_json(facts))


# ---- judging


def _judge_all(
    root: Path,
    out: Path,
    submissions: Sequence[Submission],
    labs: Mapping[str, GradedLab],
    sandbox: Sandbox,
    options: Options,
    failed: dict[str, str],
) -> Generator[Submission, None, None]:
    """Judge what is not judged yet; adds to `failed` why, for each that could not be.

    Yields:
        Each that is judged, as soon as it is; meanwhile others are being judged.
    """
    waiting: list[Submission] = []
    ready: list[Submission] = []
    for item in submissions:
        (ready if _found(out, item, labs[item.lab]) else waiting).append(item)
    print(f"{len(submissions)} notebooks, {len(ready)} of them judged before", flush=True)
    running: dict[ForkProcess, tuple[Submission, float]] = {}
    context = multiprocessing.get_context("fork")
    waiting.reverse()
    try:
        while waiting or running or ready:
            while waiting and len(running) < options.jobs:
                item = waiting.pop()
                task = _Task(root, out, item, labs[item.lab], sandbox, options)
                process = context.Process(target=task.run, daemon=True)
                process.start()
                running[process] = (item, time.monotonic() + options.limits.clock_s)
            for process, (item, deadline) in list(running.items()):
                process.join(0.05)
                if process.is_alive() and time.monotonic() < deadline:
                    continue
                why = "the grader's process ended"
                if process.is_alive():
                    why = f"{options.limits.clock_s:g} s passed"
                process.kill()
                process.join()
                del running[process]
                if reason := _outcome(out, item, labs[item.lab], why):
                    failed[str(item)] = reason
                else:
                    ready.append(item)
            if ready:
                yield ready.pop(0)
    finally:
        for process in running:
            process.kill()
            process.join()


def _outcome(out: Path, item: Submission, lab: GradedLab, reason: str) -> str:
    """Print the line of one notebook; returns why it could not be judged, or "".

    Args:
        out: the course's folder.
        item: the notebook.
        lab: its lab.
        reason: what to say where the judge said nothing.
    """
    failure = findings_path(out, item.student, item.lab).with_suffix(".failed")
    if found := _found(out, item, lab):
        judgement = found.judgement
        most = sum(exercise.points for exercise in judgement.exercises)
        notes = f", {count(len(judgement.notes), 'note')}" if judgement.notes else ""
        print(f"  {item.student:<24} {item.lab:<36} {judgement.score:>3}/{most}{notes}", flush=True)
        return ""
    if failure.is_file():
        reason = failure.read_text(encoding="utf-8")
        failure.unlink()
    print(f"  {item.student:<24} {item.lab:<36} NOT GRADED: {reason.splitlines()[0]}", flush=True)
    return reason


def _read(path: Path) -> bytes:
    """Return a submission's bytes, of a plain file alone, and no more than one too many."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def _key(data: bytes, lab: GradedLab) -> str:
    digest = hashlib.sha256(lab.digest.encode())
    digest.update(data)
    return digest.hexdigest()


def _found(out: Path, item: Submission, lab: GradedLab) -> Findings | None:
    """Return the judge's findings, if it has judged this very notebook."""
    try:
        found = read_findings(out, item.student, item.lab)
        return found if found.key == _key(_read(item.path), lab) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class _Task:
    """Judge one notebook in a process of its own, so that the effects of a submission end with it."""

    root: Path
    out: Path
    item: Submission
    lab: GradedLab
    sandbox: Sandbox
    options: Options

    def run(self) -> None:
        """Judge, and write the findings whole."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with_parent()
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, resource.RLIM_INFINITY))
        path = findings_path(self.out, self.item.student, self.item.lab)
        try:
            data = _read(self.item.path)
            handed = pick(data, self.lab.cells)
            checks = checks_of(modules()[self.lab.number])
            judge = Judge(
                self.lab.cells,
                checks,
                lambda spent: Session(self.sandbox, self.options.limits, spent),
                gradings=self.lab.gradings,
                root=self.root,
                seed=self.options.seed,
            )
            judgement = judge.judge(handed)
            texts = {
                cell: text if cell.startswith(ANSWER) else showable(text)
                for cell, text in handed.texts.items()
            }
            key = _key(data, self.lab)
            found = Findings(key, judgement, texts, handed.shown, handed.readable)
            write_whole(path, to_json(found.to_dict()))
        except (Exception, Stopped) as error:
            reason = f"{type(error).__name__}: {error}"
            write_whole(path.with_suffix(".failed"), reason)


# ---- entering


def _enter_all(
    book: Gradebook,
    out: Path,
    judged: Iterable[Submission],
    labs: Mapping[str, GradedLab],
    failed: dict[str, str],
) -> list[str]:
    """Enter all; adds to `failed` what nbgrader cannot take. Returns those with outdated points."""
    outdated = []
    for item in judged:
        try:
            if _enter(book, out, item, labs[item.lab]):
                outdated.append(str(item))
        except GradebookError as error:
            failed[str(item)] = str(error)
            print(f"  {item}: NOT ENTERED (see the report)", flush=True)
    return outdated


def _enter(book: Gradebook, out: Path, item: Submission, lab: GradedLab) -> bool:
    """Enter one notebook's findings, unless these very findings are entered.

    A person's entries since then only make the feedback page due again.

    Returns:
        True if points given by hand are of an earlier submission.
    """
    found = read_findings(out, item.student, item.lab)
    stamp = findings_path(out, item.student, item.lab).with_suffix(ENTERED)
    done = json.loads(stamp.read_text(encoding="utf-8")) if stamp.is_file() else {}
    outdated = False
    if done.get("key") != found.key:
        notebook = merge(lab.cells, json.loads(lab.notebook), found.texts)
        book.enter(item.student, item.lab, notebook)
        outdated = bool(done and book.by_hand(item.student, item.lab))
    elif done["by_hand"] != book.by_hand(item.student, item.lab):
        book.feedback(item.student, item.lab)
    else:
        return bool(done["outdated"])
    by_hand = book.by_hand(item.student, item.lab)
    write_whole(stamp, to_json({"key": found.key, "by_hand": by_hand, "outdated": outdated}))
    return outdated
