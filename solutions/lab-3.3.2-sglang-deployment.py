# %% [markdown]
# # Lab 3.3.2: SGLang and the radix tree over its KV cache
#
# A lawyer's office copies the same forty pages of general terms for every client, and adds two pages of its
# own. A clever office copies the forty pages once. Language models are asked like that all day: the same
# system prompt, the same examples, the same conversation so far, and then a few new words. **RadixAttention**
# keeps what was computed for a prompt, finds the longest beginning that a new prompt shares with any old one,
# and computes only the rest.
#
# You will be able to
#
# * write the radix tree that finds shared prefixes, with locks and eviction, and hold it to its invariants;
# * predict how much of a workload SGLang finds in its cache, to the percent, and check it on the engine;
# * say what a cached prefix buys in time to first token and in throughput, and where that ends;
# * order a queue so that the cache is used well, and nobody starves;
# * compute the token mask of a grammar, get answers that are valid by construction, and tell their cost;
# * write programs in SGLang's language, with `gen`, `select` and `fork`;
# * put a cache-aware router in front of two workers, and see what happens when one dies.
#
# **Time**: about 2½ hours. *Run All* is meant to take at most 5 minutes of them on a quiet CPU, more with a large
# model on a GPU.
#
# **It starts** SGLang four times, vLLM once and SGLang's router three times, on free ports of 127.0.0.1, and
# stops them all (where engines run in containers, one at a time, each section starts its engines again, so plan
# an hour or more for that). **It writes** one JSON record per run into `records/`. Numbers are *measured* here, *cited*
# with their source, or *derived* by a formula or a program that you see, and each is marked accordingly.
#
# On a machine without an NVIDIA GPU this is SGLang's own code, version 0.5.23, with its attention in plain
# PyTorch: its fast CPU kernels are on no package index. One function of that attention is replaced by ours, which
# does not compute again the tokens that the radix cache has (`tools/setup/sglang_cpu` explains the reason). This is good
# for practice and for all that this lab is about, but its speed says nothing about SGLang on a GPU. A DGX Spark runs the untouched container.

# %%
from functools import partial

import pandas as pd
from IPython.display import display

from utils.roofline.roofline import describe_model
from utils.checks import compare_prediction
from utils.checks import lab_3_3_2 as checks
from utils.engines import skip_on_failure
from utils.engines.fleet import Fleet
from utils.engines.grammar import Masks, compile_pattern, schema_pattern, vocabulary
from utils.engines.structured import COMPACT_JSON, fault
from utils.labs.lab_3_3_2 import experiments, plots, tables
from utils.kvcache.audit import audit
from utils.kvcache.radix import Node, RadixCache, cache_with
from utils.kvcache.replay import drain_queue, first_come, longest_prefix
from utils.labs.lab_3_3_2.experiments import cold_and_warm, measure_curve, measure_hits, measure_order, measure_routed
from utils.benchmark import fresh_seed
from utils.labs.lab_3_3_2.masks import TinyModel, steps_table
from utils.labs.lab_3_3_2.workloads import workloads
from utils.profiles import load_profile
from utils.telemetry.cache import cache_report

profile = load_profile()
print(f"Profile {profile.name}: {profile.description}")

# %% [markdown]
# The engines take a while to start, so let them begin now. Three of them get the same requests later: SGLang,
# SGLang without its radix cache, and vLLM. (Where engines run in containers, each starts when it is its turn.)
# `COMPACT_JSON` is explained in section 4. To repeat a measurement of sections 2 to 5 after section 6, run this cell
# again.

# %% tags=["measures"]
fleet = Fleet(
    profile,
    {
        "SGLang": {"extra_arguments": COMPACT_JSON["sglang"]},
        "SGLang, no radix cache": {"prefix_caching": False},
        "vLLM": {"engine": "vllm", "extra_arguments": COMPACT_JSON["vllm"]},
    },
    "sglang",
)
ready = [name for name in fleet.variants if fleet.has(name)]
print("Running, or starting when it is their turn:", ", ".join(ready) or "none")

# %% [markdown]
# ## 1. A tree of prefixes
#
# The keys and values of a token depend on every token before it, and on none after it. So two prompts that
# *begin* alike can share what was computed for the beginning, and nothing else: a paragraph in the middle of
# another prompt is useless. We need an index of beginnings.
#
# A **radix tree** is one. Every node holds a run of tokens, its `key`; a path from the root spells a prefix;
# children of a node differ in their first tokens. Three prompts, one tree:
#
#     root ── [You are a helpful assistant.] ─┬─ [What is a KV cache?]
#                                             └─ [What is a radix ] ─┬─ [tree?]
#                                                                    └─ [sort?]
#
# A node here has `key` (a list of token ids), `parent`, `children` (a dictionary from the first *page* of a
# child's key, a tuple of token ids, to the child), `lock_ref` and `last_used`. A **page** is the unit in which
# memory is given out: 1 token in SGLang by default (some attention backends need 16
# to 128), and 16 or more in vLLM, which calls it a block.
# Only whole pages are shared.

# %% [markdown]
# Write `shared_length`: how many tokens `key` and `tokens[start:]` have in common at their beginning, in whole
# pages of `page_size` tokens.
#
# <details><summary>Hint 1</summary>
#
# Count while both have a next token and the two are equal; then round down to a multiple of `page_size`.
# </details>
# <details><summary>Hint 2</summary>
#
# `zip(key, tokens[start:])` ends with the shorter one. Rounding down is `n // page_size * page_size`.
# </details>

# %% exercise="shared_length" title="What two sequences share" minutes=8 difficulty=2 importance=3 points=2
def shared_length(key: list[int], tokens: list[int], start: int, page_size: int) -> int:
    """Tokens that key and tokens[start:] have in common at their beginning, in whole pages."""
    ### BEGIN SOLUTION
    length = 0
    for own, other in zip(key, tokens[start:], strict=False):
        if own != other:
            break
        length += 1
    return length // page_size * page_size
    ### END SOLUTION

# %% check="shared_length"
shared_length = checks.shared_length(shared_length)

# %% [markdown]
# Write `match_prefix`: the length of the longest prefix of `tokens` that the tree below `root` holds. Walk
# down from the root. A child is found by the next page of tokens, `tuple(tokens[matched:matched + page_size])`.
# The match may end inside a node: then it is over, whatever that node's children hold. Change nothing.
#
# <details><summary>Hint 1</summary>
#
# Keep two things: the node you are at, and how many tokens matched so far. `node.children.get(page)` is `None`
# where there is no such child.
# </details>
# <details><summary>Hint 2</summary>
#
# `shared_length(child.key, tokens, matched, page_size)` tells you how many tokens the child shares. If that is less
# than `len(child.key)`, stop.
# </details>

# %% exercise="match_prefix" title="The longest cached prefix" minutes=12 difficulty=3 importance=5 points=3
def match_prefix(root: Node, tokens: list[int], page_size: int) -> int:
    """Tokens of the longest prefix of `tokens` that the tree holds, in whole pages."""
    ### BEGIN SOLUTION
    node, matched = root, 0
    while True:
        child = node.children.get(tuple(tokens[matched : matched + page_size]))
        if child is None:
            return matched
        length = shared_length(child.key, tokens, matched, page_size)
        matched += length
        if length < len(child.key):
            return matched
        node = child
    ### END SOLUTION

# %% check="match_prefix"
match_prefix = checks.match_prefix(match_prefix)

# %% [markdown]
# Now the heart of it. Write `insert`: store the whole pages of `tokens`, set `last_used` of every node on their
# path to `now`, and return the node that they end with (the root if there is no whole page). Three cases at
# each step down:
#
# 1. *No child begins with the next page*: one new node takes all the rest.
# 2. *A child matches to its end*: continue at that child.
# 3. *A child matches only in part*: cut it in two. The **upper** half is a new node between the child and
#    its parent: it gets the first tokens, and the child's `lock_ref`. The **lower** half is the old node
#    object with the rest of its tokens; it keeps children, locks and `last_used`. (A request that has
#    locked the old node keeps that object and will unlock it, so it must stay the end of the same sequence.)
#
# <details><summary>Hint 1: the loop</summary>
#
# Like `match_prefix`, up to `end = len(tokens) // page_size * page_size`. A new node is `Node(key, parent)`, and
# is entered into `parent.children` under its first page.
# </details>
# <details><summary>Hint 2: the cut</summary>
#
# `upper = Node(child.key[:length], node, {}, child.lock_ref, child.last_used)`. Then `child.key` is cut,
# `child.parent` becomes `upper`, and two entries of `children` are written: `upper` in place of the child,
# and the child below `upper`, under its new first page.
# </details>

# %% exercise="insert" title="Store a sequence, cut a node" minutes=25 difficulty=4 importance=4 points=5
def insert(root: Node, tokens: list[int], page_size: int, now: int) -> Node:
    """Stores the whole pages of `tokens`; returns the node that they end with."""
    ### BEGIN SOLUTION
    node, done = root, 0
    end = len(tokens) // page_size * page_size
    while done < end:
        page = tuple(tokens[done : done + page_size])
        child = node.children.get(page)
        if child is None:
            child = Node(tokens[done:end], node)
            node.children[page] = child
        length = shared_length(child.key, tokens, done, page_size)
        if length < len(child.key):
            upper = Node(child.key[:length], node, {}, child.lock_ref, child.last_used)
            node.children[page] = upper
            child.key, child.parent = child.key[length:], upper
            upper.children[tuple(child.key[:page_size])] = child
            child = upper
        child.last_used = now
        done += len(child.key)
        node = child
    return node
    ### END SOLUTION

# %% check="insert"
insert = checks.insert(insert)

# %% [markdown]
# Memory is finite, so something has to go; but not what a running request is reading. A request therefore
# **locks** its path while it runs.

# %% [markdown]
# Write `lock`: add `change` (1 to lock, -1 to unlock) to `lock_ref` of `node` and of every node above it. The
# root is left alone: it holds no tokens and is never evicted.
#
# <details><summary>Hint</summary>
#
# The root is the only node whose `parent` is `None`.
# </details>

# %% exercise="lock" title="Lock what is in use" minutes=5 difficulty=1 importance=3 points=2
def lock(node: Node, change: int) -> None:
    """Adds `change` to the locks of a node and all above it but the root."""
    ### BEGIN SOLUTION
    while node.parent is not None:
        node.lock_ref += change
        node = node.parent
    ### END SOLUTION

# %% check="lock"
lock = checks.lock(lock)

# %% [markdown]
# Write `evict`: remove **leaves** that nobody locks, the one with the smallest `last_used` first, until at least
# `num_tokens` tokens are gone or no such leaf is left; return how many tokens were removed. A leaf goes as a
# whole. When its last child is gone, a node is a leaf itself. Why leaves only? Because a sequence
# without its beginning can never be matched again.
#
# <details><summary>Hint 1</summary>
#
# Simple and right: as long as it is not enough, walk the tree, collect the leaves, remove the oldest. A stack
# (`todo = [root]`, `todo.pop()`, `todo.extend(node.children.values())`) visits all nodes.
# </details>
# <details><summary>Hint 2</summary>
#
# To remove a leaf, delete it from `leaf.parent.children`; its entry there is the first page of its key, which is
# easiest found by looking for the leaf among the values.
# </details>

# %% exercise="evict" title="Least recently used, leaves only" minutes=18 difficulty=4 importance=5 points=4
def evict(root: Node, num_tokens: int) -> int:
    """Removes unlocked leaves, the least recently used first; returns the tokens removed."""
    removed = 0
    ### BEGIN SOLUTION
    while removed < num_tokens:
        leaves, todo = [], [root]
        while todo:
            node = todo.pop()
            todo.extend(node.children.values())
            if not node.children and not node.lock_ref and node is not root:
                leaves.append(node)
        if not leaves:
            break
        oldest = min(leaves, key=lambda leaf: leaf.last_used)
        siblings = oldest.parent.children
        del siblings[next(page for page, child in siblings.items() if child is oldest)]
        removed += len(oldest.key)
    ### END SOLUTION
    return removed

# %% check="evict"
evict = checks.evict(evict)

# %% [markdown]
# Checks try what their author thought of. A tree like this has **invariants**, which must hold after every step
# of every use: tokens are conserved, no locked node is evicted, every stored sequence is found again, the
# longest match equals brute force. The cell below invents 150 traces of inserts, locks, unlocks, evictions and
# matches, and looks at all of it after each step. If one fails, it is *shrunk* to the shortest trace that still
# fails (the library `hypothesis` does both). Break a line of your `insert`, run its cell (not its check), and try.

# %%
print(audit(match_prefix, insert, lock, evict, traces=150))

# %% [markdown]
# Your tree at work: four questions, one of them locked by a request that is still running. A letter is a token.

# %%
root = Node([])
for now, question in enumerate(("what is a kv cache?", "what is a radix tree?", "what is a radix sort?"), 1):
    end = insert(root, [ord(letter) for letter in question], 1, now)
lock(end, 1)
insert(root, [ord(letter) for letter in "who are you?"], 1, 4)
plots.plot_tree(root, lambda key: repr("".join(map(chr, key))))

# %% [markdown]
# *In the picture: the root's only child holds "wh", which all four share; below it "at is a " and "o are you?".
# The path of "what is a radix sort?" is orange, locked by one request; the branches "kv cache?" and "tree?" are
# blue, and the older of them is the first to go when memory is short.*
#
# ## 2. Predict what SGLang finds
#
# SGLang keeps such a tree (in 0.5.23 its core is in Rust; `srt/mem_cache/unified_cache/unified_tree_core.py`
# has the same in Python). After a request, prompt and answer stay in it until the memory is needed; a
# new request is matched first, and only what does not match is computed. Each answer reports in
# `usage.prompt_tokens_details.cached_tokens` what was found, if the server runs with `--enable-cache-report`.
#
# Five workloads, in the order in which they are sent, one request at a time:
#
# | | prompts |
# |---|---|
# | system prompt | seven questions behind the same instructions |
# | few-shot | two tasks with examples of their own, questions in turn |
# | chat | two conversations of three turns, in turn; each prompt repeats all before it |
# | tree of thoughts | a problem, then two levels of thoughts that branch from it |
# | no sharing | prompts that have nothing in common |

# %% [markdown]
# Write `predict_hit_rate`: play `prompts` through `cache`, a tree with its memory, and return the share of all
# prompt tokens that were cached (0 to 1). `cache.match(prompt)` returns how many tokens of a prompt need not be
# computed. It leaves out the last token, as engines do: that one is always computed, since the answer starts
# from its output. `cache.insert(prompt)` stores a prompt.
#
# <details><summary>Hint</summary>
#
# For each prompt: match, add up, insert. At the end, divide once: all cached tokens by all prompt tokens.
# </details>

# %% exercise="predict_hit_rate" title="Replay a workload" minutes=8 difficulty=2 importance=4 points=2
def predict_hit_rate(prompts: list[list[int]], cache: RadixCache) -> float:
    """Share of all prompt tokens that the cache already holds, 0 to 1."""
    ### BEGIN SOLUTION
    cached = 0
    for prompt in prompts:
        cached += cache.match(prompt)
        cache.insert(prompt)
    return cached / sum(len(prompt) for prompt in prompts)
    ### END SOLUTION

# %% check="predict_hit_rate"
predict_hit_rate = checks.predict_hit_rate(predict_hit_rate)

# %% [markdown]
# `cache_with` makes a cache of **your** functions. For vLLM the same tree is asked in pages of its block size:
# vLLM has no tree but a table of block hashes, each made from the block's tokens and the hash of the block
# before it. It finds the same thing, the longest beginning in whole blocks, as long as nothing is evicted. SGLang
# evicts whole leaves and vLLM single blocks, so after evictions they may differ.

# %%
OwnCache = cache_with(match_prefix, insert, evict)
asked = workloads(profile, seed=fresh_seed())  # to measure again, run this cell again: engines remember
pages = {"SGLang": 1}
with skip_on_failure("vLLM"), fleet.one("vLLM") as vllm:
    pages["vLLM"] = cache_report(vllm).block_size
    print(f"A block of vLLM holds {pages['vLLM']} tokens here")
predicted = {
    engine: {name: predict_hit_rate(prompts, OwnCache(page_size=page)) for name, prompts in asked.items()}
    for engine, page in pages.items()
}
pd.DataFrame(predicted).map("{:.1%}".format).rename_axis("derived from your tree")

# %% [markdown]
# **Predict** before you look: by how many points will the worst of SGLang's five differ from your tree?

# %% prediction="worst_difference"
### BEGIN SOLUTION
#: worst_difference = None  # percentage points, for instance 3
worst_difference = 1
### END SOLUTION

# %% tags=["measures"]
def all_workloads(name, engine, turn):
    return {load: measure_hits(engine, profile, prompts, f"{name}, {load}") for load, prompts in asked.items()}


found = {name: once[0] for name, once in fleet.each(all_workloads, only=pages).items()}
if "SGLang" in found:
    worst = max(100 * abs(hits.rate - predicted["SGLang"][load]) for load, hits in found["SGLang"].items())
    compare_prediction(worst_difference, worst, what="worst difference of SGLang's hit rates", unit="points")
if found:
    display(tables.hits_table(predicted, found))
    display(plots.plot_hits(predicted, found))
else:
    print("Hit rates: not run here, because no engine runs.", fleet.why())

# %% [markdown]
# *In the picture: a pair of bars for each workload, SGLang and vLLM as measured, and across each bar a black line
# where your tree said it would end. "System prompt" is highest, "no sharing" is empty; vLLM is below SGLang, by up to
# a block per prompt.*
#
# **Read the table.** In which row is the difference from your tree largest, and in which direction? Is it large
# enough to need a cause? How far is vLLM's row below SGLang's for the same workload, and why?
#
# <details><summary>Our reading</summary>
#
# You computed the hit rate without a model and without the hardware, because it is a property of the *prompts and
# their order*. If a difference is below half a point, the tree and the engine therefore agree. Larger differences
# have causes:
#
# | difference | likely cause |
# |---|---|
# | half a point to five points | A few tokens per prompt. A prompt happens to begin with the same word as an older one, or the engine shares only whole pages. |
# | over five points less than your tree | The next request arrived while SGLang was still computing the prefix (vLLM shares it as soon as its request is scheduled), or it was evicted because the memory was needed, or the engine's pages are larger than you assumed. |
# | over five points more than your tree | The engine had seen these prompts before. Run the cell that makes the workloads again, and then this one. |
#
# vLLM finds only whole blocks, so it loses up to a block less one token of every shared prefix. If the prefixes are
# short, that is a visible share of the prompt.
# </details>
#
# For your own prompts this means: **put the shared part first**. If the date or a user's name comes before the
# system prompt, no request finds anything.
#
# ## 3. The gain
#
# A prompt that is cached but for its end, against the same length with nothing cached. First on SGLang alone:

# %% tags=["measures"]
prefill_s = rest_s = float("nan")
with skip_on_failure("SGLang"), fleet.one("SGLang") as engine:
    cold, warm = cold_and_warm(engine, profile)
    prefill_s, rest_s = experiments.fit_prefill(cold, warm)
    for point in (cold, warm):
        print(f"{point.fraction:.0%} cached: TTFT {1000 * point.median:.0f} ms (median of {len(point.ttft_s)}, measured)")
    print(f"Prefill of the whole prompt {1000 * prefill_s:.0f} ms, the rest {1000 * rest_s:.0f} ms (derived)")

# %% [markdown]
# TTFT has a part that grows with the tokens that must be computed (**prefill**), and a rest that doesn't: HTTP, the
# tokenizer, the scheduler and one step of the model. If we assume that the first part grows in proportion, two
# measurements give both parts.
#
# **Read the numbers.** In the warm prompt only a twentieth of the tokens is left to compute. Is the first token
# twenty times as fast? Why not?
#
# <details><summary>Our reading</summary>
#
# The cache saves prefill only, and the rest remains. If the warm TTFT is at most a third of the cold one, prefill
# takes most of the time, which is usual in float32 on a CPU. If the warm TTFT is over half of the cold one, the rest
# takes most of the time, for example because the model is small for the machine. If both are about the same, nothing
# was found in the cache: look at the cached share in front of each number.
# </details>

# %% [markdown]
# Write `predict_speedup`: how many times as fast the first token comes if the share `fraction` (0 to 1) of the
# prompt is cached. `prefill_s` is the time to compute the whole prompt, `rest_s` the rest.
#
# <details><summary>Hint</summary>
#
# Cold takes `prefill_s + rest_s`. Warm saves `fraction` of the first part and nothing of the second.
# </details>

# %% exercise="predict_speedup" title="Speed-up against shared fraction" minutes=8 difficulty=2 importance=4 points=2
def predict_speedup(fraction: float, prefill_s: float, rest_s: float) -> float:
    """TTFT with nothing cached over TTFT with `fraction` of the prompt cached."""
    ### BEGIN SOLUTION
    return (prefill_s + rest_s) / ((1 - fraction) * prefill_s + rest_s)
    ### END SOLUTION

# %% check="predict_speedup"
predict_speedup = checks.predict_speedup(predict_speedup)

# %% [markdown]
# "SGLang is so many percent faster" is a sentence that travels without its workload. Faster at *what share of cached
# prompt*? Here is the curve in its place: yours, predicted from the two points above, and the **roofline's**: the
# operations of a whole prompt over those of its end, as if a first token cost arithmetic and nothing else.
#
# **Predict**: with half of the prompt cached, how many times as fast is the first token on SGLang?

# %% prediction="speedup_at_half"
### BEGIN SOLUTION
#: speedup_at_half = None  # a factor
speedup_at_half = 1.8
### END SOLUTION

# %% tags=["measures"]
by_engine = {"SGLang": (0.0, 0.5, 0.75, 0.95), "SGLang, no radix cache": (0.0, 0.95), "vLLM": (0.0, 0.5, 0.8)}
turns = fleet.each(
    lambda name, engine, turn: measure_curve(engine, profile, by_engine[name], f"{name}, shared prefix"), turns=2
)
curves = {name: experiments.merge_turns(several) for name, several in turns.items()}
if "SGLang" not in curves:
    print("The curve: not run here, because SGLang does not run.", fleet.why())
else:
    at_half = curves["SGLang"][0].median / curves["SGLang"][1].median
    compare_prediction(speedup_at_half, at_half, what="TTFT, half of the prompt cached, your guess", unit="times")
    formula = predict_speedup(0.5, prefill_s, rest_s)
    compare_prediction(formula, at_half, what="the same, your formula", unit="times")
    model = describe_model(profile.models["sglang"], profile.dtype)
    own = partial(predict_speedup, prefill_s=prefill_s, rest_s=rest_s)
    arithmetic = partial(experiments.roofline_speedup, model, experiments.UNITS * profile.load.prompt_tokens)
    display(tables.curve_table(curves), plots.plot_speedup(curves, own, arithmetic))

# %% [markdown]
# *In the picture: speed-up on a logarithmic axis against the share cached. A grey dotted line, the roofline, climbs
# steeply towards the right; your red prediction, from SGLang's two points, bends away below it. The points of SGLang
# lie near the red line; vLLM's rest is smaller, so its points may lie nearer to the grey one. Both points of SGLang
# without its radix cache are at the left end, near 1, because nothing was cached.*
#
# **Read the table and the plot.** Up to which share do your points follow the roofline? Why do they leave it? Would a
# larger model leave it earlier or later?
#
# <details><summary>Our reading</summary>
#
# As long as prefill takes most of the time, a cached prefix saves as much as the arithmetic promises. In most runs
# that holds up to about half of the prompt. If more is cached, the rest takes over, because a first token can't come
# faster than everything that isn't prefill. In a larger model the rest has a smaller share, so its curve follows the
# roofline further.
#
# If the lowest and the highest TTFT of a row are far apart, something else kept the machine busy, and a point off the
# curve proves nothing, even if a warm prompt seems slower than a cold one. If both points of SGLang without its radix cache are near 1, as they should be, you know
# that the gain comes from the cache and not from the repetition.
# </details>
#
# And throughput? Six requests come at once, after a system prompt that the engine has seen before:

# %% tags=["measures"]
crowds = fleet.each(
    lambda name, engine, turn: experiments.measure_crowd(engine, profile, f"{name}, crowd"), turns=2
)
display(tables.crowd_table(crowds)) if crowds else print("The crowd: not run here, because no engine runs.", fleet.why())

# %% [markdown]
# **Read the table.** By which factor does the radix cache raise SGLang's throughput? Is the gain larger than the
# difference between two turns of the same engine? Would it grow or shrink with longer answers?
#
# <details><summary>Our reading</summary>
#
# Divide the mean of SGLang by the mean of SGLang without its radix cache. If each turn with the cache is above each
# turn without it, the gain is more than noise. If they overlap, leave it open and repeat the cell.
#
# With the cache, each of the six requests computes only its own end, so the prefill of the system prompt is saved six
# times. Decoding is not saved at all. Longer answers therefore dilute the gain, and longer system prompts raise it.
# vLLM has a prefix cache too, but compare its speed with SGLang's only on a GPU, because here SGLang's attention is
# plain PyTorch.
# </details>
#
# ## 4. Answers that are valid by construction
#
# A program that reads a model's answer wants JSON, not "Sure! Here is your JSON:". **Constrained decoding** turns
# a schema, a regular expression or a list of choices into a grammar; at every step the engine computes which
# tokens can come next, and sets the probability of all others to zero (both engines here use `xgrammar`). The
# answer is valid whatever the model would have liked to say: a small model too. Two things remain yours: what is
# *true* in it, and that it **ends**. A text field without a maximum may go on until `max_tokens` cuts it off, and
# half an object isn't JSON. Blanks have no maximum either: JSON allows any number of them between its parts, and a
# model that once begins to write blanks likes to go on. So both engines were started with the flag that forbids them
# (`COMPACT_JSON`); it is off by default, in both.

# %% [markdown]
# Write `order_schema`, a JSON schema for an order in a coffee bar: an object with exactly the fields `drink` (one
# of `"espresso"`, `"latte"`, `"tea"`), `count` (a whole number from 1 to 9) and `to_go` (true or false). All three
# are required, and nothing else is allowed.
#
# <details><summary>Hint 1</summary>
#
# `{"type": "object", "properties": {...}, "required": [...], "additionalProperties": False}`
# </details>
# <details><summary>Hint 2</summary>
#
# `{"enum": [...]}` for one of several, `{"type": "integer", "minimum": 1, "maximum": 9}` for a bounded number,
# `{"type": "boolean"}` for true or false.
# </details>

# %% exercise="order_schema" title="A schema that ends" minutes=12 difficulty=2 importance=4 points=3
### BEGIN SOLUTION
#: order_schema = ...
order_schema = {
    "type": "object",
    "properties": {
        "drink": {"enum": ["espresso", "latte", "tea"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "to_go": {"type": "boolean"},
    },
    "required": ["drink", "count", "to_go"],
    "additionalProperties": False,
}
### END SOLUTION

# %% check="order_schema"
order_schema = checks.order_schema(order_schema)

# %% [markdown]
# ### The mask of one step
#
# How does an engine know which tokens can come next? The pattern becomes an **automaton** that reads bytes. It has a
# state for every place in the pattern. `moves[state]` is a dictionary from each byte that may come next to the state
# after it. The model doesn't write bytes but tokens, though, and a token may span several parts of the pattern: for
# example, a blank and a quotation mark are one token. So the engine walks through the bytes of *every* token of its
# vocabulary. If each byte has a move, the token is allowed. All other logits become minus infinity before a token is
# sampled.
#
# An example: the pattern is `(true|false)`, and the model has written `tr`. Three tokens are walked from there:
#
# | token | walk | allowed? |
# |---|---|---|
# | `ue` | `u` leads to the state after `tru`, then `e` to the end | yes |
# | `u` | `u` leads to the state after `tru` | yes, the answer can still be finished |
# | `us` | `u` leads to the state after `tru`, but no move has an `s` there | no |

# %% [markdown]
# Write `token_mask`, which returns the ids of all tokens that are allowed in a state, in ascending order. `tokens[i]`
# has the bytes of token `i`. Special tokens have no bytes (`b""`), and no grammar allows them. The token that ends the
# answer isn't your concern, because the engine adds it where the text may end.
#
# <details><summary>Hint 1</summary>
#
# A loop over `b"abc"` gives numbers, and these are the keys of `moves[state]`. Begin each token at `state`, not where the
# token before it ended.
# </details>
# <details><summary>Hint 2</summary>
#
# `moves[after].get(byte)` is `None` if there is no such move. Leave the inner loop at the first `None`.
# </details>

# %% exercise="token_mask" title="The mask of a state" minutes=12 difficulty=3 importance=4 points=3
def token_mask(moves: list[dict[int, int]], state: int, tokens: list[bytes]) -> list[int]:
    """Ids of the tokens whose bytes the automaton can read from `state` on."""
    ### BEGIN SOLUTION
    allowed = []
    for token, spelled in enumerate(tokens):
        after = state
        for byte in spelled:
            after = moves[after].get(byte)
            if after is None:
                break
        if spelled and after is not None:
            allowed.append(token)
    return allowed
    ### END SOLUTION

# %% check="token_mask"
token_mask = checks.token_mask(token_mask)

# %% [markdown]
# Your masks steer the course's tiny model, which runs here in `transformers` on the CPU. The schema of `order_schema` is
# rewritten as a regular expression first, and each mask is kept for the next time that its state is reached.

# %%
tiny = TinyModel()
tokens = vocabulary(tiny.tokenizer)
pattern = schema_pattern(order_schema)
automaton = compile_pattern(pattern)
print(f"The pattern: {pattern}\nIts automaton has {len(automaton.moves)} states.")
masks = Masks(automaton, token_mask, tokens, tiny.tokenizer.eos_token_id)
allowed = token_mask(automaton.moves, automaton.after(b'{"drink": "'), tokens)
print(f"{len(allowed)} of {len(tokens)} tokens may follow {{\"drink\": \":", [tokens[token].decode() for token in allowed])
question = "Take this order as JSON: one large tea to go, please."
constraint = {"json_schema": order_schema}
free, _ = tiny.answer(question)
masked, steps = tiny.answer(question, masks)
_, again = tiny.answer(question, masks)
for name, text in (("free", free), ("masked", masked)):
    print(f"{name:>7}: {text!r}  {fault(text, constraint) or 'valid'}")
display(steps_table(steps, again))

# %% [markdown]
# **Read the table.** In how many steps did the model have no choice at all? How long does a mask take the first time, and
# when its state is reached again? How would both grow with the 151,936 tokens of Qwen3's vocabulary?
#
# <details><summary>Our reading</summary>
#
# Most steps allow only a few tokens, because the schema leaves a choice only for the drink, the number, `to_go`, and how
# a fixed text is cut into tokens. The answer is valid, but it isn't true: the model may order something that nobody asked
# for. Where only one text can follow, an engine could even skip the model (*jump-forward decoding*).
#
# The first time, a mask takes about half a millisecond on our machine, since every token is walked. Later it is only
# looked up. The walk grows with the vocabulary, so with 151,936 tokens it takes about 74 times as long (derived). That
# is as long as a whole step of many models, and each request in the batch needs a mask of its own.
#
# This automaton has few states, so a table of masks is enough. But nested JSON needs a *stack*, and then there are too many states
# for a table. Therefore XGrammar, which both engines use, looks at each position of the grammar before the first request. For
# most tokens the position alone decides (they are *context-independent*), so their bits are computed in advance. Only
# the few others are walked with the stack at each step (Dong et al., *XGrammar*, arXiv 2411.15100, adaptive token mask
# cache).
#
# Your masks equal those of the engines' xgrammar bit for bit, because the course's tests compare both at every step of
# the answers to five patterns.
# </details>
#
# ### Two hundred answers
#
# Two hundred requests on each engine under three constraints, sampled at temperature 0.8, each answer checked by
# libraries that the engines do not use (`jsonschema`, `re`). And some without a constraint, for the pace.
#
# **Predict** the share of the pace of free decoding that is left under the JSON schema on SGLang.

# %% prediction="pace_left"
### BEGIN SOLUTION
#: pace_left = None  # a share, 1 for no cost at all
pace_left = 0.9
### END SOLUTION

# %% tags=["measures"]
constraints = {
    "json_schema": {"json_schema": order_schema},
    "free": {},
    "regex": {"regex": r"20[2-3][0-9]-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"},
    "choice": {"choice": ["positive", "neutral", "negative"]},
}
counts = {"json_schema": 30, "free": 30, "regex": 60, "choice": 110}


def ask(name, engine, turn):
    questions = {kind: experiments.questions(kind, count) for kind, count in counts.items()}
    return [
        experiments.measure_structured(engine, profile, constraint, questions[kind], max_tokens=40)
        for kind, constraint in constraints.items()
    ]


answers = {name: once[0] for name, once in fleet.each(ask, only=pages).items()}
if "SGLang" in answers:
    left = tables.pace_left(answers["SGLang"], "json_schema")
    compare_prediction(pace_left, left, what="pace under the JSON schema over free, SGLang")
if answers:
    display(tables.structured_table(answers))
else:
    print("Constraints: not run here, because no engine runs.", fleet.why())

# %%
for name, kinds in answers.items():
    for one in kinds:
        sample = one.result.traces[0].text
        print(f"{name:>7}, {one.kind:>11}: {sample!r}" + "".join(f"\n{'':>21}NOT VALID: {why}" for why in one.faults))

# %% [markdown]
# **Read the table.** Is every constrained answer valid? Which row can you compare with `free` to see the cost of a
# constraint, and which rows can't you?
#
# <details><summary>Our reading</summary>
#
# Every answer should be valid. If one isn't, its reason is printed above, and most often the answer was cut off at
# `max_tokens`.
#
# Compare `json_schema` with `free`, because their answers have similar lengths. The answers of the other two have only
# a few tokens. These wait mostly for the prefill of other requests, which isn't a cost of the constraint. The mask of
# allowed tokens is computed on the CPU. Compared with a step of a large model it is cheap, and with a tiny model it is
# just visible. If a difference is below a tenth, don't interpret it. If the constrained row is much faster than `free`,
# something else kept the machine busy during one of the two, so measure again. The first request with a new schema also
# waits until the grammar is compiled, but later requests find it ready.
# </details>
#
# If an engine can't turn a schema into a grammar, it has to refuse it with a reason. These four should be refused:

# %%
def refused(name, engine, turn):
    for what, fields in experiments.impossible_requests(engine, profile):
        print(f"{name:>7}, {what}: {experiments.say(engine, fields)}")
    print(f"{name:>7} goes on: {engine.running()}")


_ = fleet.each(refused, only=pages)

# %% [markdown]
# Read the one about the expression that matches nothing, `[^\s\S]`: an engine that does not notice gives an answer
# that cannot match, or fails while it answers (HTTP 500). Constrained or not: check what you get.
#
# ## 5. The SGLang language
#
# SGLang began as a *language*: a Python program in which the model fills in gaps. `gen` generates, `select` chooses
# the text with the highest *mean* log-probability for each token, because a sum would favour short texts, and `fork` goes on in several directions from the same beginning, at the same time.
# The front end (`sglang.lang`, unmodified) talks to the server that is running. Every branch of a fork begins with the same
# tokens, so they are computed once: the language and the radix cache were made for each other.

# %%
from utils.engines.sglang_language import sgl


@sgl.function
def review(s, text):
    s += "Review: " + text + "\n"
    s += "The mood of this review is " + sgl.select("mood", choices=["good", "bad"]) + ".\n"
    branches = s.fork(3)
    for branch, point in zip(branches, ("food", "service", "price"), strict=True):
        branch += f"About the {point}: " + sgl.gen("words", max_tokens=8, temperature=0)
    s += "In short: " + "; ".join(branch["words"].strip() for branch in branches)
    s["cached"] = sum(branch.get_meta_info("words")["cached_tokens"] for branch in branches)
    s["prompt"] = sum(branch.get_meta_info("words")["prompt_tokens"] for branch in branches)


# %% tags=["measures"]
with skip_on_failure("SGLang"), fleet.one("SGLang") as engine:
    sgl.set_default_backend(sgl.RuntimeEndpoint(engine.base_url))
    state = review.run(text="The soup was hot and the waiter was kind, and we paid very little. " * 6)
    print(state.text())
    print(f"\nThe three branches: {state['cached']} of {state['prompt']} prompt tokens were cached (measured)")

# %% [markdown]
# (What is said is not the point: the tiny model of the `cpu` profile was trained on code and tables.) `fork` first lets the common
# beginning finish, and so each branch computes little more than its own words.
#
# ## 6. In which order?
#
# Now the cache is **too small**. Three groups of requests wait, members in turn: A B C A B C ... Served first come,
# first served, each evicts what the next but two could have used. SGLang can order its queue by the **longest cached
# prefix** (`--schedule-policy lpm`): the request with most of its prompt in the cache goes first. But then a
# request that shares nothing waits until no cached ones are left, and if cached ones keep coming, it waits forever.
# SGLang has an escape for long queues only: while more than 128 requests wait, `lpm` orders them first come, first
# served, since matching each of them would take too long (`_determine_active_policy`). A bound
# helps: a request that was passed over `limit` times goes next.

# %% [markdown]
# Write `next_request`: the position of the request to serve next. `cached[i]` is the number of tokens that request `i` would
# find in the cache, and `passed_over[i]` is the number of later requests that were served before it. Both lists are in order
# of arrival. First come requests that were passed over at least `limit` times, the earliest of them. Otherwise take the one
# with most cached, and of equals the earliest.
#
# <details><summary>Hint</summary>
#
# Two steps: a loop over `passed_over` that returns the first position at the limit; then
# `cached.index(max(cached))`.
# </details>

# %% exercise="next_request" title="Longest prefix first, and nobody starves" minutes=12 difficulty=3 importance=3 points=3
def next_request(cached: list[int], passed_over: list[int], limit: int) -> int:
    """Position of the request to serve next."""
    ### BEGIN SOLUTION
    for position, times in enumerate(passed_over):
        if times >= limit:
            return position
    return cached.index(max(cached))
    ### END SOLUTION

# %% check="next_request"
next_request = checks.next_request(next_request)

# %%
queue, groups, capacity = experiments.small_cache_queue(profile)
rules = {"first come": first_come, "longest prefix": longest_prefix, "yours, limit 2": partial(next_request, limit=2)}
replayed = {name: drain_queue(queue, OwnCache(capacity), rule) for name, rule in rules.items()}
for name, served in replayed.items():
    print(f"{name:>14}: hit rate {served.hit_rate:.1%}, passed over at worst {served.worst_wait} times (derived)")
stream, stranger = experiments.starving_queue(profile, followers=40)
for name, rule in rules.items():
    number = drain_queue(stream, OwnCache(), rule).order.index(stranger) + 1
    print(f"{name:>14}: in front of 38 of one group, the third in the queue is served as number {number} (derived)")
plots.plot_orders({name: served.order for name, served in replayed.items()}, groups)

# %% [markdown]
# *In the picture: a row of boxes per rule, in the order of service, the colour for the group. First come, first
# served: the colours alternate. Longest prefix: blocks of one colour, and the white box, the stranger, is pushed
# back. With your limit the blocks are torn where somebody has waited long enough.*
#
# And the engine? Two SGLangs that serve one request at a time, with a cache of that size, one per rule.
#
# **Predict**: how much higher is the hit rate with `lpm`, in points? (The prediction of your tree is above.)

# %% prediction="lpm_gain"
### BEGIN SOLUTION
#: lpm_gain = None  # percentage points
lpm_gain = 100 * (replayed["longest prefix"].hit_rate - replayed["first come"].hit_rate)
### END SOLUTION

# %% tags=["measures"]
fleet.stop()
small = {"kv_blocks": capacity, "max_sequences": 1, "context_length": capacity}
pair = Fleet(
    profile,
    {
        "first come": small | {"extra_arguments": ("--schedule-policy", "fcfs")},
        "longest prefix": small | {"extra_arguments": ("--schedule-policy", "lpm")},
    },
    "sglang",
    together=True,
)
served = pair.each(lambda name, engine, turn: measure_order(engine, profile, queue, f"SGLang, {name}"))
orders = {name: once[0] for name, once in served.items()}
if len(orders) == 2:
    gain = 100 * (orders["longest prefix"][0].rate - orders["first come"][0].rate)
    compare_prediction(lpm_gain, gain, what="hit rate of lpm over fcfs", unit="points")
if orders:
    display(tables.orders_table(orders, replayed, groups))
    display(plots.plot_orders({name: order for name, (_, order) in orders.items()}, groups))

# %% [markdown]
# *In the picture: the same rows of boxes, now in the order in which the two engines answered.*
#
# **Your answer**, in three or four sentences of plain text in the cell below (your instructor reads it): which hit rates did
# your two SGLangs reach, and what had your tree predicted? Name the request that paid for the better one, and say
# what you would choose for a chat service, and why.

# %% [markdown] answer="order" points=2
# ### BEGIN SOLUTION
# One point: both measured hit rates and both predictions, from the learner's own run (or that an engine was not run
# here, and why).
#
# One point: the request that shares nothing is served late under `lpm`, and in a steady stream never; so for a chat
# service either a bound (aging, as in the learner's rule) or first come, first served with a cache that is large
# enough; `lpm` alone for a batch, where only the end counts.
# ### END SOLUTION

# %% [markdown]
# ## 7. Two workers and a router
#
# Two workers have two caches. A router that deals requests out in turn (`round_robin`) puts every prefix into both.
# SGLang's router (`sglang-router`, a program of its own) keeps an approximate radix tree of the prompts that it has sent to each worker,
# and sends a request to the worker that knows its beginning (`cache_aware`), unless the load is far out of balance,
# by 64 requests or more if nothing else is set: two in flight, as here, never are.
#
# **Predict**: three groups of prompts, shuffled, on the two small workers of section 6. The hit rate of
# `cache_aware`, in percent?

# %% prediction="routed_rate"
### BEGIN SOLUTION
#: routed_rate = None  # percent
routed_rate = 40
### END SOLUTION

# %% tags=["measures"]
workers = pair.running
if len(workers) < 2:
    print("Routing: not run here: it needs both workers of section 6. Run the cell that starts them again.")
else:
    routed = [
        measure_routed(workers, profile, policy, experiments.router_prompts(profile))
        for policy in ("round_robin", "cache_aware")
    ]
    compare_prediction(routed_rate, 100 * routed[-1].rate, what="hit rate of cache_aware", unit="%")
    display(tables.routes_table(routed), plots.plot_routes(routed))
    survivors = measure_routed(
        workers, profile, "cache_aware", experiments.router_prompts(profile), output_tokens=16, kill_after_s=1.5
    )
    sent = len(survivors.result.traces)
    print(f"Died: {tables.dead_workers(survivors)}. Answered: {sent - survivors.failed} of {sent} requests (measured)")
    display(tables.lost_table(survivors))
pair.stop()

# %% [markdown]
# *In the picture: left, the hit rate of each policy; right, the prompt tokens that each worker received.*
#
# **Read the tables.** Which policy has the higher hit rate, and which has the more even load? Of the requests that
# were lost when the worker died, which may a client simply send again?
#
# <details><summary>Our reading</summary>
#
# With `round_robin` each small cache sees all three groups, but can hold little more than one of them. With
# `cache_aware` a worker sees the groups that it knows, so its hit rate should be far higher. The price is balance: if
# three groups share two workers, one worker has more to do.
#
# When a worker dies, the answers that it was writing are lost. The router can't know how much the user has read
# already, so such a stream ends with an error. In the table these are the requests with one or more chunks. Requests
# with 0 chunks lost no token, and a client may send them again. They fail because the router notices a death only after
# three failed health checks (one a second) or ten failed attempts, which open the worker's *circuit breaker*. Until
# then it may try the dead worker up to five times for one request and then answer HTTP 500.
#
# If the table is empty, the router sent the requests to the other worker in time. If no worker died, all requests were
# answered before the worker was killed, so run the cell again.
#
# Lab 3.3.7 is about retries: who should repeat a request, and when.
# </details>
#
# ## Summary
#
# | | the idea | where it was measured |
# |---|---|---|
# | radix tree | the longest shared beginning, found token by token | section 1, your own |
# | hit rate | a property of prompts and their order | section 2, your tree against `cached_tokens` |
# | TTFT | only what is new is computed; the rest remains | section 3, the curve |
# | block hashes (vLLM) | the same in whole blocks | sections 2 and 3 |
# | constrained decoding | no token that the grammar forbids | section 4, every answer checked |
# | fork | a common beginning is computed once | section 5, `cached_tokens` of the branches |
# | order | the longest prefix first, with a bound | section 6 |
# | routing | a prefix lives on one worker | section 7 |
#
# All records of this lab are in `records/`; `load_all()` of `utils.benchmark` reads them.

# %% [markdown]
# ## Questions
#
# <details><summary>1. Your application puts "Today is Thursday, 10:42." in front of a system prompt of 2,000 tokens. What is its
# hit rate, and what do you change?</summary>
#
# Practically none: prompts share the first few tokens, until the minute differs. Put the part that changes after the part that does
# not: the date goes to the end of the system prompt, or into the user's message.
# </details>
# <details><summary>2. Why may only leaves be evicted?</summary>
#
# A node in the middle is the beginning of everything below it. Without it the rest can never be matched, since a
# match starts at the root: its memory would be held for nothing.
# </details>
# <details><summary>3. Two requests with the same new prefix arrive in the same millisecond. How much do they share?</summary>
#
# In SGLang a prefix can be reused when its prefill is done. So there is nothing in the tree yet, and both would compute
# it. Its `lpm` looks for that and holds the second one back a little. With `fcfs` both are computed, and one of the two
# copies is thrown away afterwards. In vLLM a prefix can be reused when its request is *scheduled*, even by the next
# request of the same step, because the step writes all new keys and values before its attention reads them. So the
# second request computes only its own end (`KVCacheManager.allocate_slots`).
# </details>
# <details><summary>4. Larger pages make the tree smaller and the memory access more regular. What do they cost?</summary>
#
# Up to a page less one token of every shared prefix: see vLLM's row in section 2. With prefixes of thousands of tokens
# that is little, with short ones a lot.
# </details>
# <details><summary>5. Is a cached prefix a way to read somebody else's prompt?</summary>
#
# Not its text. But anybody who measures TTFT can tell whether a beginning was asked before. This is a timing side
# channel. Where
# that matters, caches are separated by user (`cache_salt` in vLLM and SGLang), at the price of fewer hits.
# </details>
#
# ## Further experiments
#
# * Start the engines of the first cells again, and send section 2's workloads eight at a time
#   (`measure_hits(..., concurrency=8)`). Which hit rate falls, and why?
# * Start SGLang with `extra_arguments=("--page-size", "16")`, and predict its hit rates with your tree.
# * Give `order_schema` a field `name` without a maximum length, and count valid answers again.
# * `--schedule-policy hrrn` (highest response ratio next) is SGLang's own remedy against starving. What does it do to
#   the stranger of section 6?
# * Lab 3.3.3 builds the paged memory below the tree; lab 3.3.4 shortens decoding, which no prefix cache does.
