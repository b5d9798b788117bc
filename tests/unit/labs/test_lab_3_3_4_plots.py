"""The pictures of labs 3.3.4 and 3.3.5 show what they are given."""

import matplotlib.colors
import pytest

from utils.labs.lab_3_3_4 import plots
from utils.speculative.training import LogLine
from utils.speculative.tree import DraftTree

PARENTS = [-1, 0, 0, 1, 1, 2]


def test_a_tree_is_drawn_by_depth_with_its_mask_beside_it():
    mask = DraftTree(PARENTS).mask.tolist()
    figure = plots.plot_tree(PARENTS, mask, [f"n{i}" for i in range(6)], accepted=[0, 2, 5])
    left, right = figure.axes
    at = {text.get_text(): text.get_position() for text in left.texts}
    assert [at[f"n{i}"][0] for i in range(6)] == [0, 1, 1, 2, 2, 2]
    assert len({at[f"n{i}"][1] for i in (3, 4, 5)}) == 3, "each leaf has a line of its own"
    assert at["n1"][1] == (at["n3"][1] + at["n4"][1]) / 2
    assert right.images[0].get_array().tolist() == [[int(seen) for seen in row] for row in mask]
    orange = matplotlib.colors.to_rgba(plots.ORANGE)
    filled = [t.get_text() for t in left.texts if t.get_bbox_patch().get_facecolor() == orange]
    assert filled == ["n0", "n2", "n5"]
    assert [line.get_color() for line in left.lines].count(plots.ORANGE) == 2


def test_a_root_alone_is_a_tree_too():
    (axes,) = plots.plot_tree([-1]).axes
    assert [text.get_text() for text in axes.texts] == ["0"]


def test_training_shows_loss_and_each_head():
    log = [LogLine(10, 5.0, [0.2, 0.1], 1.0), LogLine(20, 3.0, [0.5, 0.3], 2.0)]
    left, right = plots.plot_training({"mine": log}).axes
    assert left.lines[0].get_ydata().tolist() == [5.0, 3.0]
    assert [line.get_label() for line in right.lines] == ["head 0", "head 1"]
    assert right.lines[1].get_ydata().tolist() == [10.0, 30.0]
    both = plots.plot_training({"a": log, "b": log}, part="step").axes[1]
    assert both.lines[3].get_label() == "b, step 1"


def test_accuracy_is_a_line_per_name():
    (axes,) = plots.plot_accuracy({"code": [0.8, 0.5], "prose": [0.3]}).axes
    assert [line.get_label() for line in axes.lines] == ["code", "prose"]
    assert axes.lines[0].get_ydata() == pytest.approx([80, 50])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["head 0", "head 1"]


def test_costs_are_ratios_to_one_node():
    (axes,) = plots.plot_costs({1: 0.01, 9: 0.02}).axes
    assert axes.lines[0].get_ydata() == pytest.approx([1, 2])
    assert axes.lines[1].get_ydata() == pytest.approx([1, 9])


def test_speedups_are_ordered_by_size():
    figure = plots.plot_speedups(
        {"large": 17, "small": 5},
        {"large": 1.1, "small": 1.4},
        {"large": [1.0, 1.2, 1.1], "small": [1.5, 1.3, 1.4]},
        {"large": 3.0, "small": 2.0},
    )
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        "small\n(5 nodes)",
        "large\n(17 nodes)",
    ]
    by_label = {line.get_label(): line for line in axes.lines}
    assert by_label["speed-up, predicted"].get_ydata() == pytest.approx([1.4, 1.1])
    assert by_label["tokens a step, measured"].get_ydata() == pytest.approx([2.0, 3.0])
    measured = axes.containers[0].lines[0]
    assert measured.get_ydata() == pytest.approx([1.4, 1.1])
