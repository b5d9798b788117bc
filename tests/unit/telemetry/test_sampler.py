import threading
import time
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from utils.engines import get_spec
from utils.telemetry import Sampler, ScrapeError, Series, Snapshot, scrape
from utils.telemetry import sampler as sampler_module
from utils.telemetry.plot import plot_run
from utils.telemetry.sampler import Gap
from utils.telemetry.snapshot import parse as parse_text

SPEC = get_spec("vllm")


@dataclass
class FakeEngine:
    base_url: str
    spec: object = SPEC


class Metrics(BaseHTTPRequestHandler):
    """A metrics endpoint whose counter grows with every reading, until it is told to fail."""

    protocol_version = "HTTP/1.1"
    status = 200
    reads = 0

    def do_GET(self):
        cls = type(self)
        cls.reads += 1
        body = (
            f"vllm:num_requests_running 2\nvllm:generation_tokens_total {cls.reads * 10}\n"
            f"vllm:kv_cache_usage_perc 0.5\nvllm:num_preemptions_total {cls.reads // 3}\n"
        ).encode()
        self.send_response(cls.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Metrics,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def engine(server):
    return FakeEngine(f"http://127.0.0.1:{server.server_address[1]}")


def test_scrape_reads_once(engine):
    before = time.perf_counter()
    snapshot = scrape(engine)
    assert (snapshot.running, snapshot.generated_tokens) == (2, 10)
    assert before <= snapshot.time <= time.perf_counter()


def test_a_counter_that_an_engine_shows_later_stood_at_0_before():
    readings = (Snapshot(0.0), Snapshot(1.0, prefix_hits=3.0), Snapshot(2.0, prefix_hits=8.0))
    series = Series(readings, (), 0.0, 1.0)
    assert series.increase("prefix_hits") == 8
    assert series.increase("prefix_queries") is None


def test_sampling_covers_a_run_from_start_to_end(engine):
    with Sampler(engine, interval_s=0.02) as sampler:
        time.sleep(0.3)
        seen_meanwhile = len(sampler.series)
        ended = time.perf_counter()
    series = sampler.series
    assert 2 < seen_meanwhile < len(series)
    assert series.started <= series.snapshots[0].time
    assert series.snapshots[-1].time >= ended
    assert series.increase("generated_tokens") == 10 * (len(series) - 1)
    assert series.peak("kv_usage") == 0.5
    assert series.peak("waiting") is None
    assert series.increase("waiting") is None
    assert not series.gaps
    assert "0.02 s" in series.note
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"]


def test_frame_has_nan_for_what_is_not_offered(engine):
    with Sampler(engine, interval_s=0.02) as sampler:
        time.sleep(0.1)
    frame = sampler.series.to_frame()
    assert frame.index.name == "seconds"
    assert frame.index.is_monotonic_increasing
    assert frame["waiting"].isna().all()
    assert (frame["running"] == 2).all()
    assert (frame["generated_per_s"].iloc[1:] > 0).all()


def test_a_record_gets_plain_values_of_what_is_offered():
    readings = tuple(Snapshot(time=5.0 + i, running=i) for i in range(2))
    values = Series(readings, (), started=5.0, interval_s=1).to_dict()
    assert values.pop("note") == "2 readings, one every 1 s."
    assert values == {"interval_s": 1, "seconds": [0.0, 1.0], "running": [0.0, 1.0]}


def test_an_engine_that_dies_is_survived_and_named(engine, server):
    with Sampler(engine, interval_s=0.02) as sampler:
        time.sleep(0.1)
        server.RequestHandlerClass.status = 503
        time.sleep(0.1)
    series = sampler.series
    assert series.snapshots
    assert series.gaps
    assert "did not answer any more" in series.note
    assert "503" in series.note


def test_silence_in_between_is_told_apart_from_death(engine, server):
    with Sampler(engine, interval_s=0.02) as sampler:
        server.RequestHandlerClass.status = 500
        time.sleep(0.1)
        server.RequestHandlerClass.status = 200
        time.sleep(0.1)
    assert "failed in between" in sampler.series.note


def test_memory_is_bounded(engine):
    with Sampler(engine, interval_s=0.005, max_samples=8) as sampler:
        time.sleep(0.5)
    series = sampler.series
    assert len(series) <= 9
    assert series.interval_s > 0.005
    assert series.snapshots[0].generated_tokens == 10, "the first reading is kept"
    assert series.snapshots[-1].time - series.snapshots[0].time > 0.4, "the whole run is covered"


def test_gaps_are_bounded_and_keep_the_first():
    sampler = Sampler(FakeEngine("http://127.0.0.1:9"), max_samples=4, timeout_s=1)
    for _ in range(10):
        sampler._record()
    gaps = sampler.series.gaps
    assert len(gaps) <= 4
    times = [gap.time for gap in gaps]
    assert times == sorted(times)
    first = gaps[0]
    sampler._record()
    assert sampler.series.gaps[0] == first


def test_engines_without_readable_metrics_are_refused_on_entering(engine, server):
    silent = FakeEngine(engine.base_url, replace(SPEC, metrics_path=None))
    with pytest.raises(ScrapeError, match="no Prometheus endpoint"), Sampler(silent):
        pytest.fail("entered")
    with pytest.raises(ScrapeError, match="did not answer"):
        scrape(FakeEngine("http://127.0.0.1:9"))
    server.RequestHandlerClass.status = 404
    with pytest.raises(ScrapeError, match="switched on"):
        scrape(engine)
    with pytest.raises(ValueError, match="interval"):
        Sampler(engine, interval_s=0)


def test_an_exception_in_the_block_passes_and_stops_the_thread(engine):
    with pytest.raises(ZeroDivisionError), Sampler(engine, interval_s=0.02):
        _ = 1 / 0
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"]


@dataclass
class Trace:
    sent: float
    first_token: float | None
    finished: float


def test_the_picture_says_what_is_missing():
    readings = tuple(Snapshot(time=10.0 + i, running=i) for i in range(3))
    series = Series(readings, (Gap(11.5, "x"),), started=10.0, interval_s=1)
    figure = plot_run(series, [Trace(10.1, 10.4, 11.0), Trace(10.2, None, 12.0)], "two requests")
    top, queue, cache = figure.axes
    assert [bar.get_width() for bar in top.patches[:2]] == pytest.approx([0.3, 0.6])
    assert [text.get_text() for text in cache.texts] == ["not offered by this engine"]
    assert not queue.texts
    assert cache.get_xlabel() == "time since the start (s)"


def test_the_picture_counts_preemptions():
    readings = tuple(
        Snapshot(time=float(i), running=1, waiting=2, kv_usage=0.25 * i, preemptions=5.0 + i)
        for i in range(4)
    )
    figure = plot_run(Series(readings, (), 0.0, 1), title="t")
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["KV cache in use", "preemptions (3 in all)"]


def test_no_reading_ends_the_thread(engine, monkeypatch):
    parse, odd = sampler_module.parse, threading.Event()

    def sometimes(text, names, at):
        if odd.is_set() and at > middle:
            raise KeyError("le")
        return parse(text, names, at)

    monkeypatch.setattr(sampler_module, "parse", sometimes)
    with Sampler(engine, interval_s=0.02) as sampler:
        time.sleep(0.1)
        middle = time.perf_counter()
        time.sleep(0.1)
    odd.set()
    assert len(sampler.series) > 1
    assert "KeyError: 'le'" in sampler.series.note


def test_nothing_is_parsed_while_the_load_runs(engine, monkeypatch):
    parse, calls = sampler_module.parse, []
    monkeypatch.setattr(sampler_module, "parse", lambda *a: calls.append(a) or parse(*a))
    with Sampler(engine, interval_s=0.01) as sampler:
        while len(sampler._texts) < 6:
            time.sleep(0.01)
        assert len(calls) == 1  # on entering, before the load
    assert len(sampler.series) == len(calls) >= 6
    assert len(sampler.series) == len(calls), "parsed once"


def at(seconds, tokens):
    text = f'vllm:generation_tokens_total{{engine="0"}} {tokens}\n'
    return parse_text(text, SPEC.metrics, seconds)


def test_counter_that_falls_began_again_at_0():
    readings = (at(0, 1000), at(1, 2000), at(2, 100), at(3, 600))
    series = Series(readings, (), 0.0, 1.0)
    assert series.increase("generated_tokens") == 1600
    assert series.to_frame()["generated_per_s"].tolist()[1:] == [1000, 100, 500]
    assert "began to count again 1 times" in series.note
    assert "again" not in Series(readings[:2], (), 0.0, 1.0).note


def test_ranks_that_repeat_each_other_count_once():
    lines = [
        f'sglang:num_running_reqs{{tp_rank="{r}",dp_rank="{d}"}} 8\n'
        for r in range(4)
        for d in (0, 1)
    ]
    assert parse_text("".join(lines), get_spec("sglang").metrics).running == 16
    bucket = 'sglang:time_to_first_token_seconds_bucket{{le="{le}",tp_rank="{r}"}} 3\n'
    text = "".join(bucket.format(le=le, r=r) for r in range(2) for le in ("1.0", "+Inf"))
    found = parse_text(text, get_spec("sglang").metrics).ttft
    assert found is not None
    assert found.count == 3


@pytest.mark.parametrize("character", ["\u2028", "\x0b", "\x85", "\x1e"])
def test_label_may_hold_what_python_takes_for_the_end_of_a_line(character):
    text = f'vllm:num_requests_running{{model_name="a{character}b",engine="0"}} 3\n'
    assert parse_text(text, SPEC.metrics).running == 3
