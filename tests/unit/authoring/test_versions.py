"""The tables of versions in QUICK_REFERENCE.md."""

from tools.authoring import versions
from utils.engines import ENGINES
from utils.profiles import ROOT


def test_every_pinned_image_is_in_the_table_and_none_that_is_not_pinned_is_looked_up():
    table = versions.images_table(ROOT)
    pinned = [spec.container.image for spec in ENGINES.values() if spec.container]
    assert all(f"`{image}`" in table for image in pinned)
    assert set(versions.LOOKED_UP) == set(pinned)


def test_the_versions_are_those_of_the_specs():
    table = versions.versions_table(ROOT)
    for spec in ENGINES.values():
        assert f"| {spec.title} | {spec.local.version if spec.local else 'not run here'} |" in table


def test_each_old_number_has_a_verdict():
    rows = versions.old_numbers_table(ROOT).splitlines()[2:-2]
    assert len(rows) == 6
    assert all("possible" in row for row in rows)
