"""The tables of versions in QUICK_REFERENCE.md."""

import pytest

from utils.course import versions
from utils.course.problems import CourseError
from utils.engines import ENGINES
from utils.setup.steps import ROOT

EMPTY = "".join(f"<!-- made: {name} -->\nold\n<!-- /made -->\n" for name in versions.TABLES)


def test_the_page_is_fresh(capsys):
    assert versions.check(ROOT) == 0
    assert "are what" in capsys.readouterr().out


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
    rows = versions.old_numbers_table(ROOT).splitlines()[2:]
    assert len(rows) == 6
    assert all("possible" in row for row in rows)


def test_a_stale_table_is_told_with_its_line_and_the_command(tmp_path, capsys):
    (tmp_path / versions.PAGE).write_text("# A\n" + EMPTY)
    assert versions.check(tmp_path) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{versions.PAGE}:3: ")
    assert versions.COMMAND in said
    versions.write(tmp_path)
    assert versions.check(tmp_path) == 0


def test_others_tables_are_left_alone_and_a_missing_place_is_named(tmp_path):
    other = "<!-- made: labs -->\nkept\n<!-- /made -->\n"
    assert other in versions.fresh(EMPTY + other, ROOT)
    with pytest.raises(CourseError, match="no place for the table"):
        versions.fresh(other, ROOT)
