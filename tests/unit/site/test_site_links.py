"""What is wrong with rendered pages: each fault is found, and a good site has none."""

import pytest

from tools.site.links import faults

GOOD = """<html><head><link rel="stylesheet" href="_static/a.css"><script src="_static/a.js"></script></head>
<body><h1 id="top">T</h1><a href="#top">up</a><a href="labs/one.html#place">one</a>
<a href="https://example.org/gone">elsewhere</a><a href="labs/">labs</a>
<img alt="a plot" src="figures/f.png"><img alt="inside" src="data:image/png;base64,AA=="></body></html>"""


@pytest.fixture
def site(tmp_path):
    for name in ("_static/a.css", "_static/a.js", "figures/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "labs").mkdir()
    (tmp_path / "labs/one.html").write_text(
        '<p id="place">here</p><a href="../index.html">home</a>'
    )
    (tmp_path / "labs/index.html").write_text("<p>labs</p>")
    (tmp_path / "index.html").write_text(GOOD)
    return tmp_path


def test_a_good_site_has_no_fault(site):
    assert list(faults(site)) == []


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("labs/one.html#place", "labs/two.html", "labs/two.html: no such file"),
        ("one.html#place", "one.html#elsewhere", "one.html#elsewhere: no such place on that page"),
        ('"#top"', '"#bottom"', "#bottom: no such place on that page"),
        ("figures/f.png", "figures/g.png", "needs figures/g.png: no such file"),
        ('alt="a plot"', 'alt=" "', "a picture without alternative text: figures/f.png"),
        ("a plot", "&lt;Figure size 9x9>", "a picture without alternative text: figures/f.png"),
        ("_static/a.js", "https://cdn.example.org/a.js", "needs the network for https://cdn"),
        ("_static/a.css", "//cdn.example.org/a.css", "needs the network for //cdn"),
    ],
)
def test_each_fault_is_found_and_named(site, before, after, fault):
    assert before in GOOD
    (site / "index.html").write_text(GOOD.replace(before, after))
    (found,) = faults(site)
    assert found.startswith("index.html: ")
    assert fault in found
