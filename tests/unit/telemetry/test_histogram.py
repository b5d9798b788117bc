import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.telemetry import Histogram

BOUNDS = (0.1, 0.2, 0.5, 1.0, math.inf)


def of(values, bounds=BOUNDS):
    return Histogram(bounds, tuple(sum(v <= b for v in values) for b in bounds), sum(values))


@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=60), st.floats(0, 1))
def test_a_quantile_is_off_by_at_most_its_bucket(values, q):
    estimate = of(values).quantile(q)
    exact = np.quantile(values, q, method="inverted_cdf")
    index = next(i for i, bound in enumerate(BOUNDS) if exact <= bound)
    low = BOUNDS[index - 1] if index else 0.0
    assert low - 1e-9 <= estimate <= BOUNDS[index] + 1e-9


@given(st.lists(st.floats(0, 2), max_size=30), st.lists(st.floats(0, 2), max_size=30))
def test_a_difference_is_the_histogram_of_what_came_between(first, then):
    between = of(first + then).since(of(first))
    assert between.cumulative == of(then).cumulative
    assert between.sum == pytest.approx(sum(then))


def test_known_values_of_promql():
    """Two observations below 0.1, two between 0.2 and 0.5: the median is where the first end."""
    histogram = of([0.05, 0.05, 0.3, 0.4])
    assert histogram.quantile(0.5) == pytest.approx(0.1)
    assert histogram.quantile(0.75) == pytest.approx(0.35)
    assert histogram.quantile(1) == 0.5
    assert histogram.mean == pytest.approx(0.2)


def test_beyond_the_last_finite_bound_that_bound_is_returned():
    assert of([7.0]).quantile(0.5) == 1.0
    assert Histogram((math.inf,), (3,), 9.0).quantile(0.5) is None


def test_no_observation_has_no_quantile():
    assert of([]).quantile(0.5) is None
    assert of([]).mean is None


def test_bad_readings_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        of([1]).quantile(50)
    with pytest.raises(ValueError, match="rise up to infinity"):
        Histogram((0.1, 0.2), (1, 2), 1)
    with pytest.raises(ValueError, match="one count per bound"):
        Histogram((math.inf,), (), 1)
    with pytest.raises(ValueError, match="restarted"):
        of([]).since(of([0.1]))
    with pytest.raises(ValueError, match="different buckets"):
        of([]).since(of([], (1.0, math.inf)))
