"""`make progress`: milestones from the learner's own notebooks and records."""

import functools
import json
import shutil
from types import SimpleNamespace

import pytest

from tools.lab import milestones
from tools.lab.judge.hidden_tests import load_sample_class
from tools.lab.milestones import MILESTONES, print_progress, standings
from utils.profiles import ROOT


def run(engine, concurrency=1, command=(), label=""):
    load = {"concurrency": concurrency}
    return SimpleNamespace(engine=engine, load=load, command=command, label=label)


@pytest.fixture(scope="module", autouse=True)
def judged_once():
    """Judge each notebook once for all of these tests, because each judgement starts a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(milestones, "evaluate", functools.cache(milestones.evaluate))
        yield


@pytest.fixture
def course(tmp_path, monkeypatch):
    (tmp_path / "labs").mkdir()
    for path in (ROOT / "labs").glob("*.ipynb"):
        shutil.copy(path, tmp_path / "labs")
    monkeypatch.setenv("COURSE_RECORDS", str(tmp_path / "records"))
    return tmp_path


def hand_in(course, name):
    """Puts a sample into the course, which then has that lab alone: judging the others takes time."""
    sample = load_sample_class(ROOT).SAMPLES[name]
    path = next((course / "labs").glob(f"lab-{sample.lab}-*.ipynb"))
    for other in (course / "labs").glob("*.ipynb"):
        if other != path:
            other.unlink()
    notebook = json.loads((ROOT / "solutions" / path.name).read_text())
    data = sample.make(notebook)
    path.write_bytes(json.dumps(notebook).encode() if data is None else data)
    return path


def by_lab(course):
    return {standing.milestone.lab: standing for standing in standings(course)}


def test_the_seven_milestones_of_the_course():
    assert [m.lab for m in MILESTONES] == [f"3.3.{n}" for n in range(1, 8)]


@pytest.mark.parametrize(
    ("profile", "measured"),
    [("cpu", "1 run of other engines; TensorRT-LLM is not run here"), ("spark", "")],
)
def test_a_lab_without_its_engine_is_done_where_that_cannot_run(monkeypatch, profile, measured):
    monkeypatch.setenv("COURSE_PROFILE", profile)
    evidence = next(m.evidence for m in MILESTONES if m.lab == "3.3.6")
    assert evidence([run("llama_cpp", label="lab 3.3.6: quantisation"), run("vllm")]) == measured
    assert evidence([run("tensorrt_llm"), run("vllm")]) == "1 run"


def test_new_learner_has_no_milestone(course, capsys):
    next((course / "labs").glob("lab-3.3.7-*.ipynb")).unlink()  # as if it was not released yet
    found = by_lab(course)
    assert (found["3.3.1"].state, found["3.3.1"].exercises) == ("open", "0 of 7 exercises")
    assert found["3.3.7"].state == "to come"
    assert print_progress(course) == 0
    text = capsys.readouterr().out
    assert "0 of 7 milestones done" in text
    assert "missing: a report of two engines" in text


def test_exercises_alone_are_a_beginning(course, capsys):
    hand_in(course, "partial")
    found = by_lab(course)["3.3.1"]
    assert (found.state, found.exercises) == ("begun", "4 of 7 exercises")
    to_do = "\n".join(found.to_do)
    assert "stream_metrics: TPOT of 5 tokens" in to_do
    assert "mean_interval: the cell does not run" in to_do
    assert "goodput" not in to_do, "not attempted is no mistake"


def test_exercises_and_measurements_are_a_milestone(course, monkeypatch):
    hand_in(course, "good-lab-3")
    one_level = [run("vllm", 8), run("vllm", 8), run("llama_cpp", 32)]
    monkeypatch.setattr(milestones, "load_all", lambda: one_level)
    assert by_lab(course)["3.3.3"].state == "begun"
    monkeypatch.setattr(milestones, "load_all", lambda: [*one_level, run("vllm", 32)])
    found = by_lab(course)["3.3.3"]
    assert (found.state, found.measured) == ("done", "vLLM at 2 levels of concurrency")


def test_a_report_needs_two_engines_and_its_page(course, monkeypatch):
    monkeypatch.setattr(milestones, "load_all", lambda: [run("vllm"), run("llama_cpp")])
    for path in (course / "labs").glob("lab-3.3.[2-7]-*.ipynb"):
        path.unlink()
    assert by_lab(course)["3.3.1"].measured == ""
    (course / "records").mkdir()
    (course / "records" / "report.html").write_text("")
    found = by_lab(course)["3.3.1"]
    assert (found.state, found.measured) == ("begun", "report.html, 2 runs of 2 engines")


def test_speculation_is_seen_in_the_engines_command(course, monkeypatch):
    medusa = run("vllm", command=("vllm", "serve", "--speculative-config", '{"method": "medusa"}'))
    monkeypatch.setattr(milestones, "load_all", lambda: [medusa])
    for path in (course / "labs").glob("lab-3.3.[12367]-*.ipynb"):
        path.unlink()
    found = by_lab(course)
    assert found["3.3.4"].measured == "1 run"
    assert found["3.3.5"].measured == ""


def test_a_written_answer_that_is_missing_is_told(course):
    path = hand_in(course, "good")
    notebook = json.loads(path.read_text())
    cell = next(c for c in notebook["cells"] if c["id"] == "answer-recommendation")
    cell["source"] = ["*Write your answer here.*"]
    path.write_text(json.dumps(notebook))
    assert by_lab(course)["3.3.1"].to_do == ("recommendation: nothing is written yet",)


def test_progress_reports_notes_of_grading(course):
    hand_in(course, "helper-in-own-cell")
    found = by_lab(course)["3.3.1"]
    assert found.exercises == "6 of 7 exercises"
    assert any("is defined in a cell that is not run" in line for line in found.to_do)


def test_a_broken_notebook_is_told_and_stops_nobody(course, capsys):
    other = next((course / "labs").glob("lab-3.3.3-*.ipynb"))
    hand_in(course, "cut-off")
    shutil.copy(ROOT / "labs" / other.name, other)
    found = by_lab(course)
    assert (found["3.3.1"].state, found["3.3.1"].exercises) == ("open", "not judged")
    assert "is damaged. Copy your answers" in found["3.3.1"].to_do[0]
    assert found["3.3.3"].exercises == "0 of 7 exercises"
