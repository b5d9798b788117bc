"""What documents and labs must not say is found, planted piece by piece; what they may say passes."""

import textwrap

import pytest

from tools.authoring import external_links, generated_tables, lab_structure_lint
from tools.authoring.__main__ import main
from tools.authoring.documents import read_document
from tools.authoring.exercises import read_lab
from tools.authoring.lab_source import read_source
from tools.authoring.markdown import anchors, read_blocks
from tools.authoring.messages import check_messages
from tools.authoring.number_sources_lint import KINDS, check_claims, results
from tools.authoring.references import check_links, check_names, check_sections, outside_links
from tools.authoring.snippets import check_code
from tools.lab.course_error import CourseError
from utils.benchmark.recommend import FOLKLORE
from utils.profiles import ROOT

PAGE = ROOT / "PLANTED.md"


def blocks(text):
    return read_blocks(text)


def claims(text, path=PAGE):
    return [problem.message for problem in check_claims(path, blocks(text), ROOT)]


def code(text, *, learner=True):
    return [
        p.message
        for b in blocks(text)
        if b.kind == "code"
        for p in check_code(PAGE, b, ROOT, learner=learner)
    ]


def names(text, *, learner=True):
    return [p.message for b in blocks(text) for p in check_names(PAGE, b, ROOT, learner=learner)]


def links(text, path=PAGE):
    return [problem.message for problem in check_links(path, blocks(text), ROOT)]


@pytest.fixture
def course(tmp_path):
    """The course by links, with documents of its own to spoil."""
    for entry in ROOT.iterdir():
        if entry.name not in ("README.md", "records", ".git", "solutions"):
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "README.md").write_text((ROOT / "README.md").read_text())
    (tmp_path / "solutions").mkdir()
    for entry in (ROOT / "solutions").iterdir():
        (tmp_path / "solutions" / entry.name).symlink_to(entry)
    return tmp_path


def test_each_planted_fault_of_a_document_is_found_and_nothing_else_is(course, capsys):
    readme = course / "README.md"
    readme.write_text(
        readme.read_text()
        + textwrap.dedent("""
        vLLM gives 4,321 tok/s on a DGX Spark.

        See [the guide](GUIDE.md), and [its end](STUDY_GUIDE.md#the-end).

            make coffee

        Look into `utils/benchmark/magic.py`, or at lab 3.3.9.
        """)
    )
    assert main(["--root", str(course), "docs"]) == 1
    said = capsys.readouterr().out
    for words in (
        "no origin of '4,321 tok/s'",
        "a link leads nowhere: GUIDE.md",
        "there is no heading STUDY_GUIDE.md#the-end",
        "there is no `make coffee`",
        "there is no utils/benchmark/magic.py",
        "there is no lab 3.3.9",
        "6 faults",
    ):
        assert words in said, said


@pytest.mark.parametrize(
    "claim",
    [
        "It gives 113 tok/s.",
        "It takes 2 minutes.",
        "It takes 5 min.",
        "It needs 2.1 GB.",
        "It needs 128GB.",
        "Memory reads 273 GB/s.",
        "It is 3.6 times as fast.",
        "A gain of 2.5×.",
        "It is right in 95 % of cases.",
        "Between 113 and 365 tok/s.",
        "It takes half an hour.",
        "This one is twice as fast.",
        "It is ten times faster.",
        "* a list item: 12 ms",
        "> quoted: 12 ms",
        "<details><summary>Why 12 ms?</summary>\n\nBecause.\n</details>",
        "| engine | speed |\n|---|---|\n| vLLM | 113 tok/s |",
        "| engine | throughput (tok/s) |\n|---|---|\n| vLLM | 113 |",
        "## It needs 3 GB",
        "It is measured: 12 ms.",
        "It was measured on 2026-13-45: 12 ms.",
        "It is cited: 12 ms.",
        "See [the card](models/tiny/README.md): it takes 77 minutes.",
        "Sources: [one](https://example.org/a). It takes 77 minutes.",
        "By formula 273 ÷ 16.1 = 19 tok/s.",
        "By formula 2 × 8 = 16 GB, and 9 GB more.",
    ],
)
def test_a_number_without_an_origin_is_found(claim):
    assert any("no origin" in message for message in claims(claim)), claims(claim)


@pytest.mark.parametrize(
    "sentence",
    [
        "It gives 113 tok/s (measured 2026-11-26, two cores).",
        "Measured on 2026-11-26:\n\n| engine | tok/s |\n|---|---|\n| vLLM | 113 |",
        "| engine | tok/s |\n|---|---|\n| vLLM | 113 |\n\n<!-- origin: measured: 2026-11-26 -->",
        "It gives 29 tok/s, says [LMSYS](https://lmsys.org/blog/2025-10-13-nvidia-dgx-spark/).",
        "The paper (arXiv 2309.06180) found 20.4 to 38.2 %.",
        "*Cited* elsewhere. It reads 273 GB/s (cited: `utils/roofline/published.py`).",
        "95 % are right, says [the card](models/tiny/README.md).",
        "8.19 × 2 = 16.4 GB.",
        "That is 100 GB ÷ 4 GB/s = 25 s. <!-- origin: cited: https://example.org -->",
        "At most 5 minutes. <!-- origin: setting: utils/profiles.py: time_budget_s=300.0 -->",
        "About 2 hours. <!-- origin: plan: a learner's time -->",
        "`--shm-size 32 GB`, and $t = 3 s$, and version 3.3.1 of lab 2, 8B, 95th, in 2026.",
        "| | |\n|---|---|\n| bytes | 2 × layers × KV heads |",
        "    sleep 30 s",
    ],
)
def test_a_number_with_an_origin_passes(sentence):
    assert claims(sentence) == []


@pytest.mark.parametrize(
    ("comment", "why"),
    [
        ("guess: it feels like it", "the kinds are"),
        ("measured: yesterday", "when was it measured"),
        ("cited: a colleague", "no address"),
        ("derived: 2 * 8 = 17", "no calculation"),
        ("setting: utils/profiles.py: time_budget_s=301.0", "does not hold these words"),
        ("setting: utils/nothing.py: 5", "no such file"),
        ("example: made up", "belong into labs"),
        ("plan", "a plan or an example of"),
    ],
)
def test_an_origin_that_is_none_is_found(comment, why):
    found = claims(f"It takes 5 minutes. <!-- origin: {comment} -->")
    assert any(why in message for message in found), found
    assert any("no origin of '5 minutes'" in message for message in found)


def test_an_origin_covers_what_it_is_about_alone():
    setting = "<!-- origin: setting: utils/profiles.py: time_budget_s=300.0 -->"
    assert claims(f"It takes 7 minutes. {setting}") == ["no origin of '7 minutes'"]
    assert claims("It takes 5 ms. <!-- origin: plan: work -->") == ["no origin of '5 ms'"]
    derived = "<!-- origin: derived: 2 * 8 = 16 -->"
    assert claims(f"It needs 16 GB and 17 GB. {derived}") == ["no origin of '17 GB'"]
    card = "<!-- origin: cited: models/tiny/README.md -->"
    assert claims(f"It was 92 minutes, or 93 minutes. {card}") == ["no origin of '93 minutes'"]


def test_made_up_numbers_are_for_exercises_and_pictures():
    text = "It takes 5 ms. <!-- origin: example: the question's -->"
    assert (
        claims(text, ROOT / "ELI5.md") == [] and claims(text, ROOT / "solutions" / "lab.py") == []
    )
    assert claims(text, ROOT / "README.md") != []


def test_an_origin_below_belongs_to_its_own_block():
    comment = "<!-- origin: measured: 2026-11-26 -->"
    assert claims(f"It takes 5 ms.\n\nAnd 6 ms.\n{comment}") == ["no origin of '5 ms'"]
    plan = "<!-- origin: plan: work -->"
    assert claims(f"It takes 2 hours.\n<!-- made: x -->\n{plan}") == []
    assert claims(f"<details><summary>Why 2 hours?</summary>\n\nSo. {plan}\n</details>") == []
    assert claims(f"<details><summary>2 hours?</summary>\n\nSo.\n</details>\n\nMore. {plan}") != []


def test_calculations_are_done_again():
    assert results("273 GB/s ÷ 16.1 GB = 17 tok/s; 1 - 34 / 64 = 0.47; (2 + 3) * 4 = 20") == [
        17,
        0.47,
        20,
    ]
    assert results("273 ÷ 16.1 = 18; 2 ** 9 = 512; 1 / 0 = 0") == []
    assert len(KINDS) == 6


def test_links_and_anchors():
    page = "[a](README.md) [b](README.md#what-runs-where) [c](#the-labs)"
    assert links(page, ROOT / "README.md") == []
    assert links("[a](READ.md) ![b](picture.png)") == [
        "a link leads nowhere: READ.md",
        "a link leads nowhere: picture.png",
    ]
    assert links("[a](README.md#no-such-heading)") == [
        "there is no heading README.md#no-such-heading"
    ]
    assert links("[a](../README.md)", ROOT / "solutions" / "lab-3.3.1-x.py") == []
    assert anchors(blocks("# A `b` c!\n\n# A b c\n")) == {"a-b-c", "a-b-c-1"}


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ("    make nothing", "there is no `make nothing`"),
        ("    make test", "there is no `make test` in a release"),
        ("    make lab LAB=9", "there is no lab 9"),
        ("    make setup STEP=vlm", "STEP=vlm: it is one of"),
        ('    make setup STEP="course vlm"', "STEP=course vlm: it is one of"),
        ("    COURSE_PROFILE=gpu make lab", "COURSE_PROFILE=gpu: it is one of"),
        ("    .venv/bin/python -m utils.magic", "there is no module utils.magic"),
        ("    python3 -m sglang.launch_servers", "there is no module sglang.launch_servers"),
        ("    echo a && cat utils/magic.py | wc", "there is no utils/magic.py"),
        ("    cat solutions/README.md", "solutions/README.md is not in a release"),
        ("    echo 'unclosed", "this shell does not parse"),
        ("```bash\nif true\n```", "this bash does not parse"),
        ("```python\ndef f(:\n```", "this python does not parse"),
        ("```python\nfrom utils.engines import starte\n```", "utils.engines has no starte"),
        ("```python\nimport utils.magic\n```", "utils has no magic"),
        ("```json\n{'a': 1}\n```", "this json does not parse"),
        ("```yaml\na: [1\n```", "this yaml does not parse"),
        ("```perl\n1;\n```", "'perl' is no kind of block"),
    ],
)
def test_code_that_does_not_work_is_found(block, fault):
    found = code(block)
    assert len(found) == 1 and fault in found[0], found


@pytest.mark.parametrize(
    "block",
    [
        "    make lab LAB=3  # another lab\n    COURSE_LOAD=quick make lab",
        "    .venv/bin/python -m utils.benchmark.first_request vllm",
        "    docker run -d \\\n      -v ~/.cache:/x image python3 -m sglang.launch_server --port 1 | cat",
        "    docker compose -f docker/compose.yaml up",
        "    cat labs/*.ipynb",
        "```python\nfrom utils.engines import launch\nawait launch\n```",
        '```json\n{"a": 1}\n```',
        "```yaml\na: [1]\n```",
        "```text\nmake coffee\n```",
    ],
)
def test_code_that_works_passes(block):
    assert code(block) == []


def test_instructors_have_more_commands(tmp_path):
    assert code("    make test\n    cat solutions/README.md", learner=False) == []
    text = "Type this:\n\n    make test\n"
    page = tmp_path / "PAGE.md"
    page.write_text(f"<!-- instructors -->\n{text}<!-- /instructors -->\n\n{text}")
    document = read_document(page)
    pairs = zip(document.blocks, document.learner, strict=True)
    assert [seen for block, seen in pairs if block.kind == "code"] == [False, True]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Type `make nothing`.", "there is no `make nothing`"),
        ("See `utils.engines.magic`.", "utils.engines has no magic"),
        ("See `utils/engines/magic.py`.", "there is no utils/engines/magic.py"),
        ("See `MAGIC.md`.", "there is no MAGIC.md"),
        ("See `tests/conftest.py`.", "tests/conftest.py is not in a release"),
        ("See lab 3.3.8.", "there is no lab 3.3.8"),
        ("Lab 3.3.5 (to come) does.", "that lab is there"),
    ],
)
def test_names_that_are_none_are_found(text, fault):
    found = names(text)
    assert len(found) == 1 and fault in found[0], found


def test_names_that_are_some_pass():
    assert (
        names("`make lab LAB=3`, `utils.engines.launch`, `launch('vllm')`, `labs/`, lab 3.3.7")
        == []
    )
    assert names("`utils/checks/lab_3_3_N.py`, `COURSE_LOAD=quick make lab`") == []


def test_sections_that_a_lab_does_not_have_are_found():
    table = "## Lab 3.3.1\n\n| what | section |\n|---|---|\n| a | 1 |\n| b | 2, 99 |\n"
    assert [p.message for p in check_sections(PAGE, blocks(table), ROOT)] == [
        "section 2, 99: the lab has 9"
    ]


def test_exercises_that_a_lab_does_not_have_are_found():
    text = "## Lab 3.3.1\n\n**Quick path**: do `goodput`, `good_put`. **Deep path**: `all`."
    found = [p.message for p in check_sections(PAGE, blocks(text), ROOT)]
    assert found == ["the lab has no exercise good_put"]


def messages(text):
    page = ROOT / "TROUBLESHOOTING.md"
    return [
        p.message
        for p in check_messages(page, blocks("# T\n\nx\n\n" + textwrap.dedent(text)), ROOT)
    ]


def test_messages_that_nothing_prints_are_found():
    assert messages("### `Port ... is in use by another program.`\n\n**Fix**: end it.") == []
    assert messages("### `Port ... is used by another program.`\n\n**Fix**: end it.") == [
        "utils does not say 'is used by another program'"
    ]
    assert messages("### A symptom without a message\n\nBecause.") == [
        "no fix of 'A symptom without a message'"
    ]


def test_messages_of_engines_are_looked_for_in_their_files():
    where = "<!-- from: course: sglang_router/sglang_router_rs.abi3.so -->"
    found = messages(
        f"### `StringOrArray`\n{where}\n\n**Fix**: x.\n\n### `No such words`\n{where}\n\n**Fix**: x."
    )
    assert found == ["course's sglang_router/sglang_router_rs.abi3.so does not say 'No such words'"]


LAB = """# %% [markdown]
# # Lab 3.3.1: a lab
#
# You will be able to
#
# * do it
#
# **Time**: soon. **It starts** nothing. **It writes** nothing.

# %%
import matplotlib.pyplot as plt

plots.plot_ridge_point(1)

# %% [markdown]
# *In the picture: a line.*
#
# ## Summary
#
# ## Questions
#
# <details><summary>1. Why?</summary>
#
# So.
# </details>
# <details><summary>2. Why?</summary>
#
# So.
# </details>
# <details><summary>3. Why?</summary>
#
# So.
# </details>
#
# ## What to try next
#
# * More.
"""


@pytest.mark.parametrize(
    ("cut", "put", "fault"),
    [
        ("nothing like this", "", ""),
        ("# You will be able to", "#", "does not open with a list of what a learner can do"),
        ("**Time**: soon. ", "", "does not open with how long it takes"),
        ("**It starts** nothing. ", "", "does not open with what it starts"),
        ("# *In the picture: a line.*", "# Then:", "a figure without words"),
        ("# ## Summary", "#", "does not close with a summary"),
        ("# ## What to try next", "#", "does not close with `What to try next`"),
        (
            "# <details><summary>3. Why?</summary>\n#\n# So.\n# </details>\n",
            "",
            "fewer than 3 questions",
        ),
        ("# So.\n# </details>\n#\n", "# So.\n#\n", "a fold that is not closed"),
    ],
)
def test_what_a_lab_lacks_is_found(tmp_path, cut, put, fault):
    path = tmp_path / "lab-3.3.1-a-lab.py"
    path.write_text(LAB.replace(cut, put))
    found = [
        problem.message for problem in lab_structure_lint.check_craft(read_lab(read_source(path)))
    ]
    assert any(fault in message for message in found) if fault else found == [], found


def test_an_axis_without_a_unit_is_found(tmp_path):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "plots.py").write_text(
        'axes.set_xlabel("time (s)")\naxes.set_ylabel("how good")\n'
    )
    assert [p.message for p in lab_structure_lint.check_axes(tmp_path)] == [
        "an axis without a unit: 'how good'"
    ]


def test_outside_links_are_listed_with_the_day_they_were_asked(tmp_path):
    (tmp_path / "solutions").mkdir()
    found = outside_links(
        blocks("[a](https://a.org/x) [b](http://127.0.0.1:8000) arXiv 2309.06180 `http://c.org`")
    )
    assert found == {"https://a.org/x", "https://arxiv.org/abs/2309.06180"}
    where = {link: {"README.md"} for link in found}
    assert len(external_links.check_page(where, tmp_path)) == 1
    assert external_links.write_page(where, tmp_path, asked=lambda link: None) == (0, [])
    assert external_links.check_page(where, tmp_path) == []
    assert "| never |" in (tmp_path / external_links.PAGE).read_text()
    asked = {"https://a.org/x": "404"}.get
    answered, wrong = external_links.write_page(where, tmp_path, asked=asked)
    assert answered == 1 and wrong == ["https://a.org/x: 404"]
    known = external_links.read_page(tmp_path)
    assert (
        known["https://a.org/x"].answer == "404"
        and known["https://a.org/x"].day != external_links.NEVER
    )
    assert known["https://arxiv.org/abs/2309.06180"].day == external_links.NEVER
    external_links.write_page(
        where, tmp_path, asked=lambda link: None
    )  # no network: nothing is forgotten
    assert external_links.read_page(tmp_path) == known
    assert len(external_links.check_page({"https://b.org": {"README.md"}}, tmp_path)) == 1


def test_tables_of_lab_prep_are_made_from_the_code():
    page = (ROOT / generated_tables.PAGES[0]).read_text()
    assert generated_tables.fresh(page) == page
    assert generated_tables.fresh(page.replace("| vLLM | 8000 |", "| vLLM | 8001 |")) == page
    assert "| SGLang | 30000 |" in page and "16.4 GB" in page
    with pytest.raises(CourseError, match="no table 'weather'"):
        generated_tables.fresh("<!-- made: weather -->\n<!-- /made -->")


def test_the_selection_guide_says_what_lab_3_3_1_calls_usual():
    rows = [block.rows for block in blocks((ROOT / "QUICK_REFERENCE.md").read_text()) if block.rows]
    guide = next(table for table in rows if table[0][:2] == ("use", "usually said"))
    assert [row[1] for row in guide[1:]] == list(FOLKLORE.values())


def sections_of(name):
    """Headings of a document, each with the text below it."""
    found = {}
    heading = ""
    for block in blocks((ROOT / name).read_text()):
        if block.kind == "heading":
            heading = block.text
        found.setdefault(heading, []).append(block.text)
    return {heading: "\n".join(said) for heading, said in found.items()}


def test_each_picture_is_in_the_table_and_says_where_it_breaks():
    title, *pictures, questions = sections_of("ELI5.md").items()
    assert questions[0] == "Explain it back"
    for heading, text in pictures:
        picture = heading.partition(" (")[0].lower()
        assert picture in title[1].lower(), heading
        assert "Where it breaks." in text, heading
    rows = title[1].count("\n") - 2  # without title, introduction and head
    assert rows == len(pictures)


def test_every_lab_is_in_the_study_guide_and_explained_back():
    guide = "".join(sections_of("STUDY_GUIDE.md"))
    back = sections_of("ELI5.md")["Explain it back"]
    for number in range(1, 8):
        assert f"Lab 3.3.{number}: " in guide and f"**Lab 3.3.{number}.**" in back


def test_a_stale_table_is_found(course):
    (course / generated_tables.PAGES[0]).unlink()
    text = (
        (ROOT / generated_tables.PAGES[0]).read_text().replace("| vLLM | 8000 |", "| vLLM | 8001 |")
    )
    (course / generated_tables.PAGES[0]).write_text(text)
    assert [problem.message for problem in generated_tables.check_prep(course)] == [
        "a table is stale"
    ]
