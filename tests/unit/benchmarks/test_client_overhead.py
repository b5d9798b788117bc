"""Statistics of `make bench-client`, and our worker against a paced server with telemetry."""

from __future__ import annotations

import pytest

from benchmarks import client_overhead
from benchmarks.client_overhead import Load, Outcome


def test_long_gaps_are_steps_in_which_somebody_came_too_late() -> None:
    assert client_overhead._long([5.0] * 98 + [11.0, 0.1]) == pytest.approx(0.01)


def test_worker_measures_what_the_server_did_while_telemetry_reads() -> None:
    load = Load(step_s=0.002, ttft_s=0.01, concurrency=4, requests=8, tokens=5)
    with client_overhead._server(load) as url:
        found = client_overhead._worker(url, load, sampled=True)
        truth = client_overhead._get(f"{url}/truth")
    assert len(found["ttfts"]) == 8  # type: ignore[arg-type]
    assert len(truth) == 4 + 4 + 8  # two warm-ups and the measured ones
    assert all(len(one["itls"]) == 4 for one in truth)


def test_table_shows_the_spread_of_the_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    def outcome(client: str, p99: float) -> Outcome:
        times = {"mean": 5.0, "median": 5.0, "p99": p99}
        true = {"mean": 5.0, "median": 5.0, "p99": 5.0}
        return Outcome(client, 6000.0, 6000.0, times, true, times, true, 60.0, 0.02, 0.01)

    names = ["ours", "ours + telemetry"]
    outcomes = {
        f"{load} {name}": [outcome(name, p99) for p99 in (5.0, 5.5, 6.0)]
        for load in ("paced", "drain")
        for name in names
    }
    assert client_overhead._print(outcomes, names)
    shown = capsys.readouterr().out
    assert "+10.0% (+0.0% to +20.0%)" in shown
    assert "2.00% (2.0% to 2.0%)" in shown
    assert "met    telemetry moves p99 ITL by 0.00 ms" in shown
