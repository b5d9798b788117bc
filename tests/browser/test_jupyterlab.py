"""The labs in JupyterLab, as `make lab` starts it, in headless Chromium.

In lab 3.3.1 the first plot of a real engine is seen, and a learner's own benchmark interrupted. With
`COURSE_BROWSER=all`, every lab is opened (it renders, its table of contents works, a hint unfolds) and goes
the whole way: an exercise is solved by typing, *Run All*, every output looked at. That takes longer than
executing them, which tests/notebooks does too, so it is done where it is asked for:
`COURSE_BROWSER=all pytest tests/browser/test_jupyterlab.py`, or `-k "whole_way and 3.3.4"` for one of them.

`COURSE_SCREENSHOTS=folder` (`make screenshots`: docs/images) writes pictures of what was seen on the way.
"""

import asyncio
import json
import os
import shutil
import sys
import time
import uuid
from pathlib import Path

import pytest
from chromium import PROGRAM, browser
from lab_server import serving
from notebook_page import NotebookPage
from notebook_run import MARK, survivors

from tools.authoring.solution_markers import BEGIN, END
from utils.profiles import LOAD_VARIABLE, ROOT, load_profile

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="not run here: there is no Chromium")
STEMS = sorted(path.stem for path in (ROOT / "solutions").glob("lab-*.py"))
ON_REQUEST = pytest.mark.skipif(
    os.environ.get("COURSE_BROWSER") != "all", reason="not asked for: COURSE_BROWSER=all"
)
LIMIT_S = int(3 * load_profile().time_budget_s)
START_S = load_profile().start_timeout_s
WALL = 60  # lines of plain text that one cell may print
OWN = ("jupyterlab", "ipykernel_launcher")  # processes that are no engine
BENCHMARK = """from utils.engines import launch
with launch("llama_cpp", profile) as engine:
    client = chat_client(engine)
    for seed in range(100):
        run(client, prompts(profile, 16, seed=seed), ClosedLoop(4), label="mine")"""


def visit(released, tmp_path, stem, work, limit_s=500):
    """Starts JupyterLab on a lab, hands `work` the notebook's page, and wants nothing left running."""
    shutil.rmtree(released / ".run" / "workspaces", ignore_errors=True)  # tabs of the test before
    mark = uuid.uuid4().hex
    command = [
        sys.executable,
        "-m",
        "tools.lab",
        "--root",
        str(released),
        "open",
        stem,
        "--headless",
    ]
    env = {
        MARK: mark,
        LOAD_VARIABLE: "quick",
        "PYTHONPATH": str(released),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "settings"),  # not those of whoever runs the tests
    }

    async def look(served):
        async with asyncio.timeout(limit_s), browser() as page:
            await page.screen(1100, 700)
            await work(NotebookPage(page), served.page, mark)

    with serving(command, released, tmp_path / "log", env) as served:
        asyncio.run(look(served))
    assert served.process.returncode == 0, (tmp_path / "log").read_text()
    assert [process.cmdline() for process in survivors(mark)] == []


def cells_of(folder, stem):
    return json.loads((folder / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]


def place_of(cells, id_):
    return next(index for index, cell in enumerate(cells) if cell["id"] == id_)


def headings_of(cells):
    """Headings in a notebook's markdown, as a table of contents shows them."""
    lines = [
        line
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).splitlines()
    ]
    return [line.lstrip("#").strip().replace("`", "") for line in lines if line.startswith("#")]


async def screenshot(notebook, name, element):
    """A picture for the documents, where they are asked for."""
    folder = os.environ.get("COURSE_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        await notebook.scroll_to(element)
        await notebook.page.picture(Path(folder) / f"{name}.png")


@ON_REQUEST
@pytest.mark.timeout(600)
def test_every_lab_opens(released, tmp_path):
    async def work(notebook, url, mark):
        for stem in STEMS:
            cells = cells_of(released / "labs", stem)
            await notebook.open(url.replace(STEMS[0], stem) + "&reset", len(cells))
            headings = headings_of(cells)
            assert await notebook.contents() == headings
            await notebook.go_to(headings[-1])
            assert len(await notebook.open_hint()) > 20
            assert await notebook.dialogs() == []
            assert [cell.index for cell in await notebook.shown() if cell.raw] == [], "formulas"
            await notebook.close()

    visit(released, tmp_path, STEMS[0], work)


@pytest.mark.engine
@pytest.mark.timeout(2 * START_S + 240)
def test_an_interrupted_benchmark_leaves_no_engine(released, tmp_path):
    stem = STEMS[0]
    cells = cells_of(released / "labs", stem)
    measuring = next(
        i for i, cell in enumerate(cells) if "measures" in cell["metadata"].get("tags", [])
    )

    async def work(notebook, url, mark):
        await notebook.open(url, len(cells))
        await notebook.select(measuring)
        await notebook.menu("Run", "notebook:run-all-above")
        await notebook.settled(START_S)
        await notebook.select(measuring)
        await notebook.run_selected()
        await notebook.settled(START_S)
        (first,) = (await notebook.shown())[measuring].pictures
        assert first[0] > 300, "the first plot of a real engine"
        await screenshot(notebook, "first-plot", notebook.cell(measuring))
        vllm = survivors(mark, 0, OWN)
        assert vllm, "the notebook keeps this engine until it is closed"

        await notebook.select(measuring)
        await notebook.button("insert")
        await notebook.write(measuring + 1, BENCHMARK)
        await notebook.run_selected()
        bar = rf"/mine.*[1-9]\d*\/16/s.test({notebook.cell(measuring + 1)}.textContent)"
        await notebook.page.until(bar, 60)
        running = survivors(mark, 0, OWN)
        assert set(running) > set(vllm)
        await notebook.button("interrupt")
        await notebook.settled(30)
        shown = (await notebook.shown())[measuring + 1]
        assert len(shown.errors) == 1
        assert "LoadInterrupted" in shown.errors[0], "an interrupt that keeps the results"
        deadline = time.monotonic() + 5
        while set(left := survivors(mark, 0, OWN)) - set(vllm):
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            await asyncio.sleep(0.2)

        await notebook.write(measuring + 1, "print(first.running())")
        await notebook.run_selected()
        await notebook.settled(30)
        assert (await notebook.shown())[measuring + 1].text.strip() == "True", "the kernel goes on"
        await notebook.close()
        assert survivors(mark, 20, OWN) == [], "a closed notebook stops its engines"

    visit(released, tmp_path, stem, work, 2 * START_S + 180)


@ON_REQUEST
@pytest.mark.engine
@pytest.mark.timeout(LIMIT_S + 120)
@pytest.mark.parametrize("stem", STEMS)
def test_a_lab_goes_the_whole_way(released, tmp_path, stem):
    cells = cells_of(released / "labs", stem)
    solved = cells_of(ROOT / "solutions", stem)
    exercise = next(cell["id"] for cell in cells if cell["id"].startswith("exercise-"))
    name = exercise.removeprefix("exercise-")
    check = place_of(cells, f"check-{name}")

    async def work(notebook, url, mark):
        await notebook.open(url, len(cells))
        await notebook.contents()
        await notebook.open_hint()
        lines = "".join(solved[place_of(solved, exercise)]["source"]).splitlines()
        answer = "\n".join(line for line in lines if line.strip() not in (BEGIN, END))
        await notebook.write(place_of(cells, exercise), answer)
        await notebook.menu("Run", "runmenu:run-all")
        await notebook.settled(LIMIT_S)
        shown = await notebook.shown()
        report(stem, cells, shown)
        assert [cell.errors for cell in shown if cell.errors] == []
        assert [cell.index for cell in shown if cell.code and not cell.ran] == []
        assert await notebook.dialogs() == []
        assert f"✔ {name}: right." in shown[check].text
        green = f"{notebook.cell(check)}.querySelector('.jp-OutputArea-output')"
        color = f"getComputedStyle({green}.querySelector('[style]') ?? {green}).color"
        assert await notebook.page.js(color) == "rgb(21, 128, 61)"
        await screenshot(notebook, "exercise-solved", notebook.cell(check))
        others = [c["id"] for c in cells if c["id"].startswith("check-")][1:]
        for id_ in others:
            assert "not attempted" in shown[place_of(cells, id_)].text
        for index, cell in enumerate(cells):
            if "measures" in cell["metadata"].get("tags", []):
                assert shown[index].text.strip() or shown[index].pictures, (
                    f"{cell['id']} shows nothing"
                )
        assert {c.index: c.lines for c in shown if c.lines > WALL} == {}
        assert all(rows for cell in shown for rows in cell.tables), "a table without rows"
        assert sum(len(cell.tables) + len(cell.pictures) for cell in shown) >= 3
        for cell in shown:
            assert all(width > 100 and over <= 0 for width, over, _ in cell.pictures), cell
        await notebook.close()
        assert survivors(mark, 20, OWN) == [], "a closed notebook stops its engines"

    visit(released, tmp_path, stem, work, LIMIT_S + 60)


def report(stem, cells, shown):
    """What was seen, for whoever runs this with -s."""
    code = [cell for cell in shown if cell.code]
    print(
        f"\n{stem}: {len(code)} code cells, {sum(len(c.tables) for c in code)} tables, "
        f"{sum(len(c.pictures) for c in code)} pictures, longest text {max(c.lines for c in code)} lines"
    )
    for cell in code:
        if cell.warnings or cell.wide or cell.lines > 30:
            print(
                f"  {cells[cell.index]['id']}: {cell.lines} lines, wide {cell.wide}, {cell.warnings}"
            )
