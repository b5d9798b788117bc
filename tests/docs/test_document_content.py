"""Documents agree with the labs and with the code: generated tables, sections, pictures, versions, axes."""

import ast
import re

import pytest
from documents import read_documents

from tools.authoring import generated_tables
from tools.authoring.build import read_labs
from tools.lab.course_error import CourseError
from utils.engines import ENGINES
from utils.labs.lab_3_3_1.tables import FOLKLORE
from utils.profiles import ROOT

LABS = {lab.source.number: lab for lab in read_labs(ROOT)}
UNIT = re.compile(
    r"\((?:ms|s|%|tok/s|GB|GB/s|MiB)\b|\(%\)|milliseconds|seconds?\b|per second|\btimes\b|\bspeed-up|\bT\(n\)"
    r"|\b(?:tokens?|requests?|guesses|nodes?|place|share|loss|step|position|perplexity"
    r"|throughput over|cold over warm|seen)\b"
)


def sections(name, level="##"):
    """Return the text below each heading of a document."""
    found = re.split(rf"(?m)^{level} (.*)$", (ROOT / name).read_text())
    return dict(zip(found[1::2], found[2::2], strict=True))


@pytest.mark.parametrize("page", generated_tables.PAGES)
def test_generated_tables_are_fresh(page):
    text = (ROOT / page).read_text()
    assert generated_tables.fresh(text) == text, "Run make build."


def test_stale_table_is_replaced():
    page = (ROOT / "LAB_PREP.md").read_text()
    stale = page.replace("| vLLM | 8000 |", "| vLLM | 8001 |")
    assert stale != page
    assert generated_tables.fresh(stale) == page


def test_unknown_table_is_refused():
    with pytest.raises(CourseError, match="No table has the name 'weather'"):
        generated_tables.fresh("<!-- made: weather -->\n<!-- /made -->")


def test_looked_up_images_are_the_pinned_ones():
    pinned = {spec.container.image for spec in ENGINES.values() if spec.container}
    assert set(generated_tables.LOOKED_UP) == pinned


@pytest.mark.parametrize("document", read_documents(), ids=str)
def test_image_tags_are_the_pinned_ones(document):
    pinned = {spec.container.image for spec in ENGINES.values() if spec.container}
    named = [rf"(?<![\w./-]){re.escape(image.rpartition(':')[0])}:\w[\w.-]*\w" for image in pinned]
    assert set(re.findall("|".join(named), document.text)) <= pinned


def test_selection_guide_has_the_folklore_of_lab_3_3_1():
    guide = (ROOT / "QUICK_REFERENCE.md").read_text().partition("| use | usually said ")[2]
    rows = guide.partition("\n\n")[0].splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == list(FOLKLORE.values())


def test_pictures_are_in_the_table_and_break_somewhere():
    pictures = sections("ELI5.md")
    introduction = (ROOT / "ELI5.md").read_text().partition("\n## ")[0].lower()
    assert list(pictures)[-1] == "Explain it back"
    for heading in list(pictures)[:-1]:
        assert heading.partition(" (")[0].lower() in introduction
        assert "Where it breaks." in pictures[heading].replace("**", "")


@pytest.mark.parametrize("number", LABS)
def test_study_guide_names_sections_and_exercises_of_the_lab(number):
    lab, guide = LABS[number], sections("STUDY_GUIDE.md")
    text = next(text for heading, text in guide.items() if heading.startswith(f"Lab {number}: "))
    solved = "\n".join(part.solved for part in lab.parts)
    last = max(int(section) for section in re.findall(r"(?m)^## (\d+)\.", solved))
    outcomes = text.partition("| section |")[2].partition("\n\n")[0]
    named = re.findall(r"\d+", " ".join(row.split("|")[-2] for row in outcomes.splitlines()[2:]))
    assert max(map(int, named)) <= last
    quick = text.partition("**Quick path**")[2].partition("**Deep path**")[0]
    assert set(re.findall(r"`([a-z_]+)`", quick)) <= {exercise.id for exercise in lab.exercises}
    assert f"**Lab {number}.**" in sections("ELI5.md")["Explain it back"]


def axes_without_unit(source):
    """Return the labels of axes that name neither a unit nor the thing that is counted."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    setters = ("set_xlabel", "set_ylabel", "supxlabel", "supylabel")
    labels = [
        "".join(
            text
            for part in ast.walk(call.args[0])
            if isinstance(text := getattr(part, "value", ""), str)
        )
        for call in calls
        if getattr(call.func, "attr", "") in setters
    ]
    return [label for label in labels if label and not UNIT.search(label)]


def test_axes_have_units():
    files = [path for path in ROOT.glob("utils/**/*.py") if "label(" in path.read_text()]
    assert [label for path in files for label in axes_without_unit(path.read_text())] == []


def test_axis_without_unit_is_found_when_planted():
    assert axes_without_unit('a.set_xlabel("time (s)")\na.set_ylabel("how good")') == ["how good"]
