"""Names in the folder of submissions: what is graded, and what is complained about."""

import os
from pathlib import Path

import pytest

from tools.grading.collect import collect
from tools.lab.course_error import CourseError

LABS = ("lab-3.3.1-engine-benchmark", "lab-3.3.3-vllm-continuous-batching")


def put(folder, student, *names):
    for name in names:
        path = folder / student / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_students_and_labs_are_found(tmp_path):
    put(tmp_path, "anna", "lab-3.3.1-engine-benchmark.ipynb", "lab-3.3.3-mine.ipynb", "notes.txt")
    put(tmp_path, "Ünal, B", "lab-3.3.1-x.ipynb")
    put(tmp_path, "b.c_d@e-f", "lab-3.3.1-engine-benchmark (1).ipynb")
    put(tmp_path, ".hidden", "lab-3.3.1-x.ipynb")
    (tmp_path / "readme.txt").write_text("")
    found = collect(tmp_path, LABS)
    assert [str(s) for s in found.submissions] == [
        f"anna/{LABS[0]}",
        f"anna/{LABS[1]}",
        f"b.c_d@e-f/{LABS[0]}",
    ]
    assert found.students == ("anna", "b.c_d@e-f")
    assert found.complaints == (
        "anna: notes.txt is no lab of this course; not graded",
        "readme.txt: not graded; it is in no student's folder",
        "'Ünal, B': not graded; rename the folder (letters, digits, spaces, . _ @ -)",
    )


def test_a_name_is_one_name_however_it_is_written(tmp_path):
    put(tmp_path, "Jo\u0308rg", "lab-3.3.1-x.ipynb")
    put(tmp_path, "J\u00f6rg", "lab-3.3.1-x.ipynb")
    put(tmp_path, "__MACOSX", "lab-3.3.1-x.ipynb")
    found = collect(tmp_path, LABS)
    assert found.students == ("J\u00f6rg",)
    assert len(found.submissions) == 1
    assert len(found.complaints) == 1
    assert "another folder has the same name" in found.complaints[0]


@pytest.mark.parametrize("name", ["=cmd()", "-rf", "a*b", "a\nb", "a,b", "x" * 65, "a'b", " "])
def test_names_that_would_break_a_gradebook_are_complained_about(tmp_path, name):
    put(tmp_path, name, "lab-3.3.1-x.ipynb")
    put(tmp_path, "anna", "lab-3.3.1-x.ipynb")
    found = collect(tmp_path, LABS)
    assert found.students == ("anna",)
    assert len(found.complaints) == 1


def test_own_name_or_newest_file_counts_for_lab(tmp_path):
    own, copied, again = (f"{LABS[0]}{end}.ipynb" for end in ("", "-Copy1", " (2)"))
    put(tmp_path, "anna", own, copied)
    put(tmp_path, "bob", copied, again)
    for age, path in enumerate([tmp_path / "anna" / copied, tmp_path / "bob" / again]):
        os.utime(path, (2e9 - age, 2e9 - age))
    found = collect(tmp_path, LABS)
    assert [s.path.name for s in found.submissions] == [own, again]
    assert found.complaints == (
        f"anna: {copied} was not graded, {own} was",
        f"bob: {copied} was not graded, {again} was",
    )


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    put(tmp_path, "anna", "lab-3.3.1-x.ipynb")
    put(tmp_path, "bob", "lab-3.3.1-x.ipynb")
    listed = Path.iterdir

    def refuse_bobs(folder):  # as the system does, but for root too
        if folder.name == "bob":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refuse_bobs)
    found = collect(tmp_path, LABS)
    assert [s.student for s in found.submissions] == ["anna"]
    assert "bob: not graded; Permission denied" in found.complaints[0]


def test_links_pipes_and_folders_are_not_opened(tmp_path):
    put(tmp_path, "anna", "lab-3.3.1-x.ipynb")
    put(tmp_path, "eve", "other.txt")
    (tmp_path / "eve" / "lab-3.3.1-x.ipynb").symlink_to(tmp_path / "anna" / "lab-3.3.1-x.ipynb")
    os.mkfifo(tmp_path / "eve" / "lab-3.3.3-x.ipynb")
    (tmp_path / "mallory").symlink_to(tmp_path / "anna")
    found = collect(tmp_path, LABS)
    assert [s.student for s in found.submissions] == ["anna"]
    assert "mallory: a link" in "\n".join(found.complaints)
    assert "\n".join(found.complaints).count("no plain file") == 2


def test_names_that_a_terminal_should_not_get_are_written_as_python_does(tmp_path, capsys):
    put(tmp_path, "anna", "lab-3.3.1-x.ipynb", "lab-3.3.1-\x1b[2J.ipynb", "n\x1b]0;x\x07otes")
    put(tmp_path, "bob", "in\x1b[2J/lab-3.3.1-x.ipynb")
    (tmp_path / "bob" / os.fsdecode(b"lab-3.3.3-\xff.txt")).write_text("")
    (tmp_path / os.fsdecode(b"\xff\x1b.txt")).write_text("")
    text = "\n".join(collect(tmp_path, LABS).complaints)
    print(text)
    assert text.replace("\n", "").isprintable()
    assert r"'n\x1b]0;x\x07otes' is no lab" in text
    assert r"'lab-3.3.3-\udcff.txt'" in text
    assert r"move 'in\x1b[2J/lab-3.3.1-x.ipynb' up" in text


def test_an_unknown_lab_and_an_empty_or_deeper_folder(tmp_path):
    put(tmp_path, "anna", "lab-3.3.9-x.ipynb")
    put(tmp_path, "bob", "work/labs/lab-3.3.1-x.ipynb")
    (tmp_path / "carla").mkdir()
    text = "\n".join(collect(tmp_path, LABS).complaints)
    assert "anna: lab-3.3.9-x.ipynb is no lab of this course" in text
    assert "bob: no notebook of a lab in the folder; move work/labs/lab-3.3.1-x.ipynb up" in text
    assert "carla: no notebook of a lab" in text


def test_a_folder_that_is_none_or_empty(tmp_path):
    with pytest.raises(CourseError, match="There is no folder"):
        collect(tmp_path / "nowhere", LABS)
    with pytest.raises(CourseError, match="one folder per student"):
        collect(tmp_path, LABS)
