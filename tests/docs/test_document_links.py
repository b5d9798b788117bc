"""Links inside the course lead somewhere. `lychee` asks the links to other sites, once a week."""

import pytest
from documents import Document, anchors, links, read_documents

from utils.profiles import ROOT


def dead_links(document):
    faults = []
    for address in links(document.text):
        name, _, fragment = address.partition("#")
        target = document.folder / name
        if address.startswith(("http://", "https://")):
            continue
        if not target.exists():
            faults.append(f"{address}: there is no such file")
        elif fragment and fragment not in (
            known := anchors(target.read_text() if name else document.text)
        ):
            faults.append(f"{address}: the anchors are {', '.join(known)}")
    return faults


@pytest.mark.parametrize("document", read_documents(), ids=str)
def test_links_lead_somewhere(document):
    assert dead_links(document) == []


@pytest.mark.parametrize("link", ["READ.md", "README.md#no-such-heading", "#nor-this"])
def test_dead_link_is_found_when_planted(link):
    document = Document(ROOT / "README.md", f"[a]({link}) [b](README.md)", ROOT)
    assert len(dead_links(document)) == 1


def test_anchors_are_those_of_github():
    assert anchors("# A `b` c!\n\n# A b c\n") == ["a-b-c", "a-b-c-1"]
