"""A course of one sample lab becomes a site: executed once, kept, rendered, or refused."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest
from chromium import PROGRAM, browser

from tools.authoring import site
from tools.authoring.build import build
from tools.authoring.release import FILES
from tools.authoring.site import make_site
from tools.lab.course_error import CourseError
from utils.profiles import ENVIRONMENT_VARIABLE, LOAD_VARIABLE

SAMPLE = Path(__file__).parent / "sample"
STEM = "lab-3.3.99-sample"
SOURCE = f"solutions/{STEM}.py"
README = f"""# Sample course

[The lab](labs/{STEM}.ipynb), [its beginning](labs/{STEM}.ipynb#latency), [documents](docs), [guide](GUIDE.md)

## How you work

Each lab links here.
"""
FIGURE = """
# %%
import matplotlib.pyplot as plt

print("first", end="")
print("\\rsecond in", __import__("os").path.basename(__import__("os").getcwd()))
axes = plt.figure().add_subplot(title="A line", xlabel="time (s)")
axes.plot([0, 1]);
"""
PAUSED = re.compile(r"paused for \d+\.\d\d s")  # as printed, not as in the code

pytestmark = pytest.mark.skipif(
    not (site.SITE_ENV / "bin" / "python").is_file(), reason="not set up: make setup STEP=site"
)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Sets the profile and the load of all of these tests, and where the sample's checks are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOAD_VARIABLE, "quick")
        patch.setenv(ENVIRONMENT_VARIABLE, "cpu")
        patch.delenv("GITHUB_REPOSITORY", raising=False)
        patch.setenv("PYTHONPATH", str(SAMPLE))
        yield


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The sample's course with its site in `site/`."""
    root = tmp_path_factory.mktemp("site") / "course"
    for folder in ("docs", "labs", "solutions/grading", "tools"):
        (root / folder).mkdir(parents=True)
    for name in FILES:
        (root / name).touch()
    (root / SOURCE).write_text((SAMPLE / f"{STEM}.py").read_text() + FIGURE)
    (root / "README.md").write_text(README)
    for name in (
        "QUICK_REFERENCE",
        "ELI5",
        "TROUBLESHOOTING",
        "STUDY_GUIDE",
    ):  # each lab links to them
        (root / f"{name}.md").write_text(f"# {name}\n")
    (root / "GUIDE.md").write_text("# Guide\n\n[back](README.md#sample-course)\n")
    build(root)
    make_site(root, root / "site")
    return root


@pytest.fixture
def copy(course, tmp_path):
    """A copy of it, to change."""
    return shutil.copytree(course, tmp_path / "course")


def change(path, before, after):
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))


def page(root, place):
    return (root / f"site/{place}.html").read_text()


def test_solution_shows_code_outputs_and_provenance(course):
    solved = page(course, f"solutions/{STEM}")
    assert PAUSED.search(solved)
    assert "BEGIN SOLUTION" not in solved
    assert "Executed on" in solved
    assert "too small to conclude from" in solved
    assert "second in solutions" in solved
    assert "first" not in re.findall(r"<pre>.*?second in.*?</pre>", solved, re.DOTALL)[-1]
    assert 'alt="Plot. A line; x: time (s)."' in solved
    assert str(course) not in solved


def test_lab_shows_hints_but_no_outputs(course):
    lab = page(course, f"labs/{STEM}")
    assert "Nothing on this page was executed" in lab
    assert "NotImplementedError" in lab
    assert "<details><summary>Hint</summary>" in lab
    assert f'href="../solutions/{STEM}.html"' in lab
    assert not PAUSED.search(lab)


def test_home_links_pages_but_no_folder_without_page(course):
    home = page(course, "index")
    assert f'href="labs/{STEM}.html#latency"' in home
    assert 'href="GUIDE.html"' in home
    assert ">documents<" in home
    assert 'href="docs' not in home


def test_pages_need_no_network(course):
    for path in (course / "site").rglob("*.html"):
        assert not re.search(r'<(script|img)[^>]* src="(https?:)?//', path.read_text()), path


def test_notebook_is_executed_again_when_its_code_changes(copy, capfd):
    before = PAUSED.search(page(copy, f"solutions/{STEM}"))[0]
    change(copy / SOURCE, "It proves the way", "It shows the way")
    build(copy)
    make_site(copy, copy / "site")
    assert "Using cached notebook" in capfd.readouterr().out
    assert before in page(copy, f"solutions/{STEM}")
    assert "It shows the way" in page(copy, f"solutions/{STEM}")
    change(copy / SOURCE, "paused for", "slept for")
    build(copy)
    make_site(copy, copy / "site")
    assert "Executed notebook in" in capfd.readouterr().out
    assert not PAUSED.search(page(copy, f"solutions/{STEM}"))


def test_failing_cell_leaves_earlier_site(copy, capfd):
    home = page(copy, "index")
    change(copy / SOURCE, "return at - scheduled", "return at")
    change(copy / "README.md", "# Sample course", "# Another title")
    build(copy)
    with pytest.raises(CourseError, match="because of the warnings above"):
        make_site(copy, copy / "site")
    error = capfd.readouterr().err
    assert f"{STEM}.ipynb: WARNING: Executing notebook failed" in error
    assert "ttft = checks.ttft(ttft)" in error
    assert page(copy, "index") == home


@pytest.mark.parametrize(
    ("before", "after"),
    [("#latency", "#nowhere"), ("GUIDE.md", "NOWHERE.md"), ("[guide]", "![](docs/a.png) [guide]")],
)
def test_dead_link_or_silent_picture_leaves_earlier_site(copy, capfd, before, after):
    (copy / "docs/a.png").touch()
    home = page(copy, "index")
    change(copy / "README.md", before, after)
    with pytest.raises(CourseError):
        make_site(copy, copy / "site", execute=False)
    assert "README.md:3: WARNING" in capfd.readouterr().err
    assert page(copy, "index") == home


@pytest.mark.parametrize("execute", [False, True])
def test_learners_site_has_no_solution(course, tmp_path, execute):
    target = tmp_path / "site"
    make_site(course, target, solved=False, execute=execute)
    lab = (target / f"labs/{STEM}.html").read_text()
    assert "codespaces.new" not in lab
    assert bool(PAUSED.search(lab)) == execute
    assert not (target / "solutions").exists()
    for path in target.rglob("*.*"):
        assert "no chunk with text" not in path.read_text(errors="replace"), path


def test_own_documents_and_labs_render(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/course")
    make_site(site.ROOT, tmp_path / "site", solved=False, execute=False)
    lab = (tmp_path / "site/labs/lab-3.3.7-production-api.html").read_text()
    assert 'href="https://codespaces.new/owner/course">Open in Codespaces</a>' in lab
    assert "first-plot.png" in (tmp_path / "site/QUICKSTART.html").read_text()


@pytest.mark.skipif(PROGRAM is None, reason="not run here: there is no Chromium")
def test_page_fits_a_phone_and_a_hint_unfolds(course):
    async def work():
        async with asyncio.timeout(90), browser() as page:
            await page.phone(390, 844)
            await page.open((course / f"site/solutions/{STEM}.html").as_uri())
            assert await page.js("document.documentElement.scrollWidth") == 390
            hint = "document.querySelector('details p').checkVisibility()"
            assert not await page.js(hint)
            await page.js("document.querySelector('summary').click()")
            await page.until(hint)
            assert await page.js("document.querySelector('.cell_output img').naturalWidth") > 100
            assert page.errors == []

    asyncio.run(work())
