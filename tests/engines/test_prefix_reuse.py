"""What lab 3.3.2 rests on, on real engines: hit rates, TTFT saved, constraints obeyed, routing."""

import pytest

from utils.kvcache import reuse
from utils.kvcache.radix import RadixCache
from utils.kvcache.replay import hit_rate, serve
from utils.kvcache.reuse_words import explain_death
from utils.kvcache.workloads import workloads
from utils.telemetry.cache import cache_report

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def records_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_RECORDS", str(tmp_path))


def page_size(engine):
    return cache_report(engine).block_size if engine.name == "vllm" else 1


@pytest.mark.parametrize("engine", ["sglang", "vllm"], indirect=True)
def test_hit_rates_are_what_the_tree_predicts(engine, profile):
    for name, prompts in workloads(profile, seed=5).items():
        cache = RadixCache(page_size=page_size(engine))
        predicted = hit_rate([serve(cache, prompt, 4) for prompt in prompts], prompts)
        hits = reuse.measure_hits(engine, profile, prompts, name)
        assert abs(hits.rate - predicted) < 0.05, name
        assert hits.counted == pytest.approx(hits.rate, abs=0.05), name


def test_a_warm_prompt_has_a_third_of_the_cold_ttft_at_most(sglang, profile):
    cold, warm = reuse.cold_and_warm(sglang, profile)
    shared = warm.fraction * 12 * profile.load.prompt_tokens
    assert shared >= 600
    assert warm.median <= cold.median / 3


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
    asked = reuse.questions(kind, 12)
    answers = reuse.measure_structured(engine, profile, constraint, asked, max_tokens=32)
    assert answers.faults == () and len(answers.result.traces) == 12


@pytest.mark.parametrize("engine", ["sglang", "vllm"], indirect=True)
def test_what_cannot_be_served_is_refused_and_the_engine_lives(engine, profile):
    said = {
        what: reuse.say(engine, fields)
        for what, fields in reuse.impossible_requests(engine, profile)
    }
    for what in ("a schema of no known type", "an expression with an open bracket"):
        assert said[what].startswith("refused with HTTP 400"), said
    assert "refused with HTTP 400" in said["a prompt beyond the context"]
    assert "no answer" not in said["an expression that matches nothing"]
    assert reuse.say(engine, {"messages": reuse._SAY, "max_tokens": 2}).startswith("answered")


def test_a_router_sends_a_prefix_where_it_is_known_and_survives_a_dead_worker(profile):
    from tests.engines.conftest import running

    workers = running("sglang", profile), running("sglang", profile)
    first, second = (next(worker) for worker in workers)
    pair = [first, second]
    dealt, aware = (
        reuse.measure_routed(pair, profile, policy, reuse.router_prompts(profile, seed))
        for seed, policy in enumerate(("round_robin", "cache_aware"))
    )
    assert dealt.failed == aware.failed == 0
    assert aware.rate > dealt.rate
    assert all(share > 0 for share in (*dealt.shares, *aware.shares)), "both have work"
    prompts = reuse.router_prompts(profile, 2)
    routed = reuse.measure_routed(
        pair, profile, "cache_aware", prompts, output_tokens=64, kill_after_s=1.5
    )
    assert not second.running() and first.running()
    assert 0 < routed.failed < len(prompts) / 2, explain_death(routed)
    for worker in workers:
        worker.close()
