"""The sources of the site: links, contents, what stays out of it."""

import base64

import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tools.lab.course_error import CourseError
from tools.site.figures import to_files, words
from tools.site.pages import HOME, Pages, contents

README = """# Course

[Guide](GUIDE.md#part), [Extra](EXTRA.md), [the card](models/tiny), [code](utils), [licence](LICENSE "text"),
[elsewhere](https://example.org), `[no](link.md)`, [up](#course), `[nor
this](one.md)`

![What is
seen](docs/seen.png)
<!-- instructors -->
[Secrets](solutions/README.md)
<!-- /instructors -->

```python
print("[no](link.md)")
```
"""


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "course"
    for folder in ("models/tiny", "utils", "solutions"):
        (root / folder).mkdir(parents=True)
    (root / "README.md").write_text(README)
    (root / "GUIDE.md").write_text("# Guide\n\n[home](README.md)\n")
    (root / "EXTRA.md").write_text("# Extra\n")
    (root / "ALSO.md").write_text("# Also\n")
    (root / "models/tiny/README.md").write_text("# Card\n\n[guide](../../GUIDE.md)\n")
    (root / "solutions/README.md").write_text("# For instructors\n")
    (root / "LICENSE").write_text("MIT")
    (root / "docs").mkdir()
    (root / "docs/seen.png").write_text("a picture")
    return root


def write(root, solved=True):
    pages = Pages(root, root / ".site/source", root / ".site/extra", solved, "*made*")
    pages.write([], {})
    return pages.folder


def test_links_lead_to_pages_and_to_files_beside_them(root):
    folder = write(root)
    home = (folder / "index.md").read_text()
    assert "[Guide](GUIDE.md#part)" in home
    assert "[the card](models/tiny/README.md)" in home
    assert '[licence](LICENSE "text")' in home
    assert (folder / "LICENSE").read_text() == "MIT"
    assert " code, " in home, "a folder without a page is no link"
    assert (folder / "docs/seen.png").is_file(), "its text goes over the end of a line"
    assert "`[nor\nthis](one.md)`" in home
    assert "`[no](link.md)`" in home
    assert 'print("[no](link.md)")' in home
    assert "[home](index.md)" in (folder / "GUIDE.md").read_text()
    assert "[guide](../../GUIDE.md)" in (folder / "models/tiny/README.md").read_text()
    assert home.index("GUIDE\n") < home.index("EXTRA\n") < home.index("ALSO\n"), (
        "as README names them"
    )
    assert "*made*" in home


def test_a_link_that_leads_nowhere_is_named_with_its_page(root):
    (root / "GUIDE.md").write_text(
        "# Guide\n\n[lost](labs/gone.ipynb)\n[out](../../../etc/passwd)\n"
    )
    with pytest.raises(CourseError) as error:
        write(root)
    assert "GUIDE.md: [lost] leads to labs/gone.ipynb" in str(error.value)
    assert "GUIDE.md: [out]" in str(error.value)


def test_learners_get_no_solutions(root):
    folder = write(root, solved=False)
    assert "Secrets" not in (folder / "index.md").read_text()
    assert not (folder / "solutions").exists()
    assert "Solved" not in contents([HOME], ["lab"], [])


def test_pictures_become_files_with_words(tmp_path):
    figure = Figure(figsize=(6.4, 4.8))
    axes = figure.add_subplot(title="Two lines", xlabel="time (s)", ylabel="tok/s")
    axes.plot([0, 1], label="<vLLM>")
    axes.legend()
    expected = "Plot. Two lines; x: time (s); y: tok/s; shown: <vLLM>."
    assert words(figure) == expected
    figure.savefig(tmp_path / "f.png", dpi=20)
    picture = (tmp_path / "f.png").read_bytes()
    data = {"image/png": base64.b64encode(picture).decode(), "text/plain": words(figure)}
    notebook = new_notebook(cells=[new_code_cell(outputs=[new_output("display_data", data)])])
    to_files(notebook, tmp_path / "figures", "../figures")
    (file,) = (tmp_path / "figures").iterdir()
    assert file.read_bytes() == picture
    html = notebook.cells[0].outputs[0].data["text/html"]
    assert 'alt="Plot. Two lines; x: time (s); y: tok/s; shown: &lt;vLLM&gt;."' in html
    assert f'src="../figures/{file.name}" width="128" height="96"' in html
    figure.set_label("what the course says")
    assert words(figure) == "what the course says"
