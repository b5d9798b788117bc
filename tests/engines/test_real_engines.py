"""The engines themselves: they answer, count, stream, report metrics, and are gone afterwards."""

import os
import re
import signal
import threading
import time

import httpx
import psutil
import pytest

from utils.benchmark import Client, ClosedLoop, EngineDied, Request, run
from utils.benchmark.sweep import measure_prefill, prompts
from utils.engines import EngineStartError, launch
from utils.engines.runtime import free_port
from utils.engines.sglang import kv_tokens
from utils.engines.sglang_language import sgl
from utils.telemetry import scrape

pytestmark = pytest.mark.engine
ENGINES = ["vllm", "sglang", "llama_cpp", "llama_cpp_quantised", "baseline"]
PAGED = ["vllm", "sglang"]


@pytest.fixture
def engine(request):
    return request.getfixturevalue(request.param)


def ask(engine, count=3, **options):
    requests = [
        Request(prompt=f"What is continuous batching? ({i})", max_tokens=24, **options)
        for i in range(count)
    ]
    client = Client(engine.base_url, engine.model)
    return run(client, requests, ClosedLoop(2), progress=False, alive=engine.running)


def test_the_first_request_to_vllm_may_be_a_single_token(vllm):
    """Without a wake-up prompt its worker dies here, on a CPU with AMX. Runs first of vLLM's tests."""
    client = Client(vllm.base_url, vllm.model, "completions")
    result = run(client, [Request(prompt="hi", max_tokens=8)], ClosedLoop(1), progress=False)
    assert result.traces[0].error is None


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_engine_streams_and_counts_its_tokens(engine):
    result = ask(engine)
    assert [trace.error for trace in result.traces] == [None] * 3
    for trace in result.traces:
        assert trace.text.strip()
        assert 1 <= trace.completion_tokens <= 24
        assert not trace.usage_missing
        assert 0 < trace.ttft() <= trace.e2el()


@pytest.mark.parametrize("engine", [*PAGED, "llama_cpp"], indirect=True)
def test_the_health_check_of_its_container_is_content(engine, probed):
    assert probed(engine) == 0
    assert probed(engine, port=free_port()) != 0


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_fixed_answer_length_is_kept(engine, profile):
    client = Client(engine.base_url, engine.model, "completions")
    requests = prompts(profile, 2, output=16, seed=5)
    result = run(client, requests, ClosedLoop(2), progress=False)
    assert [trace.completion_tokens for trace in result.traces] == [16, 16]


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_without_streaming_it_answers_the_same_way(engine):
    whole = ask(engine, count=1, stream=False).traces[0]
    streamed = ask(engine, count=1).traces[0]
    assert whole.text.strip() == streamed.text.strip()
    assert whole.completion_tokens == streamed.completion_tokens


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_engine_knows_its_version_and_memory(engine):
    assert engine.version not in ("", "unknown")
    assert engine.memory_bytes() > 10_000_000


@pytest.mark.parametrize("engine", [*PAGED, "llama_cpp"], indirect=True)
def test_engine_has_version_of_set_up(engine, profile):
    if profile.name == "cpu":
        assert engine.version == engine.spec.local.version


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llama_cpp"], indirect=True)
def test_its_metrics_are_under_the_names_that_its_file_declares(engine):
    before = scrape(engine)
    ask(engine)
    time.sleep(1.5)  # vLLM and SGLang publish their statistics from another process
    after = scrape(engine)
    assert after.running == 0
    assert after.generated_tokens > before.generated_tokens
    assert after.prompt_tokens > before.prompt_tokens


@pytest.mark.parametrize("engine", PAGED, indirect=True)
def test_every_metric_that_is_declared_is_there_but_those_of_speculation(engine):
    ask(engine)
    text = httpx.get(engine.base_url + engine.spec.metrics_path, timeout=10).text
    absent = {"drafts", "drafted_tokens", "accepted_tokens"}
    if engine.name == "sglang":
        absent.add("preemptions")  # its counter appears with the first one
    for field, name in vars(engine.spec.metrics).items():
        if name is not None and field not in absent:
            assert re.search(rf"^{name}(_bucket)?[{{ ]", text, re.MULTILINE), f"{field}: {name}"


@pytest.mark.parametrize("engine", PAGED, indirect=True)
def test_a_shared_prefix_is_found_in_the_cache(engine):
    text = " ".join(f"word{i}" for i in range(120))
    client = Client(engine.base_url, engine.model)
    requests = [Request(prompt=text, max_tokens=4), Request(prompt=text, max_tokens=4)]
    result = run(client, requests, ClosedLoop(1), progress=False)
    assert (result.traces[0].cached_tokens or 0) < result.traces[1].cached_tokens


@pytest.mark.parametrize(
    ("field", "value", "obeys"),
    [
        ("regex", "(yes|no)", re.compile("(yes|no)")),
        ("ebnf", 'root ::= "left" | "right"', re.compile("(left|right)")),
        ("json_schema", '{"type": "array", "maxItems": 2}', re.compile(r"\[.*\]", re.DOTALL)),
    ],
)
def test_sglang_holds_its_answer_to_a_constraint(sglang, field, value, obeys):
    body = {"model": sglang.model, "prompt": "Well, ", "max_tokens": 64, "temperature": 0}
    url = f"{sglang.base_url}/v1/completions"
    answer = httpx.post(url, json={**body, field: value}, timeout=60).json()
    assert obeys.fullmatch(answer["choices"][0]["text"].strip())


def test_sglangs_cache_has_the_size_that_was_asked_for(sglang, profile):
    answer = httpx.get(f"{sglang.base_url}/server_info", timeout=10).json()
    if profile.name == "cpu":
        assert answer["max_total_num_tokens"] == kv_tokens(sglang.options)
        assert answer["attention_backend"] == "torch_native"
    assert answer["page_size"] == 1


def test_sglangs_language_runs_here_and_talks_to_it(sglang):
    sgl.set_default_backend(sgl.RuntimeEndpoint(sglang.base_url))

    @sgl.function
    def program(s):
        s += sgl.user("What is a KV cache?")
        s += sgl.assistant(sgl.gen("text", max_tokens=8, temperature=0))
        s += sgl.user("Is it large?")
        s += sgl.assistant(sgl.select("choice", choices=["yes", "no"]))
        branches = s.fork(2)
        branches += lambda i: f" {i}:" + sgl.gen("more", max_tokens=4)
        branches.join()

    state = program.run()
    assert state["text"].strip()
    assert state["choice"] in ("yes", "no")


def test_vllms_engine_core_is_forked_and_its_worker_is_not(vllm):
    """What computes reads its threads when it is loaded: tools/setup/forked."""
    family = psutil.Process(int(vllm.identity)).children(recursive=True)
    assert {p.name() for p in family} >= {"VLLM::EngineCore", "VLLM::Worker"}
    says = "Triton is installed, but doesn't include CPU backend"  # whoever imports vLLM
    assert vllm.log_path.read_text().count(says) == 2


def test_an_idle_sglang_leaves_the_cores_alone(sglang):
    ask(sglang)
    family = psutil.Process(int(sglang.identity)).children(recursive=True)

    def used():
        return sum(sum(p.cpu_times()[:2]) for p in family)

    time.sleep(2)
    before = used()
    time.sleep(3)
    assert used() - before < 1.5, "seconds of a core in 3 s without a request"


def test_sglang_queues_requests_if_cache_is_small(profile, stops_without_a_trace):
    before = {p.pid for p in psutil.process_iter()}
    with launch("sglang", profile, quiet=True, kv_blocks=400) as engine:
        client = Client(engine.base_url, engine.model, "completions")
        requests = prompts(profile, 12, output=120, seed=3)
        result = run(client, requests, ClosedLoop(12), progress=False)
        assert [trace.error for trace in result.traces] == [None] * 12
        too_long = Request(prompt="word " * 500, max_tokens=4)
        refused = run(client, [too_long], ClosedLoop(1), progress=False).traces[0]
        assert (
            "exceeds the maximum allowed length" in refused.error
        )  # while streaming, with status 200
        assert ask(engine).traces[0].ok
        stops_without_a_trace(engine, "sglang::", before)


def test_batching_in_vllm_beats_the_baseline(vllm, baseline, profile):
    level = max(profile.load.levels)

    def throughput(engine, count):
        client = Client(engine.base_url, engine.model, "completions")
        requests = prompts(profile, count, output=24, seed=level)
        result = run(client, requests, ClosedLoop(level), progress=False)
        return result.summary()["output_throughput"]

    assert throughput(vllm, level) > 3 * throughput(baseline, 8)


def test_prefill_is_measured(vllm, profile):
    prefill = measure_prefill(vllm, profile, length=256, repeats=2)
    assert 250 <= prefill.prompt_tokens <= 270
    assert prefill.tokens_per_s > 0


@pytest.mark.parametrize("engine", PAGED, indirect=True)
def test_a_prompt_beyond_the_context_is_an_error_and_the_engine_lives(engine, profile):
    too_long = Request(prompt="word " * (2 * profile.context_length), max_tokens=4)
    client = Client(engine.base_url, engine.model)
    trace = run(client, [too_long], ClosedLoop(1), progress=False).traces[0]
    assert trace.status == 400
    assert "context" in trace.error or "length" in trace.error
    assert ask(engine).traces[0].ok


def test_an_engine_that_dies_in_the_middle_is_said_to_have_died(profile):
    with launch("llama_cpp", profile, quiet=True) as engine:
        server = psutil.Process(int(engine.identity)).children()[0].pid
        timer = threading.Timer(0.7, os.kill, (server, signal.SIGKILL))
        timer.start()
        client = Client(engine.base_url, engine.model, "completions")
        requests = prompts(profile, 400, output=200)
        with pytest.raises(EngineDied) as caught:
            run(client, requests, ClosedLoop(4), progress=False, alive=engine.running)
        assert len(caught.value.result.traces) == 400
        assert caught.value.result.summary()["failed"] > 0
    assert not engine.running()


def test_a_wrong_argument_is_named_by_the_engines_own_log(profile):
    with pytest.raises(EngineStartError) as caught:
        launch("llama_cpp", profile, extra_arguments=("--no-such-flag",), quiet=True)
    assert "--no-such-flag" in caught.value.tail
    assert "does not know one of the arguments" in caught.value.hint
