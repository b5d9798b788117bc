"""Command of the site, the kernel of its notebooks, and the words for their figures."""

import json
import shutil
import sys

import pytest
from matplotlib.figure import Figure

from tools.authoring import executed_page, site
from tools.lab.course_error import CourseError
from tools.lab.labs import KERNEL
from utils.profiles import ROOT


@pytest.fixture
def built(monkeypatch):
    """Arguments of each call of `make_site` that the command makes."""
    calls = []
    monkeypatch.setattr(site, "make_site", lambda *args, **options: calls.append(options))
    return calls


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {"solved": True, "execute": True, "only": None}),
        (["--lab", "3"], {"solved": True, "execute": True, "only": "3"}),
        (["--no-solutions"], {"solved": False, "execute": False, "only": None}),
        (["--no-solutions", "--execute"], {"solved": False, "execute": True, "only": None}),
    ],
)
def test_command_chooses_solutions_and_execution(built, tmp_path, options, expected):
    assert site.main([str(tmp_path), *options]) == 0
    assert built == [expected]


def test_command_shows_error_without_traceback(monkeypatch, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert site.main([str(tmp_path)]) == 2
    assert "isn't a site. Choose another folder with TO=" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").exists()


def test_command_names_missing_tools(monkeypatch, tmp_path):
    monkeypatch.setattr(site, "SITE_ENV", tmp_path / "none")
    with pytest.raises(CourseError, match="make setup STEP=site"):
        site.render(tmp_path, tmp_path, {}, {})


def test_site_refuses_stale_notebook(tmp_path):
    (tmp_path / "solutions").mkdir()
    source = ROOT / "tests/notebooks/sample/lab-3.3.99-sample.py"
    shutil.copy(source, tmp_path / "solutions")
    with pytest.raises(CourseError, match="notebooks are stale"):
        site.make_site(tmp_path, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_kernel_is_the_courses_python(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    site.write_kernel(tmp_path, {"COURSE_GRADING": "1"})
    spec = json.loads((tmp_path / "kernels" / KERNEL / "kernel.json").read_text())
    assert spec["argv"][0] == sys.executable
    assert spec["env"]["COURSE_GRADING"] == "1"
    assert spec["env"]["PYTHONPATH"] == str(ROOT)


def test_figure_is_described_by_its_words():
    figure = Figure()
    axes = figure.add_subplot(title="Two lines", xlabel="time (s)", ylabel="tok/s")
    axes.plot([0, 1], label="<vLLM>")
    axes.legend()
    expected = "Plot. Two lines; x: time (s); y: tok/s; shown: <vLLM>."
    assert executed_page.describe(figure) == expected


def test_figure_is_described_by_its_label_when_it_has_one():
    figure = Figure()
    figure.add_subplot(title="Two lines")
    figure.set_label("vLLM is twice as fast.")
    assert executed_page.describe(figure) == "vLLM is twice as fast."


def test_provenance_names_machine_and_load(monkeypatch):
    monkeypatch.setenv("COURSE_LOAD", "quick")
    monkeypatch.setenv("COURSE_PROFILE", "cpu")
    text = executed_page.provenance().data
    assert "cores" in text
    assert "too small to conclude from" in text
    assert "vLLM 0." in text


def test_provenance_names_images_when_engines_run_in_containers(monkeypatch):
    monkeypatch.setenv("COURSE_PROFILE", "spark")
    assert "nvcr.io/nvidia/vllm:" in executed_page.provenance().data
