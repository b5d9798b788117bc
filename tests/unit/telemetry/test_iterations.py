"""TensorRT-LLM's JSON statistics in the common schema."""

import pytest

from utils.telemetry import ScrapeError
from utils.telemetry.iterations import series_of

# As TensorRT-LLM's own test of its collector writes a step, two steps long.
STEP = {
    "numActiveRequests": 5,
    "numQueuedRequests": 3,
    "iterLatencyMS": 15.5,
    "kvCacheStats": {"cacheHitRate": 0.85, "maxNumBlocks": 1000, "usedNumBlocks": 600},
    "inflightBatchingStats": {"numContextRequests": 2, "numCtxTokens": 256},
    "specDecodingStats": {"numDraftTokens": 20, "numAcceptedTokens": 15},
}


def test_steps_become_readings_end_to_end_before_the_moment_of_reading():
    series = series_of([STEP, {**STEP, "numActiveRequests": 2}], 100.0)
    assert [round(s.time, 4) for s in series] == [99.9845, 100.0]
    first, last = series.snapshots
    assert (first.running, first.waiting, first.kv_usage) == (5, 3, 0.6)
    assert first.prefix_hit_rate == 0.85
    assert (last.drafted_tokens, last.accepted_tokens) == (40, 30)
    assert series.peak("running") == 5
    assert series.increase("accepted_tokens") == 15


def test_missing_statistics_are_none_and_empty_list_is_accepted():
    (only,) = series_of([{"iterLatencyMS": 1.0, "kvCacheStats": None}], 1.0)
    assert only.running is None
    assert only.kv_usage is None
    assert only.drafted_tokens is None
    assert len(series_of([], 1.0)) == 0


def test_another_answer_is_refused_with_what_to_switch_on():
    with pytest.raises(ScrapeError, match="enable_iter_perf_stats"):
        series_of({"detail": "Not Found"}, 1.0)
