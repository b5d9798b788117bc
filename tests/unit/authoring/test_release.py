"""A release holds what learners get and nothing that they should not have."""

import hashlib
import json
import shutil
import subprocess

import pytest

from tools.authoring.__main__ import main
from tools.authoring.build import build, read_labs
from tools.authoring.notebook import render
from tools.authoring.release import MARK, find_leaks, solution_lines, write_release
from tools.lab.course_error import CourseError
from utils.profiles import ROOT


@pytest.fixture(scope="module")
def labs():
    return read_labs(ROOT)


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "release"
    write_release(ROOT, folder)
    return folder


def test_release_has_all_files_of_learners(released, labs):
    names = {path.name for path in released.iterdir()}
    assert {
        "labs",
        "utils",
        "models",
        "requirements",
        "README.md",
        "Makefile",
        "pyproject.toml",
    } <= names
    for lab in labs:
        path = released / "labs" / f"{lab.source.stem}.ipynb"
        assert path.read_text() == render(lab, solved=False)
    assert (released / "models" / "tiny" / "model.safetensors").is_file()


def test_release_ships_learners_tools_only(released):
    assert {path.name for path in (released / "tools").iterdir()} == {
        "__init__.py",
        "doctor",
        "lab",
        "setup",
    }


def test_release_has_no_file_of_instructors(released, labs):
    names = {path.name for path in released.iterdir()}
    assert names.isdisjoint(
        {"solutions", "tests", "benchmarks", ".ci", ".git", "records", "release"}
    )
    assert not list(released.rglob("__pycache__"))
    assert not (released / "docs" / "site").exists()
    everything = "\n".join(
        path.read_text(errors="replace")
        for path in released.rglob("*")
        if path.is_file() and path.suffix in (".py", ".md", ".ipynb", ".toml", "")
    )
    for part in (p for lab in labs for p in lab.parts if p.role == "answer"):
        model_answer = part.solved.splitlines()[1]
        assert model_answer not in everything
    hidden = ("def _stream(rng", "def _same_growth(", "SAMPLES", "_wrong_tie_break")
    sources = "\n".join(p.read_text() for p in (ROOT / "solutions" / "grading").glob("*.py"))
    assert hidden[0] in sources and hidden[1] in sources
    assert all(words not in everything for words in hidden)


def test_the_makefile_offers_what_learners_can_use(released):
    listing = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=released,
        capture_output=True,
        text=True,
        check=True,
    )
    commands = {line.split()[0] for line in listing.stdout.splitlines()}
    assert commands == {"help", "doctor", "setup", "lab", "run", "fresh", "progress", "clean"}


def test_the_documents_name_nothing_that_is_not_there(released):
    text = (released / "README.md").read_text()
    assert "instructors -->" not in text
    for words in ("make test", "make grade", "make build", "solutions", "tests/"):
        assert words not in text, words
    assert "make progress" in text


def test_release_reports_answers_within_reach(capsys, tmp_path):
    assert main(["release", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "utils.checks.lab_3_3_1" in output and "utils.kvcache.blocks.BlockPool" in output


def test_solutions_that_stray_into_a_release_are_found(released, tmp_path, labs):
    folder = tmp_path / "release"
    shutil.copytree(released, folder, ignore=shutil.ignore_patterns("models"))
    assert list(find_leaks(folder, labs)) == []
    solved = render(labs[0], solved=True)
    notebook = folder / "labs" / f"{labs[0].source.stem}.ipynb"
    fresh = notebook.read_text()
    notebook.write_text(solved)
    found = list(find_leaks(folder, labs))
    assert any("the marker of a solution" in leak for leak in found)
    assert any("the solution of exercise stream_metrics" in leak for leak in found)
    cells = json.loads(fresh)
    cells["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "42"}]
    notebook.write_text(json.dumps(cells))
    assert [leak for leak in find_leaks(folder, labs) if "holds outputs" in leak]
    notebook.write_text(fresh)
    code = next(p for p in labs[0].parts if p.id == "goodput" and p.role == "exercise").solved
    (folder / "NOTES.md").write_text("For me:\n\n" + code.replace("    ", "\t"))
    assert "NOTES.md: the solution of exercise goodput" in "\n".join(find_leaks(folder, labs))
    (folder / "NOTES.md").unlink()
    (folder / "solutions").mkdir()
    assert "solutions/" in list(find_leaks(folder, labs))


def test_nothing_is_written_when_something_would_leak(tmp_path, released, monkeypatch):
    monkeypatch.setattr(
        "tools.authoring.release.find_leaks", lambda folder, labs: iter(["x: the solution"])
    )
    with pytest.raises(CourseError, match="x: the solution"):
        write_release(ROOT, tmp_path / "release")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_release_is_replaced(released, tmp_path):
    target = tmp_path / "release"
    shutil.copytree(released, target)
    facts = json.loads((target / MARK).read_text())
    (target / "old.md").write_text("of another version")
    digest = hashlib.sha256(b"of another version").hexdigest()[:16]
    (target / MARK).write_text(json.dumps({**facts, "files": {**facts["files"], "old.md": digest}}))
    write_release(ROOT, target)
    assert not (target / "old.md").exists() and (target / "labs").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


@pytest.mark.parametrize("what", ["changed", "new", "mark lost"])
def test_a_release_that_somebody_worked_in_is_left_alone(released, tmp_path, what):
    target = tmp_path / "release"
    shutil.copytree(released, target)
    actual = next((target / "labs").glob("lab-3.3.1-*.ipynb"))
    match what:
        case "changed":
            actual.write_text(actual.read_text() + "\n")
        case "new":
            actual = target / "labs" / "lab-3.3.1-mine.ipynb"
            actual.write_text("{}")
        case "mark lost":
            (target / MARK).write_text("{}")
    with pytest.raises(CourseError, match=r"one that somebody worked in(.|\n)*TO="):
        write_release(ROOT, target)
    assert actual.is_file()


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("mine")
    with pytest.raises(CourseError, match="holds other things than a release"):
        write_release(ROOT, other)
    assert [path.name for path in other.iterdir()] == ["chapter.txt"]


def test_a_release_of_worked_in_labs_is_fresh_all_the_same(tmp_path, labs):
    course = tmp_path / "course"
    skip = shutil.ignore_patterns(
        ".*", "models", "tests", "benchmarks", "__pycache__", "records", "release"
    )
    shutil.copytree(ROOT, course, ignore=skip)
    for name in (".gitignore", "models"):
        (course / name).mkdir() if name == "models" else shutil.copy(ROOT / name, course / name)
    build(course)
    worked = next((course / "labs").glob("lab-3.3.1-*.ipynb"))
    shutil.copy(course / "solutions" / worked.name, worked)
    write_release(course, tmp_path / "release")
    assert list(find_leaks(tmp_path / "release", labs)) == []


def test_lines_of_a_solution():
    text = "a = 1\n### BEGIN SOLUTION\nb  =  2  # why\n\n    c=3\n### END SOLUTION\nd = 4\n"
    assert solution_lines(text) == ["b=2", "c=3"]
