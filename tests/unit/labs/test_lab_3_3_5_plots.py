"""Lab 3.3.5's pictures on made-up numbers: what they show, not how they look."""

import matplotlib.pyplot as plt
import pytest

from utils.labs.lab_3_3_5 import plots
from utils.labs.lab_3_3_5.experiments import Expansion, Level
from utils.speculative.comparison import SpeculationResult
from utils.speculative.generate import Generation
from utils.speculative.ttt import ttt_mask


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    assert plt.get_fignums() == []


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def drawn(figure):
    figure.canvas.draw()
    return figure.axes


def test_the_mask_has_a_box_per_key_and_the_seen_are_filled():
    (axes,) = drawn(plots.plot_mask(ttt_mask(3, 1)))
    white = [p for p in axes.patches if p.get_facecolor() == (1, 1, 1, 1)]
    assert len(axes.patches) == 18 and len(white) == 18 - 6 - 3


def test_a_line_per_draft():
    (axes,) = drawn(plots.plot_steps({"a": [0.5, 0.4], "b": [0.9, 0.8, 0.7]}))
    assert labels(axes) == ["a", "b"]
    assert list(axes.lines[1].get_ydata()) == [90, 80, 70]


def test_the_tree_is_drawn_with_what_is_kept_and_accepted():
    tree = Expansion([-1, 0, 0, 1], [1.0, 0.6, 0.3, 0.5], [7, 8, 9, 8], [7, 8, 5])
    (axes,) = drawn(plots.plot_expansion(tree, [0, 1, 3], lambda token: f"t{token}"))
    texts = {text.get_text(): text for text in axes.texts}
    assert set(texts) == {"'t7'", "'t8' 0.60", "'t9' 0.30", "'t8' 0.50"}
    colours = {name: text.get_color() for name, text in texts.items()}
    assert colours["'t7'"] == colours["'t8' 0.60"] == plots.GREEN
    assert colours["'t9' 0.30"] == plots.DROPPED and colours["'t8' 0.50"] == plots.BLUE


def outcome(name, speedup):
    return SpeculationResult(
        name, [Generation([1], [1, 2], [1], [3])], [9.0], [speedup, speedup], 1.0, 0.1
    )


def test_every_method_but_plain_has_two_bars():
    found = {name: outcome(name, 1.5) for name in ("plain", "a", "b")}
    left, right = drawn(plots.plot_results(found, found))
    assert [t.get_text() for t in left.get_yticklabels()] == ["a", "b"]
    assert len(right.patches) == 4


def test_formula_and_points():
    (axes,) = drawn(plots.plot_chains({1: 1.2, 2: 1.4}, {2: 1.3}))
    assert labels(axes) == ["your formula", "measured"]


def test_a_line_per_temperature_of_ratios():
    plain = [Level(n, t, (10.0,), 1.0) for t in (0.0, 1.0) for n in (1, 8)]
    actual = [Level(n, t, (15.0, 5.0), 2.0) for t in (0.0, 1.0) for n in (1, 8)]
    (axes,) = drawn(plots.plot_crossover({"plain": plain, "E": actual}))
    assert labels(axes) == ["E, temperature 0", "E, temperature 1"]
    assert list(axes.lines[0].get_ydata()) == [1.0, 1.0]
