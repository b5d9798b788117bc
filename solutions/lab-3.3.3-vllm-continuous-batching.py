# %% [markdown]
# # Lab 3.3.3: Continuous batching and PagedAttention
#
# One user gets an answer from your server. Then thirty-two come at once. Do they wait thirty-two
# times as long? In this lab you find out why they don't, which memory the engine needs for that, and
# how it behaves when it has too little.
#
# Two ideas carry it. **PagedAttention** keeps a model's memory of a conversation on loose leaves in
# place of a bound notebook: a sheet is taken when it is needed, not fifty pages in advance.
# **Continuous batching** works like a sushi belt: a guest who is done leaves a seat, and the next one
# sits down at once, so nobody waits until the whole table has finished.
#
# You will be able to
#
# * compute how much KV cache a model needs per token, and check it against what vLLM reports;
# * write a block allocator with reference counts and copy-on-write;
# * say how much memory paged allocation saves, and why;
# * write the scheduler that decides, step by step, who runs, who waits and who is thrown out;
# * predict the throughput of a real vLLM under load, measure it, and explain the difference;
# * compute attention over blocks, and predict which prefixes a full cache forgets;
# * judge KV-cache quantisation and `--enforce-eager` by measurement.
#
# **Time**: about 2 hours. *Run All* is meant to take at most 5 minutes of them on a quiet CPU, more with a large
# model on a GPU.
#
# **It starts** vLLM several times (and llama.cpp once or twice) on free ports of 127.0.0.1, and stops
# each of them. **It writes** one JSON record per run into `records/`. Numbers are *measured* here,
# *cited* with their source, or *predicted* by a formula that you see, and each is marked accordingly.

# %%
import random

import pandas as pd
from IPython.display import display

from utils.checks import compare_prediction
from utils.checks import lab_3_3_3 as checks
from utils.engines import EngineError, launch, launch_first, skip_on_failure
from utils.labs.lab_3_3_3 import paging, plots, tables
from utils.kvcache.blocks import BlockTable, OutOfBlocks
from utils.labs.lab_3_3_3.fragmentation import run_contiguous, run_paged
from utils.benchmark.engine_run import make_requests, measure
from utils.labs.lab_3_3_3.experiments import (
    as_jobs, cached_tokens, latency_at, make_visits, run_variants, same_answers, speedup, sweep, throughput_at,
    too_slow_to_compile, waves,
)
from utils.kvcache.paged_attention import paged_attention, write_pages
from utils.kvcache.prefix_blocks import PrefixBlockPool, serve_alone
from utils.kvcache.scheduler import Job, SchedulerLimits
from utils.kvcache.simulate import StepCost, fit_step_cost, simulate_continuous, simulate_static
from utils.model_sizes import GIB, blocks_for, bytes_per_token, decoder_parameters, plan_memory, read_config
from utils.profiles import load_profile
from utils.telemetry.cache import cache_report, kv_budget_bytes, llama_cpp_cache_bytes
from utils.telemetry.plot import plot_run

profile = load_profile()
low, middle, top = profile.load.levels[0], profile.load.levels[1], profile.load.levels[-1]
print(f"Profile {profile.name}: {profile.description}")

# %% [markdown]
# ## 1. The cost of one token
#
# To write the next token, a decoder looks back at every token before it. It reads two
# vectors per token, a **key** and a **value**, in every layer. Computing them again for each new
# token would be absurd, so they are kept: that is the **KV cache**. It grows by the same amount with
# every token, of every request, and nothing else in an engine's memory grows like that.
#
# How much? Models differ in how many key/value heads they have. With **grouped-query attention**
# (GQA, arXiv 2305.13245) several query heads share one KV head, so the cache shrinks by that factor.

# %% [markdown]
# Write `kv_bytes_per_token`. `config` is a model's `config.json` as a dictionary; `value_bytes` is
# the size of one number in the cache (4 for float32, 2 for bfloat16, 1 for FP8). Two fields may be missing,
# together or one alone: without `num_key_value_heads` each query head has a KV head of its own; without `head_dim`
# a head has `hidden_size // num_attention_heads` numbers.
#
# <details><summary>Hint 1</summary>
#
# Count the numbers first: per token, in one layer, for one head, there is a key of `head_dim` numbers
# and a value of as many.
# </details>
# <details><summary>Hint 2</summary>
#
# 2 × layers × KV heads × head_dim × bytes per number. `config.get(name, default)` helps with fields
# that may be missing.
# </details>

# %% exercise="kv_bytes_per_token" title="Bytes of KV cache per token" minutes=10 difficulty=2 importance=5 points=3
def kv_bytes_per_token(config: dict, value_bytes: int) -> int:
    """Bytes that one token occupies in the KV cache, over all layers."""
    ### BEGIN SOLUTION
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    return 2 * config["num_hidden_layers"] * kv_heads * head_dim * value_bytes
    ### END SOLUTION

# %% check="kv_bytes_per_token"
kv_bytes_per_token = checks.kv_bytes_per_token(kv_bytes_per_token)

# %% [markdown]
# Now for two models: the one that runs in this lab, and `Qwen/Qwen3-8B`, the one this course uses on
# a DGX Spark (its `config.json` is *cited* from the hub). vLLM keeps the cache in the data type in which it
# runs the model, which the first line of this lab's output names, unless it is told another.

# %%
here = read_config(profile.models["vllm"])
qwen3_8b = {
    "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}
kv_types = {profile.dtype_name: profile.value_bytes, "BF16": 2, "FP8": 1}
rows = []
for name, config in (("this lab's model", here), ("Qwen3-8B", qwen3_8b)):
    for dtype, value_bytes in kv_types.items():
        token_bytes = kv_bytes_per_token(config, value_bytes)
        rows.append((name, dtype, token_bytes / 1024, int(GIB // token_bytes)))
pd.DataFrame(rows, columns=["model", "KV cache", "KiB per token (derived)", "tokens per GiB (derived)"])

# %% [markdown]
# An engine's memory is **weights + KV cache + activations**. Weights are fixed, activations depend on
# the tokens of one step, and the KV cache takes what is left: it decides how many users fit. On 128 GB
# of unified memory ([DGX Spark](https://www.nvidia.com/en-us/products/workstations/dgx-spark/)) with Qwen3-8B in bfloat16:

# %%
weights = 2 * decoder_parameters(qwen3_8b)
rows = []
for users, tokens in ((1, 8192), (32, 8192), (32, 32768)):
    plan = plan_memory(qwen3_8b, weights, users, tokens)
    parts = (plan.weights, plan.kv_cache, plan.activations, plan.total)
    rows.append((users, tokens, *(round(part / 1e9, 1) for part in parts)))
pd.DataFrame(
    rows,
    columns=["users", "tokens each", "weights (GB, derived)", "KV cache (GB, derived)", "activations (GB, derived, worst case)", "total (GB, derived)"],
)

# %% [markdown]
# **Read the table.** Which of the three loads fit into the memory? Which column decides it?
#
# <details><summary>Our reading</summary>
#
# The first two fit and the third doesn't. The weights are the same in every row, and the activations stay small. The
# KV cache grows with the users and with the tokens of each user, so it decides.
#
# The activations are a worst case, because nine tenths of them are logits for *every* token of a step of 2,048 tokens.
# vLLM normally computes logits only at the positions where it samples a token, so it needs much less. On the other
# hand, the sum leaves out the memory pools of CUDA graphs and the buffers for communication between GPUs.
# </details>
#
# vLLM cuts the cache into **blocks** of a few tokens and hands them out one by one. A block belongs to
# one request (until section 2 lets them share), so each request's last block may be partly empty.

# %% [markdown]
# Write `capacity`: how many whole blocks a memory budget holds, and how many requests of a given
# length fit into them at the same time.
#
# <details><summary>Hint 1</summary>
#
# A block takes `token_bytes * block_size` bytes. `//` divides and rounds down.
# </details>
# <details><summary>Hint 2</summary>
#
# A request of 9 tokens needs three blocks of 4. Rounding up is `-(-a // b)`.
# </details>

# %% exercise="capacity" title="Blocks and requests that fit" minutes=8 difficulty=2 importance=5 points=2
def capacity(
    budget_bytes: int, token_bytes: int, block_size: int, request_tokens: int
) -> tuple[int, int]:
    """Blocks in the budget, and requests of `request_tokens` tokens that they hold at once."""
    ### BEGIN SOLUTION
    blocks = budget_bytes // (token_bytes * block_size)
    blocks_per_request = -(-request_tokens // block_size)
    return blocks, blocks // blocks_per_request
    ### END SOLUTION

# %% check="capacity"
capacity = checks.capacity(capacity)

# %% [markdown]
# ### Does a real engine agree?
#
# Start vLLM. It reports how its cache is cut in a metric, `vllm:cache_config_info`; first only the
# size of a block, and the memory it set aside.

# %% tags=["measures"]
not_run, report, budget, block_tokens = {}, None, 0, 16  # 16 is vLLM's default
engine = launch_first(("vllm",), profile, not_run)
with skip_on_failure("vLLM's KV cache"):
    report = cache_report(engine)
    block_tokens = report.block_size
    budget = int(kv_budget_bytes(engine))
    print(f"vLLM {engine.version} set aside {budget / GIB:.2f} GiB for its KV cache, in blocks of {report.block_size} tokens")

# %% [markdown]
# **Predict**: how many blocks will it report? You have all that is needed: `profile.value_bytes` is the size of
# one number in the data type that this vLLM runs in.

# %% prediction="blocks_predicted"
### BEGIN SOLUTION
#: blocks_predicted = None  # capacity(budget, ..., block_tokens, ...)[0]
blocks_predicted = capacity(budget, kv_bytes_per_token(here, profile.value_bytes), block_tokens, 1)[0]
### END SOLUTION

# %%
if report:
    compare_prediction(blocks_predicted, report.num_blocks, what="KV blocks of this vLLM", unit="blocks")
    token_bytes = kv_bytes_per_token(here, profile.value_bytes)
    blocks, requests = capacity(budget, token_bytes, block_tokens, profile.context_length)
    print(f"Formula: {blocks} blocks. vLLM: {report.num_blocks} blocks = {report.size_tokens} tokens,")
    print(f"room for {requests} requests of the full {profile.context_length} tokens (derived).")

# %% [markdown]
# One block is not for tokens: vLLM keeps block 0 as a placeholder (`BlockPool.null_block` in
# `vllm/v1/core/block_pool.py`). You will meet it again in section 6.
#
# ## 2. Loose leaves: blocks, tables, copy-on-write
#
# Each request has a **block table**: its first block of tokens is in physical block 7, the second
# in block 2, and so on. The attention kernel follows the table, so neighbours in the text need not be
# neighbours in memory (PagedAttention, arXiv 2309.06180, section 4.1).
#
# Two requests with the same beginning can point at the *same* blocks. Then each block needs a
# **reference count**: how many tables point at it. It is free when the last one lets go.

# %% [markdown]
# Complete the class. `free` holds the numbers of the free blocks, `references[b]` the count of block
# `b`. `allocate` takes a free block; `share` adds a reference; `release` drops one, and with the last
# one the block is free again. Sharing or releasing a block that is free is a `ValueError`, allocating
# where none is free is `OutOfBlocks`: silent mistakes here would mix up two users' conversations.
#
# This pool is simpler than vLLM's. It forgets the content of a free block, so there is nothing left to share. In vLLM a
# full block that is free keeps its content and its hash. If a new request begins with the same tokens, sharing that
# block isn't an error but a **cache hit**: `BlockPool.touch` takes it out of the free queue, and it is in use again.
# Section 6 has a pool that does this.
#
# <details><summary>Hint 1</summary>
#
# `self.free` is a list, so `self.free.pop(0)` takes its first block. Here you may take any free block, because a free
# block has no content that could be lost. In vLLM the order matters, because the first block of its free queue is the
# next one to be forgotten (section 6).
# </details>
# <details><summary>Hint 2</summary>
#
# `release` has three cases: no reference (an error), the last one (back to the free list), more than
# one (only count).
# </details>

# %% exercise="block_pool" title="A block allocator with reference counts" minutes=20 difficulty=3 importance=5 points=4
class BlockPool:
    """Physical blocks with a free list and reference counts."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.free = list(range(num_blocks))
        self.references = [0] * num_blocks

    def allocate(self) -> int:
        """Takes a free block, with one reference; OutOfBlocks if there is none."""
        ### BEGIN SOLUTION
        if not self.free:
            raise OutOfBlocks("all blocks are in use")
        block = self.free.pop(0)
        self.references[block] = 1
        return block
        ### END SOLUTION

    def share(self, block: int) -> None:
        """Adds a reference to a block in use."""
        ### BEGIN SOLUTION
        if self.references[block] == 0:
            raise ValueError(f"block {block} is free")
        self.references[block] += 1
        ### END SOLUTION

    def release(self, block: int) -> None:
        """Drops a reference; the last one frees the block."""
        ### BEGIN SOLUTION
        if self.references[block] == 0:
            raise ValueError(f"block {block} is free already")
        self.references[block] -= 1
        if self.references[block] == 0:
            self.free.append(block)
        ### END SOLUTION


block_pool = BlockPool

# %% check="block_pool"
block_pool = checks.block_pool(block_pool)

# %% [markdown]
# When a user asks for three samples of one prompt, all three share the prompt's blocks: three tables,
# one copy. Trouble begins with the first new token, if the last block is not full: three sequences
# want to write different tokens into the same block. The answer is **copy-on-write**: who writes to a
# shared block copies it first. A full block is never written to again, so it can stay shared forever.

# %% [markdown]
# Write `append_slot`, which makes room for one more token of a sequence. `table` is its block table (a
# list of block numbers; change it in place), `num_tokens` the tokens stored so far. If the last block
# is full, or there is none, append a new block. If it is partly full and shared, put a copy in its
# place, let go of the original and return `(original, copy)`, so that the caller can copy the contents.
# In all other cases return `None`. Where no block is free, `pool.allocate()` raises `OutOfBlocks`: let it
# pass, and leave `table` and the reference counts as they were.
#
# <details><summary>Hint 1</summary>
#
# The last block is full when `num_tokens % pool.block_size == 0` (that covers the empty table).
# </details>
# <details><summary>Hint 2</summary>
#
# It is shared when `pool.references[table[-1]] > 1`. Letting go is `pool.release(original)`.
# </details>

# %% exercise="append_slot" title="Copy-on-write" minutes=15 difficulty=4 importance=3 points=4
def append_slot(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    """Makes room for one more token; returns (original, copy) if a shared block was copied."""
    ### BEGIN SOLUTION
    if num_tokens % pool.block_size == 0:
        table.append(pool.allocate())
        return None
    original = table[-1]
    if pool.references[original] == 1:
        return None
    table[-1] = pool.allocate()
    pool.release(original)
    return original, table[-1]
    ### END SOLUTION

# %% check="append_slot"
append_slot = checks.append_slot(append_slot)

# %% [markdown]
# Your allocator and your copy-on-write at work: a prompt of 10 tokens, three samples from it, each
# written a few tokens further.

# %%
pool = block_pool(14, 4)
prompt: list[int] = []
for position in range(10):
    append_slot(pool, prompt, position)
samples = {}
for name, new_tokens in (("sample A", 5), ("sample B", 3), ("sample C", 1)):
    for block in prompt:
        pool.share(block)
    table = list(prompt)
    copies = [append_slot(pool, table, 10 + position) for position in range(new_tokens)]
    samples[name] = BlockTable(pool, table, 10 + new_tokens)
    print(f"{name}: copied (original, copy) {[copy for copy in copies if copy]}")
for block in prompt:
    pool.release(block)
shared = pool.num_blocks - len(pool.free)
alone = sum(blocks_for(table.num_tokens, 4) for table in samples.values())
print(f"{shared} blocks in use; without sharing it would be {alone}")
plots.plot_blocks(pool, samples)

# %% [markdown]
# *In the picture: fourteen blocks in a row, each with its number and its reference count. Blocks 0 and
# 1 hold the prompt's full blocks and carry three colours, one per sample (× 3). After them each sample
# has blocks of its own, in one colour; the last ones are free and white. Below, the three block tables.*
#
# Copy-on-write is the paper's mechanism. For an ordinary decoder such as this one, vLLM 0.32 never copies a block,
# because its **prefix cache** shares only full blocks, which nobody writes to any more. (It does copy for some hybrid
# models with Mamba layers, where a hit may end inside a block.) Section 6 shows how it finds full blocks again, and
# which it forgets first.
#
# ### Attention over pages
#
# Why may a sequence's blocks lie anywhere? Because softmax can be computed **online**. The kernel takes one block after
# the other and keeps three things: the largest score so far, the sum of exponentials, and the weighted sum of values.
# If a block has a larger score, both sums are scaled down, so in exact arithmetic the result is that of dense attention.
# `paged_attention` in `utils/kvcache/paged_attention.py` does this in 20 lines. Here it reads the tiny model's own keys
# and values of a sentence from blocks that were drawn at random. The unused slots hold NaN, so a single wrong
# read would show.

# %%
query, keys, values = paging.example("Name three fruits, and then say which one of them is red and why.")
key_pages, value_pages = (paging.unused_pages(40, 4, like=vectors) for vectors in (keys, values))
table = random.Random(2).sample(range(40), blocks_for(len(keys), 4))
write_pages(key_pages, table, keys)
write_pages(value_pages, table, values)
paged = paged_attention(query, key_pages, value_pages, table, len(keys))
dense = paging.dense_attention(query, keys, values)
print(f"block table of {len(keys)} tokens: {table}")
print(f"largest difference to dense attention: {(paged - dense).abs().max():.1e} (values up to {dense.abs().max():.1f})")

# %% [markdown]
# **Read the line.** Why isn't the difference exactly zero, although both compute the same sum?
#
# <details><summary>Our reading</summary>
#
# Floating-point addition isn't associative, and the blocks add the values up in another order. The difference is of the
# size of one rounding. That is also why one prompt can get other tokens in another batch (lab 3.3.4).
# </details>
#
# ## 3. Loose leaves against bound notebooks
#
# Before PagedAttention, serving systems gave each request one unbroken range, long enough for the
# longest possible answer: nobody knows beforehand how long it will be. Slots that are reserved but not used
# are lost to all others. The paper found that only 20.4 to 38.2 % of the cache held tokens in the systems
# of its day (*cited*: arXiv 2309.06180, section 1).
#
# Here are 300 requests of very different lengths and a memory of 8,192 tokens. The server admits
# sequences of up to 512 tokens.
#
# **Predict**: with blocks of 16 tokens, how many times as many requests are in memory at once, compared
# with reserving 512 tokens for each?

# %% prediction="paged_gain"
### BEGIN SOLUTION
#: paged_gain = None  # a factor, for instance 2
paged_gain = 4
### END SOLUTION

# %%
rng = random.Random(1)
crowd = [
    Job(i, 0.02 * i, rng.randint(20, 100), min(400, 1 + int(rng.expovariate(1 / 80))))
    for i in range(300)
]
memory_runs = [run_contiguous(crowd, 8192, 512, rule) for rule in ("max", "pow2", "oracle")]
memory_runs.append(run_paged(crowd, 8192, block_size=16))
gain = memory_runs[-1].mean_running / memory_runs[0].mean_running
compare_prediction(paged_gain, gain, what="requests in memory at once, paged over reserved", unit="times", origin="derived")
plots.plot_memory(memory_runs)

# %% [markdown]
# *In the picture: four bars, one per way of managing memory; their blue part holds tokens. Reserving the
# maximum leaves most of the bar orange (reserved, never used). Reserving the next power of two is
# better, and an oracle that knows each length beforehand still loses the light part (reserved for
# tokens to come) and gaps that are too small. The paged bar is almost all blue.*
#
# **Read the plot.** Which kinds of waste does paged memory avoid, and which one remains? The oracle knows every length
# beforehand, so why does even the oracle lose memory?
#
# <details><summary>Our reading</summary>
#
# *Internal* fragmentation (the answer ends early) and *reservation* (the answer isn't that long yet) vanish, because
# a block is taken only when it is needed. Only the empty part of each last block remains. *External* fragmentation
# vanishes because all blocks have the same size. The oracle loses memory because it reserves the whole length from
# the first token on, even though most of it is needed much later.
# </details>
#
# So why not blocks of one token? Because kernels read memory in stretches, and tables grow: vLLM's block
# size here is a choice of its makers. How much memory does that cost?

# %% [markdown]
# Write `unused_share`: of all the slots in blocks that requests of these `lengths` hold, which share
# (0 to 1) holds no token?
#
# <details><summary>Hint</summary>
#
# A request of 3 tokens holds one block of 4: of 4 slots one is unused, 0.25. For several requests add
# up slots and tokens first, then divide once.
# </details>

# %% exercise="unused_share" title="The price of a block" minutes=8 difficulty=2 importance=2 points=2
def unused_share(lengths: list[int], block_size: int) -> float:
    """Share of the held slots that hold no token, 0 to 1."""
    ### BEGIN SOLUTION
    slots = sum(-(-length // block_size) * block_size for length in lengths)
    return (slots - sum(lengths)) / slots
    ### END SOLUTION

# %% check="unused_share"
unused_share = checks.unused_share(unused_share)

# %%
lengths = [job.total_tokens for job in crowd]
for size in sorted({1, 4, 16, 64, 256, block_tokens}):
    mark = "   <- this vLLM" if report and size == block_tokens else ""
    print(f"blocks of {size:4} tokens: {unused_share(lengths, size):6.1%} of the held slots unused (derived){mark}")

# %% [markdown]
# ## 4. The sushi belt: scheduling at every step
#
# With **static batching** a batch is put together, runs until its longest answer is done, and only then
# comes the next. Short answers wait for long ones, and their places stay empty. **Iteration-level
# scheduling** (Orca, OSDI 2022) decides again before every forward step. vLLM's rules, in
# `vllm/v1/core/sched/scheduler.py`:
#
# 1. *The running first*, oldest first. Each gets the tokens it still has to compute: one when it is
#    decoding, the rest of its prompt when that is not read yet; never more than what is left of the
#    step's token budget.
# 2. If the blocks for those tokens are not free, the *youngest* running request is **preempted**: it
#    loses its blocks and goes back to the *front* of the queue, to be computed again later. Repeat until
#    it fits; a request that becomes the victim itself is out of this step, and no further running request
#    is looked at.
# 3. Then, only if nobody was preempted, *the waiting*, first come first served: as long as budget is left
#    and fewer than `max_running` run. A request is admitted only if the blocks for **all** its remaining
#    tokens are free, even where only a part of them (a *chunk*) fits this step's budget. The first one
#    that cannot be admitted stops the queue: nobody overtakes.

# %% [markdown]
# Write `schedule`. It moves requests between `waiting` (a deque, first come first) and `running` (a
# list, oldest first), takes the blocks, and returns the tokens to compute in this step by request id; who
# gets none is not in it.
# `limits` has `token_budget`, `max_running` and `chunked_prefill` (without it a prompt is computed whole
# or not at all, and one that exceeds what is left of the budget stops the queue). A request offers
#
# | | |
# |---|---|
# | `request.job.job_id` | its id |
# | `request.remaining` | tokens still to compute before it can write the next one |
# | `request.fits(n)` | whether the blocks for `n` more tokens are free |
# | `request.take(n)` | takes them |
# | `request.preempt()` | gives all its blocks back |
#
# <details><summary>Hint 1: the two loops</summary>
#
# A `while` over positions in `running` (it gets shorter while you look at it), then a `while` over
# `waiting[0]`.
# </details>
# <details><summary>Hint 2: preemption</summary>
#
# `while not request.fits(tokens)`: pop the last of `running`, preempt it, `waiting.appendleft` it. If it
# was the request itself, stop. Python's `while ... else` runs its `else` only if no `break` happened.
# </details>
# <details><summary>Hint 3: admission</summary>
#
# `tokens = min(request.remaining, budget)`, but ask `request.fits(request.remaining)`. Without
# `chunked_prefill`, stop if `tokens < request.remaining`.
# </details>

# %% exercise="schedule" title="An iteration-level scheduler with preemption" minutes=30 difficulty=5 importance=5 points=6
def schedule(waiting, running, limits) -> dict[int, int]:
    """Decides one step: who computes how many tokens, by request id."""
    plan: dict[int, int] = {}
    budget = limits.token_budget
    ### BEGIN SOLUTION
    position, preempted = 0, False
    while position < len(running) and budget > 0:
        request = running[position]
        tokens = min(request.remaining, budget)
        while not request.fits(tokens):
            victim = running.pop()
            victim.preempt()
            waiting.appendleft(victim)
            preempted = True
            if victim is request:
                break
        else:
            request.take(tokens)
            plan[request.job.job_id] = tokens
            budget -= tokens
            position += 1
            continue
        break
    while not preempted and waiting and budget > 0 and len(running) < limits.max_running:
        request = waiting[0]
        tokens = min(request.remaining, budget)
        if tokens < request.remaining and not limits.chunked_prefill:
            break
        if not request.fits(request.remaining):
            break
        running.append(waiting.popleft())
        request.take(tokens)
        plan[request.job.job_id] = tokens
        budget -= tokens
    ### END SOLUTION
    return plan

# %% check="schedule"
schedule = checks.schedule(schedule)

# %% [markdown]
# Your scheduler against static batching: the same 300 requests, the same arrivals (50 a second), the
# same 8,192 tokens of memory. The cost of a step is **assumed** here (see `assumed` in the cell below). Section 5
# replaces it by measured constants.
#
# **Predict**: how many times the throughput of static batching?

# %% prediction="continuous_gain"
### BEGIN SOLUTION
#: continuous_gain = None  # a factor
continuous_gain = 4
### END SOLUTION

# %%
assumed = StepCost(base_s=0.010, per_token_s=0.0002)
static = simulate_static(crowd, assumed, num_slots=8192, max_length=512)
continuous = simulate_continuous(crowd, assumed, num_blocks=8192 // 16, block_size=16, decide=schedule)
for run in (static, continuous):
    print(
        f"{run.policy:>10}: {run.makespan_s:5.1f} s for all, {run.output_throughput:5.0f} tok/s, mean TTFT "
        f"{run.mean_ttft_s:5.2f} s, {run.preemptions} preemptions ({run.origin})"
    )
gain = continuous.output_throughput / static.output_throughput
compare_prediction(continuous_gain, gain, what="throughput, continuous over static", unit="times", origin="simulated")
plots.plot_schedules([static, continuous])

# %% [markdown]
# *In the picture: one line per request, orange while it waits for its first token, blue while it runs.
# Left, static batching: requests that begin and end together, like the steps of a staircase, under a long
# orange wedge. Right, your scheduler: requests start and end one by one, as soon as there is a place, and
# the wedge is a fraction of the one on the left.*
#
# **Read the plot.** Name three reasons why the right side finishes earlier. Why could a real engine differ from it?
#
# <details><summary>Our reading</summary>
#
# Paged memory holds more requests at once (section 3), no request waits for the slowest of its batch, and no step is
# spent on padding. A real engine may differ, because this model has no term for the context length or the network.
# </details>
#
# So let's measure a real engine.
#
# ## 5. Real vLLM under load
#
# The engine from section 1 is still running. First with few requests in flight, each level several
# times, the levels in turn so that a slow phase of the machine hits all of them.

# %% tags=["measures"]
runs = []
with skip_on_failure("the sweep"):
    runs = sweep(engine, profile, (low, middle), "vLLM")
    display(tables.sweep_table(runs))

# %% [markdown]
# With more requests in flight a step takes longer (TPOT grows), but each step gives a token to *every*
# request. If the time of a step is a straight line in the number of requests, two measurements tell what
# any other level will give.

# %% [markdown]
# Write `predict_throughput`. `tpot_s` gives the measured seconds per token of one request at any two
# levels, for instance `{1: 0.010, 5: 0.018}`. Lay a straight line through the two (it may also fall), read
# off the time of a step at `concurrency`, and return the output tokens per second of all requests together.
#
# <details><summary>Hint 1</summary>
#
# In the example each further request makes a step 2 ms longer, and a step of no request at all would take
# 8 ms. At 10 requests: 28 ms.
# </details>
# <details><summary>Hint 2</summary>
#
# In one step of 28 ms each of 10 requests gets one token, so there are `10 / 0.028` tokens per second.
# </details>

# %% exercise="predict_throughput" title="Predict the load you have not tried" minutes=10 difficulty=3 importance=4 points=3
def predict_throughput(concurrency: int, tpot_s: dict[int, float]) -> float:
    """Output tokens per second of all requests, from two measured levels."""
    ### BEGIN SOLUTION
    (low_level, fast), (high_level, slow) = sorted(tpot_s.items())
    per_request = (slow - fast) / (high_level - low_level)
    base = fast - per_request * low_level
    return concurrency / (base + per_request * concurrency)
    ### END SOLUTION

# %% check="predict_throughput"
predict_throughput = checks.predict_throughput(predict_throughput)

# %%
cost = assumed  # of section 4, until there are measured ones
if runs:
    tpot_s = {level: latency_at(runs, level, "median_tpot_ms") / 1000 for level in (low, middle)}
    predicted = {level: predict_throughput(level, tpot_s) for level in (low, middle, top)}
    cost = fit_step_cost(tpot_s)
    print(f"Predicted at {top} in flight: {predicted[top]:.0f} tok/s, from TPOT {tpot_s} s")

# %% [markdown]
# **Predict** with your own head: with the most requests in flight (the profile's top level, printed above),
# how many times the throughput of one request? Then measure it.

# %% prediction="speedup_at_top"
### BEGIN SOLUTION
#: speedup_at_top = None  # a factor
speedup_at_top = 15
### END SOLUTION

# %% tags=["measures"]
ratio = None
with skip_on_failure("the top level"):
    runs += sweep(engine, profile, (top,), "vLLM")
    ratio = speedup(runs, low, top)
    compare_prediction(speedup_at_top, ratio, what=f"throughput at {top} over {low}, your guess", unit="times")
    measured_top = sum(run.throughput for run in runs[-profile.load.repeats :]) / profile.load.repeats
    compare_prediction(predicted[top], measured_top, what=f"throughput at {top}, your formula", unit="tok/s")
    if warning := tables.busy_warning(runs, low, top):
        print(warning)
    display(tables.speedup_table(runs, low, top), tables.sweep_table(runs))

# %%
plots.plot_sweep(runs, predicted) if ratio else None

# %% [markdown]
# *In the picture: left, throughput against concurrency on two logarithmic axes, with the intervals of the
# repeats, your predictions as red diamonds, and a dotted line where it would be if a step cost the same
# whatever the batch. Right, the price for each user: compare how fast TPOT and TTFT grow.*
#
# **Read the tables.** How many times as long does a step take at the top level (the factor of TPOT)? If that were the
# only cost, by which factor would the throughput grow? What takes away the difference to the measured factor?
#
# <details><summary>Our reading</summary>
#
# Divide the ratio of the two levels by the factor of TPOT. This is the factor of the throughput that longer steps alone
# would allow, because each step gives one token to every request in flight. Our simple formula predicts about that.
#
# If the measured factor is lower, look at the last row. The larger the share of TTFT at the top level is, the longer
# the requests wait before their first token, for the prefill of the others and in the queue. The formula leaves this
# wait out. If the measured factor is higher, the two levels that define the line were noisy: compare the intervals, and
# repeat the sweep.
#
# A step reads all weights and starts all kernels once, however many requests share it. One request alone pays for all
# of that, and many requests split the bill. The step gets longer and so does the wait for the first token, so
# throughput is bought with latency, but at a very good price.
# </details>
#
# The engine's own view of the last run, read from its Prometheus metrics while the requests ran:

# %%
if ratio:
    print(runs[-1].series.note)
    display(plot_run(runs[-1].series, runs[-1].result.traces, f"vLLM, {top} requests in flight"))

# %% [markdown]
# *In the picture: above, one line per request, orange until its first token, then blue; as one ends, the
# next begins. In the middle the requests running and waiting inside the engine; below, the share of the KV
# cache in use and preemptions, if any.*
#
# ### Is it the batching, or the continuity?
#
# vLLM cannot be told to batch statically, but its users can be: send the requests in **waves**, and the next
# wave only when the slowest answer of the last is back. The same requests, with answers of very different
# lengths, once in waves and once continuously. Your scheduler predicts the difference, now with the step
# cost measured above (without padding, which vLLM does not compute).

# %% prediction="waves_gain"
### BEGIN SOLUTION
#: waves_gain = None  # how many times as fast as waves is continuous?
waves_gain = 1.6
### END SOLUTION

# %% tags=["measures"]
mixed = make_requests(profile, 6 * middle, seed=50, spread=0.8)
jobs = as_jobs(mixed, profile)
slots = middle * profile.context_length
static = simulate_static(jobs, cost, slots, profile.context_length, padding=False)
continuous = simulate_continuous(
    jobs, cost, slots // block_tokens, block_tokens, SchedulerLimits(max_running=middle), decide=schedule
)
with skip_on_failure("waves"):
    in_waves = waves(engine, profile, mixed, middle, "vLLM, waves")
    flowing = measure(engine, profile, mixed, middle, "vLLM, continuous")
    gain = sum(wave.result.duration for wave in in_waves) / flowing.result.duration
    compare_prediction(waves_gain, gain, what="waves over continuous, your guess", unit="times")
    simulated_gain = static.makespan_s / continuous.makespan_s
    compare_prediction(simulated_gain, gain, what="waves over continuous, your scheduler", unit="times")
    display(tables.waves_table(flowing, in_waves))

# %% [markdown]
# **Read the table.** In which row do more places stay empty, and why? Does this explain how much faster the same
# requests are without waves?
#
# <details><summary>Our reading</summary>
#
# In the waves a place is empty from the end of its answer until the slowest answer of the wave is back. If they are
# sent continuously, a place is filled at the next step, and only the end of the run leaves places empty.
#
# If half of the places in the waves are empty, you might expect twice the speed. The gain is smaller, because a step
# with fewer requests is faster as well. If your scheduler predicts more than you measured, the wait for first tokens
# and the client's own work are the likely reasons, because the simulation has no term for them. If you measured far more
# than it predicts, the machine was probably busier during the waves, so measure both again.
# </details>
#
# ## 6. Too little memory
#
# What if the cache is too small for all who are admitted? First a burst with room for everybody, as a
# yardstick; then this engine stops, and two others start with a **deliberately small** cache: blocks for a
# quarter of the burst. One keeps its keys and values in the data type that the model runs in. The other keeps
# them in **FP8**, one byte per number, and gets the *same bytes*: twice the blocks where the model runs in
# bfloat16, four times where it runs in float32.

# %% tags=["measures"]
burst = make_requests(profile, top, seed=77)
roomy = None
with skip_on_failure("the burst"), engine:  # which stops it afterwards
    roomy = measure(engine, profile, burst, top, "burst, roomy cache")
    print(f"{roomy.throughput:.0f} tok/s, KV cache at most {roomy.series.peak('kv_usage'):.1%} in use")

# %%
length = profile.load.prompt_tokens + profile.load.output_tokens
block_size = 32
tight = top // 4 * blocks_for(length, block_size)
common = {
    "prefix_caching": False, "context_length": 2 * length, "extra_arguments": ("--block-size", str(block_size)),
}
own_tight = f"{profile.dtype_name}, tight"
variants = {  # one block more than tokens need: block 0 is the placeholder
    own_tight: {"kv_blocks": tight + 1, **common},
    "FP8, same bytes": {"kv_blocks": profile.value_bytes * tight + 1, "kv_cache_dtype": "fp8", **common},
}
simulated = {
    name: simulate_continuous(
        as_jobs(burst, profile), cost, options["kv_blocks"] - 1, block_size, decide=schedule
    ).preemptions
    for name, options in variants.items()
}
print(f"Each of {top} requests needs {blocks_for(length, block_size)} blocks of {block_size} tokens. Room for tokens:")
for name, options in variants.items():
    print(f"{name:>16}: {options['kv_blocks'] - 1} blocks")

# %% [markdown]
# **Predict**: how many preemptions will the first of the two count while it serves the burst? (What your
# scheduler says to the same question is shown afterwards.)

# %% prediction="preemptions_predicted"
### BEGIN SOLUTION
#: preemptions_predicted = None  # a count
preemptions_predicted = simulated[own_tight]
### END SOLUTION

# %% tags=["measures"]
squeezed, reasons = run_variants(
    profile, variants, lambda name, small: measure(small, profile, burst, top, name, warmup=1)
)
for name, run in squeezed.items():
    counted = run.series.increase("preemptions")
    if name == own_tight:
        compare_prediction(preemptions_predicted, counted, what=f"preemptions, {name}, your guess")
    compare_prediction(simulated[name], counted, what=f"preemptions, {name}, your scheduler")
if roomy:
    display(tables.pressure_table(roomy, squeezed))
for name, reason in reasons.items():
    print(f"{name}: not run here: {reason}")

# %%
if own_tight in squeezed:
    tight_run = squeezed[own_tight]
    display(plot_run(tight_run.series, tight_run.result.traces, "a burst on a KV cache for a quarter of it"))

# %% [markdown]
# *In the picture: above, the requests; those that start late were waiting for blocks. In the middle, fewer
# run than were sent, the rest wait. Below, the cache is full, and triangles mark the moments at which
# requests lost their blocks.*
#
# **Read the table.** Which cache has the most preemptions, and how much throughput does it lose? Do twice the blocks
# mean half the preemptions?
#
# <details><summary>Our reading</summary>
#
# The first row is the yardstick. If it has preemptions too, the cache wasn't roomy, and its throughput isn't a yardstick.
#
# A prompt is admitted if *it* fits. The engine doesn't count that every running request will soon want more blocks. So
# it admits too many requests, the cache fills up, and the youngest requests lose their blocks and are computed again.
# That costs throughput, as the last column shows. If a tight cache is faster than the one with room, something else kept
# the machine busy during one of the runs, so don't compare their speeds. The preemptions are counts, and they remain
# valid.
#
# These engines had their prefix cache off, so a preempted request computes everything again. With vLLM's default, which
# is on, it finds those of its own full blocks that nobody took in the meantime. For example, 16 requests of 64 + 64
# tokens in 20 blocks compute 2,896 tokens without a prefix cache and 2,272 with it (measured with vLLM 0.32's own
# scheduler, without a model). Remember this when you size a cache by these counts.
#
# Twice the blocks needn't mean half the preemptions. Twice as many requests run at once, and if they reach the end of
# a block at the same step, they all want the next one. Four times the blocks hold this whole burst.
#
# On a CPU, vLLM keeps a cache in FP8 only with AVX-512 or AMX instructions (`v1/attention/backends/cpu_attn.py`). If
# this machine doesn't have them, the reason is printed above instead of a row.
# </details>
#
# Watch `vllm:num_preemptions_total` in production. If it climbs steadily, the cache is too small or `--max-num-seqs` is
# too large.
#
# **Your answer**, in three or four sentences of plain text in the cell below (your instructor reads it): how many preemptions did your two
# engines count, and what had your scheduler predicted? Explain one difference, between the two or from the
# prediction, by the events of one step.

# %% [markdown] answer="preemptions" points=2
# ### BEGIN SOLUTION
# One point: the counts of both engines and both predictions, from the learner's own run (or that the FP8 engine
# was not run here, and why).
#
# One point: a cause at a step. With twice the blocks twice as many requests are admitted; they were admitted
# together, so they need their next block in the same step, and as many are thrown out as blocks are missing.
# (With four times the blocks, where the model runs in float32, the whole burst fits, and nobody is thrown out.)
# Prediction and count differ where the engine admits in another step than the simulation: arrivals take time,
# a step of the engine may hold more tokens, and block 0 is not for tokens.
# ### END SOLUTION

# %% [markdown]
# ### What a full cache forgets
#
# Those two engines had their prefix cache off. With it on, a full block that nobody holds isn't wiped. It joins the end
# of the **free queue** with its content, and a request that begins with the same tokens takes it out again. The pool
# forgets a block only when it is the first of the queue and somebody needs room. Three rules decide which block that is:
#
# * Each full block has a **chained hash**, of its own tokens and of the hash before it. So a block is found only if the
#   whole text before it is the same too.
# * A request gives its blocks back from the last to the first. The end of a text is forgotten before its beginning,
#   because a beginning without its end is useful, but not the other way round.
# * A block that isn't full has no hash, so nobody can find its content. It goes to the front of the queue, and it is
#   given out first.
#
# `PrefixBlockPool` in `utils/kvcache/prefix_blocks.py` has these rules (vLLM: `BlockPool` in `v1/core/block_pool.py`).
# Here are three assistants, each with a system prompt of four blocks, and seven visitors who come one after the other.
# The cache has only ten blocks, and each visitor needs five.

# %%
order = "ABACBAC"
visits = make_visits(profile, order, beginning=4 * block_size, own=20)
small_pool = PrefixBlockPool(10, block_size)
expected = [serve_alone(small_pool, prompt, answer=(-1, -2)) for prompt in visits]
print(f"Visitors of {order}: {len(visits[0])} tokens each, {4 * block_size} of them the assistant's system prompt")

# %% [markdown]
# **Predict**: how many prompt tokens do the seven visitors find in the cache, all together? Draw the free queue on paper
# for the first four of them. (`sum(expected)` is the pool's own answer.)

# %% prediction="cached_predicted"
### BEGIN SOLUTION
#: cached_predicted = None  # tokens, for instance 3 * 4 * block_size
cached_predicted = sum(expected)
### END SOLUTION

# %% tags=["measures"]
full_cache = {**common, "prefix_caching": True, "kv_blocks": 10 + 1, "context_length": 8 * block_size}
with skip_on_failure("the full cache"), launch("vllm", profile, **full_cache) as forgetful:
    found = cached_tokens(forgetful, profile, visits, "visitors, 10 blocks")
    compare_prediction(cached_predicted, sum(found), what="cached tokens of all visitors, your guess", unit="tokens")
    compare_prediction(sum(expected), sum(found), what="cached tokens, the pool's rules", unit="tokens")
    display(tables.visits_table(order, expected, found))

# %% [markdown]
# **Read the table.** Ten blocks hold two assistants and their visitors. Why does the third assistant cost more than one
# miss?
#
# <details><summary>Our reading</summary>
#
# C needs five blocks. Two of them cost nothing, because nobody can find their content: one was never full, and one was
# never used. The other three were given back longest ago. They belong to the assistant that was visited longest ago,
# and its end goes first. The next visitor of that assistant finds only the first block, and takes the blocks of another
# assistant. If users come in turn and the cache is just too small for all, *least
# recently used* is the worst order, because it always forgets the assistant that is asked for next. A router that sends
# each assistant's visitors to one replica avoids this (lab 3.3.2).
# </details>
#
# ### Does quantisation change the answers?
#
# Same prompts, greedy decoding: the share of requests with exactly the same text. Other batches can round
# differently without any quantisation, so the first line is the yardstick for the second (if FP8 runs here).

# %%
for name, run in squeezed.items() if roomy else ():
    print(f"{name:>16} against {profile.dtype_name} with room: {same_answers(roomy, run):.0%} of the answers are the same text")

# %% [markdown]
# A cache in 8 bits keeps 3 bits of mantissa (FP8 E4M3), or a scale per 32 numbers and 8-bit integers
# (llama.cpp's `q8_0`: 34 bytes for 32 numbers, so 1.0625 per number). Does llama.cpp's log agree with the
# formula?

# %% tags=["measures"]
for dtype in (None, "q8_0"):
    options = {"kv_cache_dtype": dtype, "extra_arguments": ("-lv", "4")}
    with skip_on_failure("llama.cpp"), launch("llama_cpp", profile, **options) as llama:
        held = llama_cpp_cache_bytes(llama)
        tokens = min(llama.options.max_sequences, 32) * llama.options.context_length
        formula = tokens * bytes_per_token(here, dtype or "f16")
        print(
            f"llama.cpp, KV cache {dtype or 'f16, its default'}: {held / 2**20:.2f} MiB by its log, "
            f"{formula / 2**20:.2f} MiB by formula ({tokens} tokens)"
        )

# %% [markdown]
# ## 7. `--enforce-eager`: measured, not believed
#
# vLLM can compile the model before it serves (on a GPU it records CUDA graphs as well), or run it eagerly,
# kernel by kernel: `--enforce-eager`. According to an old rule, ARM64 machines such as the DGX Spark *need* the
# flag. They do not: it is absent from NVIDIA's own recipe for the Spark (*cited*: dgx-spark-playbooks,
# nvidia/vllm). Its cost has to be measured. The engine of sections 1 and 5 ran in one mode; here
# is the other.
#
# **Predict**: compiled against eager with **one** request in flight: how many times the throughput?

# %% prediction="compiled_gain"
### BEGIN SOLUTION
#: compiled_gain = None  # a factor
compiled_gain = 1.5
### END SOLUTION

# %% tags=["measures"]
with skip_on_failure("compiled against eager"):
    was_eager = "--enforce-eager" in engine.command
    modes = ("eager", "compiled") if was_eager else ("compiled", "eager")
    if was_eager and (reason := too_slow_to_compile(engine, profile)):
        raise EngineError(reason)
    with launch("vllm", profile, eager=not was_eager) as other:
        other_runs = sweep(other, profile, (low, top), f"vLLM, {modes[1]}")
        starts = {modes[0]: engine.start_seconds, modes[1]: other.start_seconds}
    by_mode = {modes[0]: runs, modes[1]: other_runs}
    display(tables.modes_table(by_mode, starts, (low, top)))
    alone = {mode: throughput_at(by_mode[mode], low).value for mode in modes}
    compare_prediction(
        compiled_gain, alone["compiled"] / alone["eager"], what="one request, compiled over eager", unit="times"
    )

# %% [markdown]
# **Read the table.** Is one mode faster at both levels? At which level is the gain larger, and why? After how many
# seconds has the compiled engine made up for its longer start?
#
# <details><summary>Our reading</summary>
#
# If the two intervals of a column don't overlap, the modes differ, so divide the means. If they overlap, that isn't a
# tie yet, because a difference can be clear although the intervals overlap. Then the interval of the *difference*
# decides (lab 3.3.1, section 3).
#
# Compiling fuses kernels and removes work that is the same at every step, such as launching the kernels one by one from
# Python. If the gain is smaller at the higher level, arithmetic takes most of a full step and launching matters less. If
# the gain stays the same, even a full step is mostly overhead, as with very small models.
#
# To weigh the start against the gain, let the eager engine be ready after $s_e$ seconds with throughput $x_e$, and the
# compiled one after $s_c$ seconds with throughput $x_c > x_e$. Both have written the same number of tokens at the time
# $t$ after launch, and then the compiled engine is ahead:
#
# $$x_e (t - s_e) = x_c (t - s_c) \quad\Rightarrow\quad t = \frac{x_c s_c - x_e s_e}{x_c - x_e}$$
#
# A server that lives for days pays for the longer start once, and finds its compiled code in a cache the next time. A
# test that lives for a minute pays for it every time.
# </details>
#
# ## Summary
#
# | | the idea | where it was measured |
# |---|---|---|
# | KV cache | bytes per token follow from the config, to the block | section 1, against vLLM and llama.cpp |
# | paged memory | no reservation, so several times as many requests | section 3, derived |
# | continuous batching | a place is filled at the next step | sections 4 and 5, predicted and measured |
# | batching | one reading of the weights serves all | section 5, the ratio at the top level |
# | preemption | gladly admitted, thrown out, computed again | section 6, vLLM's own counter |
# | prefix cache | full blocks are found by a chained hash, and the oldest are forgotten | section 6, to the token |
# | quantised cache | FP8: half the bytes of bfloat16, twice the tokens | section 6, if it runs here |
# | compiled or eager | a longer start against shorter steps | section 7, if this machine had the time |
#
# All records of this lab are in `records/`; `load_all()` of `utils.benchmark` reads them.

# %%
if ratio:
    print(f"vLLM {engine.version}, {top} in flight: {ratio:.1f} times the throughput of {low} (measured, {len(runs)} runs)")
for run in filter(None, (roomy, *squeezed.values())):
    print(f"{run.record.label}: {run.throughput:.0f} tok/s, {run.series.increase('preemptions'):.0f} preemptions")

# %% [markdown]
# ## Questions
#
# <details><summary>1. A model has 32 query heads and 8 KV heads. What does GQA save, and what not?</summary>
#
# The cache shrinks to a quarter, so four times as many tokens fit. Weights barely change, and decoding one
# request still reads all of them: alone, a user notices little.
# </details>
# <details><summary>2. Why is the preempted request put at the front of the queue, not at the end?</summary>
#
# It came before all who wait. At the end it could be overtaken forever: first come, first served would be
# broken, and a long request might never finish.
# </details>
# <details><summary>3. Preemption throws work away. Why not refuse requests that might not fit?</summary>
#
# Nobody knows how long answers will be. Reserving for the longest brings back the bound notebook of section
# 3: always safe, mostly empty. Preemption is the price of optimism, and it is rare when the cache is sized
# well. vLLM keeps a share free at admission if you ask for it (`watermark` in its scheduler's config).
# </details>
# <details><summary>4. Would twice as many requests in flight double the throughput once more?</summary>
#
# Only while the fixed part of a step outweighs the part that grows with each request. Your line knows: as
# `concurrency` grows, throughput tends to 1 / (seconds per request in a step). Ask your
# `predict_throughput(2 * top, tpot_s)`, then measure.
# </details>
# <details><summary>5. A user complains about slow first tokens at peak load. Name two causes you saw.</summary>
#
# Prompts of others share the step (prefill takes part of the token budget), and the queue: no place
# (`max_num_seqs`) or no blocks. `vllm:num_requests_waiting` tells the second from the first.
# </details>
#
# ## Further experiments
#
# * Give the burst a shared system prompt and switch `prefix_caching` on: how much is saved? (Lab 3.3.2 is about this.)
# * Change the rule of your scheduler (preempt the one with the most tokens; admit the shortest first) and run
#   section 4 again. Which requests win, and which starve?
# * Start vLLM with `extra_arguments=("--max-num-batched-tokens", "256")` and long prompts: how do chunks of a
#   prompt change TTFT, and to the TPOT of those already decoding?
# * Speculative decoding (lab 3.3.4) spends spare arithmetic to shorten the way of *one* request. With many in
#   flight, how much is spare?
