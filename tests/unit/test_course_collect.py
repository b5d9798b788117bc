"""Names in the folder of submissions: what is graded, and what is complained about."""

import os

import pytest

from utils.course.collect import collect
from utils.course.problems import CourseError

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
    assert len(found.complaints) == 1 and "'Ünal, B': not graded; rename" in found.complaints[0]


@pytest.mark.parametrize("name", ["=cmd()", "-rf", "a*b", "a\nb", "a,b", "x" * 65, "a'b", " "])
def test_names_that_would_break_a_gradebook_are_complained_about(tmp_path, name):
    put(tmp_path, name, "lab-3.3.1-x.ipynb")
    put(tmp_path, "anna", "lab-3.3.1-x.ipynb")
    found = collect(tmp_path, LABS)
    assert found.students == ("anna",)
    assert len(found.complaints) == 1


def test_two_files_of_one_lab(tmp_path):
    put(tmp_path, "anna", f"{LABS[0]}.ipynb", f"{LABS[0]}-Copy1.ipynb")
    found = collect(tmp_path, LABS)
    assert [s.path.name for s in found.submissions] == [f"{LABS[0]}.ipynb"]
    assert "Copy1.ipynb was not graded" in found.complaints[0]


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


def test_an_unknown_lab_and_an_empty_or_deeper_folder(tmp_path):
    put(tmp_path, "anna", "lab-3.3.9-x.ipynb")
    put(tmp_path, "bob", "work/labs/lab-3.3.1-x.ipynb")
    (tmp_path / "carla").mkdir()
    said = "\n".join(collect(tmp_path, LABS).complaints)
    assert "anna: lab-3.3.9-x.ipynb is no lab of this course" in said
    assert "bob: no notebook of a lab in the folder; move work/labs/lab-3.3.1-x.ipynb up" in said
    assert "carla: no notebook of a lab" in said


def test_a_folder_that_is_none_or_empty(tmp_path):
    with pytest.raises(CourseError, match="There is no folder"):
        collect(tmp_path / "nowhere", LABS)
    with pytest.raises(CourseError, match="one folder per student"):
        collect(tmp_path, LABS)
