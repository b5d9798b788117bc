"""What lab 3.3.2 rests on, on real engines: hit rates, work saved, constraints obeyed, routing."""

import subprocess

import pytest

from tools.setup.setup_steps import SGLANG
from utils.benchmark import Client, ClosedLoop, fresh_seed, run
from utils.engines import launch
from utils.kvcache.radix import RadixCache
from utils.kvcache.replay import hit_rate, serve_in_order
from utils.labs.lab_3_3_2 import experiments
from utils.labs.lab_3_3_2.tables import lost_table
from utils.labs.lab_3_3_2.workloads import Maker, as_requests, workloads
from utils.profiles import ENGINES
from utils.telemetry.cache import cache_report

pytestmark = pytest.mark.engine


@pytest.fixture
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def records_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RECORDS", str(tmp_path))


def page_size(engine):
    return cache_report(engine).block_size if engine.name == "vllm" else 1


@pytest.mark.parametrize("engine", ["sglang", "vllm"], indirect=True)
def test_hit_rates_are_what_the_tree_predicts(engine, profile):
    for name, prompts in workloads(profile, seed=fresh_seed()).items():
        cache = RadixCache(page_size=page_size(engine))
        predicted = hit_rate(serve_in_order(prompts, cache, 4), prompts)
        hits = experiments.measure_hits(engine, profile, prompts, name)
        assert abs(hits.rate - predicted) < 0.05, name
        assert hits.counted == pytest.approx(hits.rate, abs=0.05), name


def test_a_warm_prompt_has_a_third_of_the_cold_ttft_at_most(sglang, profile):
    # Where bfloat16 is fast, prefill is not what takes the time: 0.53 on a CPU with AMX (2026-11-26).
    most = 1 / 3 if profile.dtype == "float32" else 1
    ratios = []
    for _ in range(3):  # a busy machine may spoil one
        cold, warm = experiments.cold_and_warm(sglang, profile)
        assert warm.fraction * experiments.UNITS * profile.load.prompt_tokens >= 600
        ratios.append(warm.median / cold.median)
        if ratios[-1] <= most:
            break
    assert min(ratios) <= most, ratios


# SGLang's attention for two requests, one with 60 of 64 tokens cached: upstream's, then the plugin's.
ATTENTION = """
from importlib.metadata import entry_points
import torch
from torch.nn import functional
from sglang.srt.layers.attention import torch_native_backend as native

real, rows = functional.scaled_dot_product_attention, []
def counting(query, *others, **options):
    rows.append(query.shape[-2])
    return real(query, *others, **options)
functional.scaled_dot_product_attention = native.scaled_dot_product_attention = counting

torch.manual_seed(1)
query, k, v = torch.randn(10, 4, 16), torch.randn(80, 1, 16), torch.randn(80, 1, 16)
slots = torch.randperm(70).expand(2, 70)
lengths = [torch.tensor(one) for one in ([1, 0], [64, 6], [60, 0], [4, 6])]
def answered():
    rows.clear()
    attention = native.TorchNativeAttnBackend._run_sdpa_forward_extend
    out = torch.zeros_like(query)
    attention(None, query, out, k, v, slots, *lengths, None, enable_gqa=True, causal=True)
    print(*rows)
    return out

upstream = answered()
(plugin,) = entry_points(group="sglang.srt.plugins", name="course_attention")
plugin.load()()
print(torch.allclose(upstream, answered(), atol=1e-6))
"""


@pytest.mark.skipif(not SGLANG.done(), reason="not set up here: make setup STEP=sglang")
def test_attention_is_computed_for_new_tokens_only_and_is_upstreams():
    command = [str(ENGINES / "sglang/bin/python"), "-c", ATTENTION]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["64 6", "4 6", "True"]


@pytest.mark.parametrize("engine", ["sglang", "vllm"], indirect=True)
@pytest.mark.parametrize(
    "constraint",
    [
        {
            "json_schema": {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
                "required": ["n"],
                "additionalProperties": False,
            }
        },
        {"regex": r"[A-C]{3}-[0-9]{2}"},
        {"choice": ["positive", "neutral", "negative"]},
    ],
    ids=["json_schema", "regex", "choice"],
)
def test_every_constrained_answer_is_valid(engine, profile, constraint):
    (kind,) = constraint
    asked = experiments.questions(kind, 12)
    answers = experiments.measure_structured(engine, profile, constraint, asked, max_tokens=32)
    assert answers.faults == ()
    assert len(answers.result.traces) == 12


@pytest.mark.parametrize("engine", ["sglang", "vllm"], indirect=True)
def test_unservable_request_is_refused_and_engine_lives(engine, profile):
    text = {
        what: experiments.say(engine, fields)
        for what, fields in experiments.impossible_requests(engine, profile)
    }
    for what in ("a schema of no known type", "an expression with an open bracket"):
        assert text[what].startswith("refused with HTTP 400"), text
    assert "refused with HTTP 400" in text["a prompt beyond the context"]
    assert "no answer" not in text["an expression that matches nothing"]
    assert experiments.say(engine, {"messages": experiments._SAY, "max_tokens": 2}).startswith(
        "answered"
    )


def test_router_follows_prefix_and_survives_dead_worker(sglang, profile):
    small = 8 * profile.load.prompt_tokens * 2
    with launch("sglang", profile, quiet=True, kv_blocks=small) as second:
        pair = [sglang, second]
        aware = experiments.measure_routed(
            pair, profile, "cache_aware", experiments.router_prompts(profile)
        )
        assert aware.failed == 0
        assert aware.rate > 0.3
        assert all(share > 0 for share in aware.shares), "both have work"
        prompts = experiments.router_prompts(profile)
        routed = experiments.measure_routed(
            pair, profile, "round_robin", prompts, output_tokens=64, kill_after_s=3.0
        )
        assert not second.running()
        assert sglang.running()
        # What had begun on the dead one is lost; what had not is sent again, and that may be all of it.
        assert routed.failed < len(prompts) / 2, lost_table(routed).to_string()
    assert experiments.say(sglang, {"messages": experiments._SAY, "max_tokens": 2}).startswith(
        "answered"
    )


def test_tokens_are_the_same_whether_a_prefix_was_cached_or_not(sglang, profile):
    make = Maker(profile, seed=77)
    prompt = make.exactly(300)
    client = Client(sglang.base_url, sglang.model, "completions")
    whole, again = (
        run(client, as_requests([prompt], 24), ClosedLoop(1), progress=False).traces[0]
        for _ in range(2)
    )
    assert (whole.cached_tokens or 0) < 5
    assert again.cached_tokens == 299
    assert whole.text == again.text != ""
