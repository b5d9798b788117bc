"""The sample lab becomes a site: executed once, kept, executed anew when it changes, rendered, refused."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest
from chromium import PROGRAM, browser

from tools.authoring.build import build
from tools.lab.course_error import CourseError
from tools.setup.setup_steps import SITE
from tools.site.links import read_pages
from tools.site.make import make_site
from tools.site.store import executed
from utils.profiles import LOAD_VARIABLE, ROOT

SAMPLE = Path(__file__).parent / "sample"
STEM = "lab-3.3.99-sample"
README = (
    f"# Sample course\n\n[The lab](labs/{STEM}.ipynb), [its beginning](labs/{STEM}.ipynb#latency)\n"
)
CHECKS = "solutions/sample_checks/__init__.py"
PAUSED = re.compile(r"paused for \d+\.\d\d s")  # as printed, not as in the code
SLEPT = re.compile(PAUSED.pattern.replace("paused", "slept"))
FIGURE = """
# %%
import matplotlib.pyplot as plt

print("in", __import__("os").getcwd())
axes = plt.figure().add_subplot(title="A line", xlabel="time (s)")
axes.plot([0, 1]);
"""
HINT = "<details><summary>Hint</summary>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The sample's course, executed once: (folder, what its execution gave, what it said)."""
    root = tmp_path_factory.mktemp("made") / "course"
    (root / "solutions").mkdir(parents=True)
    text = (SAMPLE / f"{STEM}.py").read_text() + FIGURE
    (root / "solutions" / f"{STEM}.py").write_text(text)
    (root / "README.md").write_text(README)
    build(root)
    (root / CHECKS).parent.mkdir()
    shutil.copy(SAMPLE / "sample_checks.py", root / CHECKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOAD_VARIABLE, "quick")
        return root, *run(root)


@pytest.fixture
def course(made, tmp_path, monkeypatch):
    """A copy of it, to change."""
    monkeypatch.setenv(LOAD_VARIABLE, "quick")
    return shutil.copytree(made[0], tmp_path / "course")


def change(path, before, after):
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def run(course):
    said = []
    build(course)
    path = course / "solutions" / f"{STEM}.ipynb"
    return executed(path, course / ".site/executed", course, said.append), said


def outputs(found):
    return [cell.outputs for cell in found.notebook.cells if cell.cell_type == "code"]


def test_it_is_executed_once_and_anew_when_its_code_changes(course, made):
    source = course / f"solutions/{STEM}.py"
    _, first, said = made
    assert first.fresh
    assert said[0] == f"{STEM}: executing"
    facts = first.produced_by
    assert facts["load"] == "quick"
    assert facts["seconds"] > 0.1
    assert facts["host"]["cores_usable"]
    assert any(PAUSED.search(str(output)) for output in outputs(first))
    assert any("in solutions" in str(output) for output in outputs(first)), "not where that lies"

    change(source, "It proves the way", "It shows the way")
    again, said = run(course)
    assert not again.fresh
    assert said == [f"{STEM}: unchanged, executed {facts['date']}"]
    assert outputs(again) == outputs(first)
    assert again.produced_by == facts
    assert "It shows the way" in again.notebook.cells[0].source, "prose is today's"

    change(source, "paused for", "slept for")
    third, _ = run(course)
    assert third.fresh
    assert any(SLEPT.search(str(output)) for output in outputs(third))


def test_a_failed_execution_shows_the_cell_and_is_not_kept(course):
    change(course / f"solutions/{STEM}.py", "return at - scheduled", "return at")
    with pytest.raises(
        CourseError, match=r"(?s)no page of it.*ttft = checks.ttft\(ttft\).*In seconds"
    ):
        run(course)
    assert len(list((course / ".site/executed").glob("*.ipynb"))) == 1, "the earlier one"


def test_a_stale_notebook_is_not_rendered(course):
    change(course / f"solutions/{STEM}.py", "paused for", "slept for")
    with pytest.raises(CourseError, match="not fresh"):
        make_site(course, course / "site", say=lambda _: None)


def test_a_folder_that_is_no_site_is_left_alone(course):
    (course / "site").mkdir()
    (course / "site/thesis.tex").write_text("years of work")
    with pytest.raises(CourseError, match="holds no site"):
        make_site(course, course / "site", say=lambda _: None)
    assert (course / "site/thesis.tex").exists()


@pytest.fixture(scope="module")
def rendered(made, tmp_path_factory):
    """The course with its site in `site/`."""
    if not SITE.done():
        pytest.skip("not set up here: make setup STEP=site")
    course = shutil.copytree(made[0], tmp_path_factory.mktemp("rendered") / "course")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOAD_VARIABLE, "quick")
        make_site(course, course / "site", say=lambda _: None)
    return course


def test_the_site_has_pages_links_hints_and_provenance(rendered):
    site = rendered / "site"
    names = {path.relative_to(site).as_posix() for path in read_pages(site)}
    assert names >= {"index.html", f"labs/{STEM}.html", f"solutions/{STEM}.html"}
    solved, lab = ((site / f"{place}/{STEM}.html").read_text() for place in ("solutions", "labs"))
    assert "What produced this page" in solved
    assert "too small to conclude from" in solved
    assert "BEGIN SOLUTION" not in solved
    assert "return</span> <span" in solved
    assert "torch 2" in solved
    assert PAUSED.search(solved)
    assert 'alt="Plot. A line; x: time (s)."' in solved
    assert "Page made on" in lab
    assert "NotImplementedError" in lab
    assert not PAUSED.search(lab)
    assert HINT in lab
    assert f'href="../solutions/{STEM}.html"' in lab
    home = (site / "index.html").read_text()
    assert f'href="labs/{STEM}.html"' in home
    assert "Page made on" in home


def test_a_dead_link_leaves_the_site_in_place_as_it_is(rendered, monkeypatch):
    monkeypatch.setenv(LOAD_VARIABLE, "quick")
    site, home = rendered / "site", (rendered / "site/index.html").read_text()
    (rendered / "README.md").write_text(README.replace("#latency", "#nowhere"))
    with pytest.raises(CourseError, match="nowhere"):
        make_site(rendered, site, solved=False, say=lambda _: None)
    assert (site / "index.html").read_text() == home
    learners = read_pages(rendered / ".site/learners/html")
    assert {path.stem for path in learners} >= {"index", STEM}
    assert not [path for path in learners if "solutions" in path.as_posix().split(".site")[1]]


@pytest.mark.skipif(not SITE.done(), reason="not set up here: make setup STEP=site")
def test_the_courses_own_documents_and_labs_render(tmp_path):
    make_site(ROOT, tmp_path / "site", solved=False, say=lambda _: None)
    quick = (tmp_path / "site/QUICKSTART.html").read_text()
    assert "first-plot.png" in quick
    assert (tmp_path / "site/labs/lab-3.3.7-production-api.html").is_file()


@pytest.mark.skipif(PROGRAM is None, reason="not run here: there is no Chromium")
def test_on_a_phone_nothing_sticks_out_and_a_hint_unfolds(rendered):
    async def work():
        async with asyncio.timeout(90), browser() as page:
            await page.phone(390, 844)
            await page.open((rendered / f"site/solutions/{STEM}.html").as_uri())
            assert await page.js("document.documentElement.scrollWidth") == 390
            hint = "document.querySelector('details p').checkVisibility()"
            assert not await page.js(hint)
            await page.js("document.querySelector('summary').click()")
            await page.until(hint)
            assert await page.js("document.querySelector('img.figure').naturalWidth") > 100
            assert await page.js("document.querySelectorAll('.toc-tree a').length") > 2
            assert page.errors == []

    asyncio.run(work())
