"""Command line of the instructors' tools: `python -m utils.course --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from utils.course.lab import open_formgrader, open_lab
from utils.course.labs import GENERATED_BY, ROOT
from utils.course.problems import CourseError

# What other commands need is imported there: it takes seconds, and `make lab` needs none of it.


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m utils.course", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="write labs/ and solutions/ from solutions/*.py")
    make.add_argument("--check", action="store_true", help="write nothing, fail on a difference")
    make.add_argument("--force", action="store_true", help="overwrite notebooks somebody ran")
    make.add_argument("--lab", help="one lab: 3, 3.3.3 or a file name")
    commands.add_parser("list", help="labs, exercises, minutes, points")
    show = commands.add_parser("lab", help="open a lab in JupyterLab")
    show.add_argument("lab", nargs="?", default="1", help="3, 3.3.3 or a file name")
    show.add_argument("--headless", action="store_true", help="print the URL, open no browser")
    tried = commands.add_parser("checks", help="try every check: right, empty, wrong solutions")
    tried.add_argument("--messages", action="store_true", help="show what learners would read")
    commands.add_parser("docs", help="check documents and labs: origins, links, names, code, craft")
    commands.add_parser("prep", help="make the tables of LAB_PREP.md and QUICK_REFERENCE.md anew")
    commands.add_parser("links", help="ask every outside link, and write down when")
    release = commands.add_parser("release", help="write the folder that learners get")
    release.add_argument("target", type=Path, help="the folder")
    graded = commands.add_parser("grade", help="grade a folder of submissions")
    graded.add_argument("submissions", type=Path, help="one folder per student")
    graded.add_argument("out", type=Path, help="where gradebook, feedback and report go")
    graded.add_argument("--sandbox", default="bubblewrap", help="bubblewrap (default) or none")
    graded.add_argument("--seed", help="of the hidden inputs, for instance the name of the class")
    graded.add_argument("--jobs", help="notebooks judged at the same time")
    form = commands.add_parser("formgrader", help="open nbgrader's formgrader, for points by hand")
    form.add_argument("out", type=Path, help="the folder that was graded into")
    form.add_argument("--headless", action="store_true", help="print the URL, open no browser")
    commands.add_parser("progress", help="a learner's milestones")
    sample = commands.add_parser("sample-class", help="write submissions to practise on")
    sample.add_argument("folder", type=Path, help="where to; one folder per student")
    sample.add_argument("--only", nargs="*", help="names of the students; default, all")
    flags = commands.add_parser("flags", help="whether today's engines accept what the course says")
    flags.add_argument("--record", action="store_true", help="write their lists of options anew")
    commands.add_parser("page", help="make the terminal output in the instructors' page anew")
    args = parser.parse_args(argv)
    try:
        return _run(args)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.strerror or error}: {error.filename}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    root: Path = args.root
    match args.command:
        case "build":
            return _check(root, args.lab) if args.check else _build(args)
        case "list":
            return _list(root)
        case "lab":
            open_lab(args.lab, headless=args.headless, root=root)
        case "formgrader":
            open_formgrader(args.out.resolve(), headless=args.headless)
        case "release":
            return _release(root, args.target.resolve())
        case "grade":
            return _grade(args)
        case "sample-class":
            return _sample_class(root, args.folder, args.only)
        case "page":
            from utils.course.page import write_page

            write_page(root)
            return 0
        case "flags":
            from utils.course.flags import report as report_flags

            return report_flags(root, again=args.record)
        case "docs":
            return _docs(root)
        case "links":
            return _links(root)
        case "prep":
            from utils.course.prep import write_prep

            write_prep(root)
            return 0
        case "progress":
            from utils.course.progress import print_progress

            return print_progress(root)
        case _:
            from utils.course.trial import report

            return report(root, messages=args.messages)


def _build(args: argparse.Namespace) -> int:
    from utils.course.build import build

    written = build(args.root, args.lab, force=args.force)
    for path in written:
        print(f"wrote {path.relative_to(args.root)}")
    if not written:
        print("every notebook is fresh")
    return 0


def _check(root: Path, only: str | None) -> int:
    from utils.course.build import drift

    found = drift(root, only)
    for item in found:
        print(f"{item.path.relative_to(root)}:{item.line} {item.reason}")
        if item.diff:
            print(item.diff)
    if found:
        print(f"\nMake them again: {GENERATED_BY}   (delete notebooks that have no source)")
        return 1
    print("every notebook is what its source makes")
    return 0


def _grade(args: argparse.Namespace) -> int:
    from utils.course.grade import Options, grade

    given = {key: vars(args)[key] for key in ("sandbox", "seed", "jobs") if vars(args)[key]}
    if "jobs" in given:
        if not (given["jobs"].isdecimal() and int(given["jobs"])):
            raise CourseError(f"JOBS={given['jobs']} is no whole number from 1 on.")
        given["jobs"] = int(given["jobs"])
    return grade(args.root, args.submissions.resolve(), args.out.resolve(), Options(**given))


def _release(root: Path, target: Path) -> int:
    from utils.course.release import report_release, write_release

    report_release(target, write_release(root, target))
    return 0


def _sample_class(root: Path, folder: Path, only: list[str] | None) -> int:
    from utils.grading.declare import load_sample_class

    written = load_sample_class(root).write_class(root, folder, only)
    print(f"wrote {len(written)} submissions to {folder}")
    return 0


def _docs(root: Path) -> int:
    from utils.course.documents import check_documents
    from utils.course.notebook import count

    problems = check_documents(root)
    for problem in problems:
        print(problem)
    print(f"{count(len(problems), 'fault')} in documents and labs")
    return 1 if problems else 0


def _links(root: Path) -> int:
    from utils.course.documents import all_outside_links, documents
    from utils.course.notebook import count
    from utils.course.outside import PAGE, write_page

    links = all_outside_links(documents(root))
    answered, wrong = write_page(links, root)
    print(f"{answered} of {count(len(links), 'link')} answered; written to {PAGE}")
    print(*wrong, sep="\n")
    return 1 if wrong else 0


def _list(root: Path) -> int:
    from utils.course.build import read_labs
    from utils.course.notebook import count

    for lab in read_labs(root):
        minutes = sum(exercise.minutes for exercise in lab.exercises)
        points = sum(exercise.points for exercise in lab.exercises)
        points += sum(answer.points for answer in lab.answers)
        exercises = count(len(lab.exercises), "exercise")
        print(f"{lab.source.stem}: {exercises}, {minutes} min, {count(points, 'point')}")
        for e in lab.exercises:
            facts = f"{'★' * e.difficulty:<5} {e.minutes:>3} min {count(e.points, 'point'):>9}"
            print(f"  {e.number}. {e.title:<44} {facts}  {e.id}")
        for answer in lab.answers:
            facts = f"{'':<5} {'':>7} {count(answer.points, 'point'):>9}"
            print(f"     {'written answer, graded by a person':<44} {facts}  {answer.id}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
