"""How the benchmark of gateways turns samples into figures, and what it says of a peer that is not there."""

import pytest

from benchmarks import peers
from benchmarks.gateway_peers import DIRECT, FEW, FULL, LOADS, QUIET, SHORT, Sample, line, row


def samples(ttft_ms, tokens_per_s, request_s=0.0, chunk_s=0.0):
    """Three rounds; in the second the machine was slow."""
    return {
        load: [
            Sample(
                slow * ttft_ms[load],
                tokens_per_s / slow,
                load.requests * (request_s + load.tokens * chunk_s),
                load.requests * load.tokens,
            )
            for slow in (1, 2, 1)
        ]
        for load in LOADS
    }


def test_figures_are_medians_over_rounds_and_cpu_time_is_split():
    direct = samples({QUIET: 1, FEW: 2, FULL: 4, SHORT: 9}, 1000)
    actual = samples({QUIET: 1.5, FEW: 3, FULL: 6, SHORT: 9}, 950, request_s=2e-3, chunk_s=1e-4)
    found = row(actual, direct)
    added = [found[f"added_ttft_ms_{load.streams}"] for load in (QUIET, FEW, FULL)]
    assert added == [0.5, 1, 2]
    assert found["share_of_direct"] == pytest.approx(0.95)
    assert found["tokens_per_s"] == 950
    assert found["cpu_s_per_1000_chunks"] == pytest.approx(0.1)
    assert found["cpu_ms_per_request"] == pytest.approx(2)
    assert "95.0%" in line("mine", found)
    assert line(DIRECT, row(direct, direct)).endswith("100.0%")


def test_a_peer_that_is_not_installed_says_the_command(monkeypatch):
    monkeypatch.setattr(peers.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(peers.Step, "done", lambda _: False)
    engine = peers.Engine("http://127.0.0.1:1", "m", "vllm")
    for peer, command in ((peers.nginx, "apt-get install nginx"), (peers.litellm, "make peers")):
        with pytest.raises(peers.NotHere, match=command), peer(engine):
            pass


def test_a_program_that_does_not_start_is_reported_with_its_last_words():
    command = ["sh", "-c", "echo first; echo 'no master key'; exit 3"]
    with (
        pytest.raises(peers.NotHere, match="did not start: no master key"),
        peers.started(command, "http://127.0.0.1:1", "/"),
    ):
        pass
