"""Workloads and their replay: no engine, no clock."""

from dataclasses import replace

import pytest

from utils.kvcache.radix import RadixCache
from utils.kvcache.replay import drain_queue, first_come, hit_rate, longest_prefix, serve_in_order
from utils.labs.lab_3_3_2 import experiments
from utils.labs.lab_3_3_2.workloads import (
    Maker,
    chat,
    few_shot,
    partly_shared,
    tree_of_thoughts,
    workloads,
)
from utils.profiles import load_profile

CPU = load_profile("cpu")


def rate(prompts, cache):
    return hit_rate(serve_in_order(prompts, cache, 4), prompts)


def test_workloads_share_as_much_as_derived_by_hand():
    built = workloads(CPU)
    rates = {name: rate(prompts, RadixCache()) for name, prompts in built.items()}
    shapes = {  # shared units over all units; single lengths vary by a tenth
        "system prompt": 6 * 8 / (7 * 9),
        "few-shot": 6 * 5 / (8 * 6),
        "chat": 2 * (3 + 5) / (2 * (3 + 5 + 7)),
        "tree of thoughts": (2 * 4 + 4 * 5) / (4 + 2 * 5 + 4 * 6),
        "no sharing": 0,
    }
    assert rates == pytest.approx(shapes, abs=0.03)
    assert workloads(CPU) == built != workloads(CPU, seed=1)
    longest = max(len(prompt) for prompts in built.values() for prompt in prompts)
    assert longest + experiments.ANSWER_TOKENS < CPU.context_length
    assert max(map(len, built["system prompt"])) > 400


def test_workloads_grow_with_the_profile():
    big = replace(CPU, load=replace(CPU.load, prompt_tokens=256))
    for name, prompts in workloads(big).items():
        assert sum(map(len, prompts)) > 3 * sum(map(len, workloads(CPU)[name]))


def test_workload_builders_order_their_parts():
    assert few_shot([[1], [2]], [[7], [8], [9]]) == [[1, 7], [2, 8], [1, 9]]
    assert chat([[1], [2]], [[[3], [4], [5]], [[6], [7], [8]]]) == [
        [1, 3],
        [2, 6],
        [1, 3, 4, 5],
        [2, 6, 7, 8],
    ]
    assert tree_of_thoughts([0], [[1], [2], [3], [4]]) == [
        [0],
        [0, 1],
        [0, 2],
        [0, 1, 3],
        [0, 1, 4],
    ]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.94])
def test_partly_shared_prompts_have_their_length_and_share(fraction):
    prefix, prompts = partly_shared(Maker(CPU, 3), 768, fraction, 4)
    assert len(prefix) == round(768 * fraction) and {len(p) for p in prompts} == {768}
    assert all(p[: len(prefix)] == prefix for p in prompts)
    assert len({tuple(p) for p in prompts}) == 4


def test_replay_stores_answers_that_no_request_shares():
    cache = RadixCache()
    assert serve_in_order([[1, 2, 3]], cache, 4) == [0]
    assert cache.size == 6, "the last of 4 answer tokens has no key and value"
    assert serve_in_order([[1, 2, 3]], cache, 4) == [2]
    assert cache.size == 9


def test_drain_queue_follows_rule_and_counts_waits():
    prompts = [[1, 1, 1, 1], [2, 2, 2, 2], [1, 1, 1, 5], [1, 1, 1, 6]]
    in_order = drain_queue(prompts, RadixCache(), first_come)
    assert in_order.order == (0, 1, 2, 3) and in_order.worst_wait == 0
    greedy = drain_queue(prompts, RadixCache(), longest_prefix)
    assert greedy.order == (0, 2, 3, 1) and greedy.worst_wait == 2
    assert greedy.hit_rate == in_order.hit_rate == 6 / 16


@pytest.mark.parametrize("answer", [7, -1, None, "0"])
def test_drain_queue_refuses_rule_that_names_no_request(answer):
    with pytest.raises(ValueError, match="a position in a queue of 1"):
        drain_queue([[1]], RadixCache(), lambda cached, passed_over: answer)


def test_longest_prefix_serves_small_cache_better():
    prompts, groups, capacity = experiments.small_cache_queue(CPU)
    assert len(prompts) == len(groups) == 13 and groups.count(-1) == 1
    assert max(map(len, prompts)) + experiments.ANSWER_TOKENS < capacity
    first = drain_queue(prompts, RadixCache(capacity), first_come)
    longest = drain_queue(prompts, RadixCache(capacity), longest_prefix)
    assert first.hit_rate < 0.1 and longest.hit_rate > 0.4
    assert longest.worst_wait > first.worst_wait == 0


def test_longest_prefix_starves_request_without_prefix():
    queue, stranger = experiments.starving_queue(CPU, followers=12)
    assert drain_queue(queue, RadixCache(), longest_prefix).order[-1] == stranger
    assert drain_queue(queue, RadixCache(), first_come).order[stranger] == stranger
