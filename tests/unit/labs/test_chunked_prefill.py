"""Who waited for whom, read from traces."""

import dataclasses

import pytest

from utils.benchmark import RequestTrace
from utils.engines import EngineError
from utils.labs.lab_3_3_6 import chunked_prefill
from utils.profiles import PROFILES


def trace(tag, times, sent=0.0, **more):
    return RequestTrace(
        index=0,
        scheduled=sent,
        sent=sent,
        finished=times[-1],
        first_token=times[0],
        chunk_times=tuple(times),
        prompt_tokens=1600,
        tag=tag,
        **more,
    )


OTHER = trace("other", [0.1, 0.2, 0.3, 1.2, 1.3, 1.4])
LONG = trace("long", [1.25, 1.3], sent=0.25)


def test_the_longest_gap_while_the_prompt_is_computed_is_the_stall():
    waits = chunked_prefill.waits_of([OTHER, LONG], 512)
    assert waits.ttft_s == pytest.approx(1.0)
    assert waits.stall_s == pytest.approx(0.9)
    assert waits.quiet_s == pytest.approx(0.1)
    assert waits.steps == 4


def test_a_run_that_shows_nothing_is_refused():
    early = trace("other", [0.1, 0.2])
    with pytest.raises(EngineError, match="Nobody was decoding"):
        chunked_prefill.waits_of([early, LONG], 512)
    failed = dataclasses.replace(OTHER, error="HTTP 500")
    with pytest.raises(EngineError, match="HTTP 500"):
        chunked_prefill.waits_of([failed, LONG], 512)


def waits(chunk, ttft, stall):
    return chunked_prefill.Waits(chunk, ttft, stall, 0.01, 2)


def test_waits_table_has_medians_and_ranges():
    found = {
        "chunks of 2048": [waits(2048, 1.0, 0.9)],
        "chunks of 64": [waits(64, 2.0, s) for s in (0.05, 0.1, 0.3)],
    }
    table = chunked_prefill.waits_table(found)
    assert list(table["longest wait of the others (ms)"]) == [900, 100]
    assert list(table["TTFT of the long request (ms)"]) == [1000, 2000]
    assert table.loc["chunks of 64", "least ... most"] == "50 ... 300"


def test_the_long_request_comes_last_and_every_size_has_an_engine():
    profile = PROFILES["cpu"]
    requests = chunked_prefill.requests_for(profile)
    assert [r.tag for r in requests] == ["other"] * chunked_prefill.OTHERS + ["long"]
    assert len(requests[-1].prompt) > 10 * len(requests[0].prompt)
    options = chunked_prefill.variants(profile)
    assert list(options) == [f"chunks of {n}" for n in profile.load.inside.chunks]
    sizes = profile.load.inside
    longest = sizes.long_prompt + 64
    assert longest < profile.context_length
    assert max(sizes.prompts) <= sizes.slots
    quick = profile.load.quick().inside
    assert max(quick.prompts) <= quick.slots
