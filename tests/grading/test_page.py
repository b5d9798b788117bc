"""The instructors' page shows what its commands print today."""

import pytest

from utils.course.labs import ROOT
from utils.course.page import PAGE, fresh_page


@pytest.mark.timeout(300)
def test_the_terminal_output_is_fresh():
    assert fresh_page(ROOT) == (ROOT / PAGE).read_text(), "make it again: make page"
