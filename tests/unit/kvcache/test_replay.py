"""Workloads and their replay: no engine, no clock."""

from dataclasses import replace

import pytest

from utils.kvcache.radix import RadixCache
from utils.kvcache.replay import first_come, hit_rate, longest_prefix, serve, work_off
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
    return hit_rate([serve(cache, prompt, 4) for prompt in prompts], prompts)


def test_workloads_share_what_their_names_say():
    made = workloads(CPU)
    rates = {name: rate(prompts, RadixCache()) for name, prompts in made.items()}
    shapes = {  # shared units over all units; single lengths vary by a tenth
        "system prompt": 6 * 8 / (7 * 9),
        "few-shot": 6 * 5 / (8 * 6),
        "chat": 2 * (3 + 5) / (2 * (3 + 5 + 7)),
        "tree of thoughts": (2 * 4 + 4 * 5) / (4 + 2 * 5 + 4 * 6),
        "no sharing": 0,
    }
    assert rates == pytest.approx(shapes, abs=0.03)
    assert workloads(CPU) == made != workloads(CPU, seed=1)
    longest = max(len(prompt) for prompts in made.values() for prompt in prompts)
    assert longest + experiments.ANSWER_TOKENS < CPU.context_length
    assert max(map(len, made["system prompt"])) > 400


def test_workloads_of_a_larger_profile_are_larger_and_as_shared():
    big = replace(CPU, load=replace(CPU.load, prompt_tokens=256))
    for name, prompts in workloads(big).items():
        assert sum(map(len, prompts)) > 3 * sum(map(len, workloads(CPU)[name]))


def test_shapes():
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
def test_a_partly_shared_prompt_has_its_length_and_its_share(fraction):
    prefix, prompts = partly_shared(Maker(CPU, 3), 768, fraction, 4)
    assert len(prefix) == round(768 * fraction)
    assert {len(p) for p in prompts} == {768}
    assert all(p[: len(prefix)] == prefix for p in prompts)
    assert len({tuple(p) for p in prompts}) == 4


def test_a_replay_stores_answers_that_nobody_shares():
    cache = RadixCache()
    assert serve(cache, [1, 2, 3], 4) == 0
    assert cache.size == 6, "the last of 4 answer tokens has no key and value"
    assert serve(cache, [1, 2, 3], 4) == 2
    assert cache.size == 9


def test_a_queue_is_served_by_the_rule_and_waits_are_counted():
    prompts = [[1, 1, 1, 1], [2, 2, 2, 2], [1, 1, 1, 5], [1, 1, 1, 6]]
    in_order = work_off(prompts, RadixCache(), first_come)
    assert in_order.order == (0, 1, 2, 3)
    assert in_order.worst_wait == 0
    greedy = work_off(prompts, RadixCache(), longest_prefix)
    assert greedy.order == (0, 2, 3, 1)
    assert greedy.worst_wait == 2
    assert greedy.hit_rate == in_order.hit_rate == 6 / 16


@pytest.mark.parametrize("answer", [7, -1, None, "0"])
def test_a_rule_that_names_no_request_is_refused(answer):
    with pytest.raises(ValueError, match="no position in a queue of 1"):
        work_off([[1]], RadixCache(), lambda cached, passed_over: answer)


def test_the_small_cache_queue_is_served_better_by_the_longest_prefix():
    prompts, groups, capacity = experiments.small_cache_queue(CPU)
    assert len(prompts) == len(groups) == 13
    assert groups.count(-1) == 1
    assert max(map(len, prompts)) + experiments.ANSWER_TOKENS < capacity
    first = work_off(prompts, RadixCache(capacity), first_come)
    longest = work_off(prompts, RadixCache(capacity), longest_prefix)
    assert first.hit_rate < 0.1
    assert longest.hit_rate > 0.4
    assert longest.worst_wait > first.worst_wait == 0


def test_a_stranger_starves_behind_the_longest_prefix():
    queue, stranger = experiments.starving_queue(CPU, followers=12)
    assert work_off(queue, RadixCache(), longest_prefix).order[-1] == stranger
    assert work_off(queue, RadixCache(), first_come).order[stranger] == stranger
