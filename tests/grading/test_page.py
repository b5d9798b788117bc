"""The instructors' page shows what its commands print today."""

import pytest

from tools.authoring.readme_output import PAGE, fresh_page
from utils.profiles import ROOT


@pytest.mark.timeout(300)
def test_the_terminal_output_is_fresh():
    assert fresh_page(ROOT) == (ROOT / PAGE).read_text(), "make it again: make page"
