# %% [markdown]
# # Lab 3.3.6: TensorRT-LLM, prefill and the compiled engine
#
# Reading a page and writing one are different work. A reader takes in all words of a page at a glance; a writer puts down one
# word, looks up, and puts down the next. An engine does both: **prefill** reads the prompt, all its tokens at once; **decode**
# writes the answer, a token at a time. They wait for different things, so what speeds up one may do nothing for the other.
#
# TensorRT-LLM is NVIDIA's engine, and known for its prefill and for its 8-bit and 4-bit number formats. It needs an NVIDIA GPU. This
# lab does the experiments on whatever machine you have, with engines that run there, and never under TensorRT-LLM's name. Section 7
# is about TensorRT-LLM itself: its settings, which you check and repair on any machine, and on a GPU the engine too.
#
# You will be able to
#
# * count a layer's operations and bytes, and predict from two constants of a machine which of them a step waits for;
# * build an engine file with `torch.export` and AOTInductor, check its numbers, and say what compiling buys, and where;
# * choose a chunk size for prefill from a limit on TTFT and one on waiting;
# * weigh a quantised KV cache's savings against its costs, from your own measurements;
# * quantise a block of weights to NVFP4, and explain why its blocks and scales are as they are;
# * find and repair the faults in public recipes for `trtllm-serve`, and write its settings for a requirement;
# * predict what its draft schedule, CUDA graphs, block reuse and capacity policies do.
#
# **Time**: about 3 hours. *Run All* is meant to take at most 5 minutes of them on a quiet CPU, and more with a large
# model on a GPU.
#
# **It starts** two or three vLLM engines in the background and eight small llama.cpp engines, on free ports of 127.0.0.1, and
# stops them. **It writes** one JSON record per measured run into `records/`, engine files into a temporary folder, and, the first
# time, an untrained model (400 MB) into `.models/`. Numbers
# are *measured* here, *cited* with their source, or *derived* by a formula that you see, and each is marked accordingly.
#
# **It needs** a C++ compiler for the engine file of section 3 (Debian, Ubuntu: `apt install g++`). Without one, that section tells
# you so, and the rest of the lab runs.

# %%
import tempfile
from pathlib import Path

import torch
from IPython.display import display

from utils.checks import compare_prediction
from utils.checks import lab_3_3_6 as checks
from utils.engines.fleet import Fleet, start_later
from utils.labs.lab_3_3_6 import chunked_prefill
from utils.profiles import MODELS, load_profile

profile = load_profile()
sizes = profile.load.inside
chunked_engines = start_later(profile, chunked_prefill.variants(profile))  # for section 4, meanwhile
print(f"Profile {profile.name}: {profile.description}")

# %% [markdown]
# > **A box of history.** TensorRT-LLM used to work in three steps. You converted the checkpoint (`convert_checkpoint.py`), you
# > **built an engine** for one GPU, batch size and length (`trtllm-build`), and you served the engine file, often from Triton.
# > The file was called a TensorRT *plan*. It held the chosen kernels, fused layers and packed weights, and it was bound to one kind
# > of GPU and to its sizes. NVIDIA **removed** all of this: the package of 1.3.0rc15 still requires `tensorrt`, and that of
# > 1.3.0rc22 (July 2026) doesn't. This course starts 1.3.0rc28, so its container has no `trtllm-build`, and
# > `LLM(backend="tensorrt")` raises an error (NVIDIA/TensorRT-LLM, `docs/source/legacy/tensorrt-backend-removal.md`).
# >
# > The PyTorch backend replaced it. `trtllm-serve MODEL` loads a Hugging Face checkpoint directly. PyTorch calls the same kernels
# > one by one, and CUDA graphs take away the cost of starting them. So a plan's advantages are there without the plan, and new
# > models need no converter. A YAML file holds the settings.
# >
# > The *idea* of the build step lives on: write the model down as a graph, compile it ahead of time, load a file. Section 3 does
# > that with PyTorch's own tools, in seconds, because the model is small.

# %% [markdown]
# ## 1. What a step waits for
#
# A step multiplies every weight matrix with the vectors of n tokens: in prefill the n tokens of a prompt, in decode one token
# of each of n requests. Two things take time: reading the weights from memory, and multiplying. **Arithmetic intensity** is
# their ratio, operations per byte. Below the machine's own ratio a step waits for memory, above it for arithmetic.

# %% [markdown]
# Write `layer_cost`: operations and bytes of the weight matrices of one decoder layer, as
# `{"flops": ..., "bytes": ...}`, for `tokens` tokens at once and `value_bytes` bytes a number.
#
# The matrices: queries [hidden, heads x head_dim], keys and values [hidden, kv_heads x head_dim] each, the output projection
# [heads x head_dim, hidden], and in the feed-forward block gate and up [hidden, ffn] each and down [ffn, hidden]. Leave out
# norms, the attention itself, and the reading of activations: they are small here.
#
# <details><summary>Hint 1</summary>
#
# Count the numbers in all matrices first. A token costs a multiplication and an addition for each of them.
# </details>
# <details><summary>Hint 2</summary>
#
# The weights are read once for all tokens of the step. So `flops` grows with `tokens`, and `bytes` does not.
# </details>

# %% exercise="layer_cost" title="What a layer costs" minutes=12 difficulty=2 importance=5 points=4
def layer_cost(hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int, tokens: int, value_bytes: int) -> dict[str, int]:
    """FLOP and bytes of a layer's matrices for `tokens` tokens."""
    ### BEGIN SOLUTION
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    parameters = attention + 3 * hidden * ffn
    return {"flops": 2 * parameters * tokens, "bytes": parameters * value_bytes}
    ### END SOLUTION

# %% check="layer_cost"
layer_cost = checks.layer_cost(layer_cost)

# %% [markdown]
# Write `ridge_point_tokens`: the number of tokens at which multiplying takes as long as reading the weights, from the machine's
# `flops_per_s` and `bytes_per_s` and the `value_bytes` of a weight. Below it a step is bound by memory, above it by arithmetic.
#
# <details><summary>Hint</summary>
#
# For one weight: reading takes `value_bytes / bytes_per_s`, multiplying it for n tokens `2 * n / flops_per_s`. Set them equal.
# </details>

# %% exercise="ridge_point_tokens" title="The ridge point" minutes=8 difficulty=2 importance=5 points=2
def ridge_point_tokens(flops_per_s: float, bytes_per_s: float, value_bytes: float) -> float:
    """Tokens at which computing and reading take the same time."""
    ### BEGIN SOLUTION
    return flops_per_s * value_bytes / (2 * bytes_per_s)
    ### END SOLUTION

# %% check="ridge_point_tokens"
ridge_point_tokens = checks.ridge_point_tokens(ridge_point_tokens)

# %% [markdown]
# Write `step_seconds`: the roofline itself. Reading and multiplying go on at the same time, so a step takes as long as the
# longer of the two.

# %% exercise="step_seconds" title="The roofline" minutes=4 difficulty=1 importance=4 points=2
def step_seconds(flops: float, bytes_: float, flops_per_s: float, bytes_per_s: float) -> float:
    """Seconds that a step takes at least."""
    ### BEGIN SOLUTION
    return max(flops / flops_per_s, bytes_ / bytes_per_s)
    ### END SOLUTION

# %% check="step_seconds"
step_seconds = checks.step_seconds(step_seconds)

# %% [markdown]
# By hand, for the tiny model, for the untrained model of the next section, and for Llama-3.1-8B on a DGX Spark (constants *cited*: 273 GB/s, and 125 TFLOP/s in bfloat16,
# derived from NVIDIA's 1 PFLOP in FP4; see `utils/roofline/published.py`):

# %%
from utils.roofline.published import DGX_SPARK, LLAMA_3_1_8B
from utils.model_sizes import cache_shape, read_config
from utils.tinymodel.untrained import untrained_model

configs = {"tiny": read_config(MODELS / "tiny"), "untrained": read_config(untrained_model()), "Llama-3.1-8B": LLAMA_3_1_8B}
for name, config in configs.items():
    shape = cache_shape(config)
    for tokens in (1, 512):
        cost = layer_cost(
            config["hidden_size"], config["intermediate_size"], shape.query_heads, shape.kv_heads, shape.head_dim, tokens, 2
        )
        print(f"{name}, {tokens} tokens: {cost['flops'] / 1e6:,.1f} MFLOP, {cost['bytes'] / 1e6:,.1f} MB a layer")
spark_ridge_point = ridge_point_tokens(DGX_SPARK.flops, DGX_SPARK.bandwidth, 2)
print(f"DGX Spark in bfloat16: the ridge point is at {spark_ridge_point:.0f} tokens (derived from cited constants)")

# %% [markdown]
# ## 2. The ridge point, predicted and measured
#
# Now your machine. The tiny model is so small that the processor's caches hold much of it, so a step hardly waits for memory. This
# section therefore measures the **untrained model**. It has the same architecture and 102 million parameters, made from a seed. Its
# weights are random numbers, so it says nothing sensible, and we use it for speed only.
#
# Two constants are measured: how fast the machine reads as many bytes as the model's matrices have, and how fast it multiplies
# matrices. First the engines of section 4 have to have started, because a starting engine takes a core.

# %% tags=["measures"]
from utils.compiled.prefill_decode import first_layers
from utils.labs.lab_3_3_6 import plots, ridge_point, tables
from utils.speculative.target import load_target

chunk_fleet = chunked_engines.result()
torch.set_num_threads(1)  # two threads on shared cores wait for each other
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16 if device == "cuda" else torch.float32
wide = first_layers(load_target(str(untrained_model()), device=device, dtype=dtype), sizes.wide_layers)
matrices = ridge_point.layer_matrices(wide)
work = ridge_point.work_of(matrices)
machine = ridge_point.measure_constants(work, dtype, seconds=0.4 * sizes.repeats)
print(machine)
print(f"{wide.shape.layers} layers, {work.bytes / 1e6:.0f} MB in {str(dtype).removeprefix('torch.')}")

# %% [markdown]
# **Predict**: at how many tokens is the ridge point on this machine?

# %% prediction="ridge_point_at"
### BEGIN SOLUTION
#: ridge_point_at = None  # tokens
ridge_point_at = ridge_point_tokens(machine.flops, machine.bandwidth, work.bytes / work.parameters)
### END SOLUTION

# %% tags=["measures"]
all_tokens = sorted({*sizes.wide_tokens, *sizes.batches})
through = ridge_point.time_matrices(matrices, all_tokens, sizes.wide_repeats)
compare_prediction(ridge_point_at, ridge_point.measured_ridge_point(through), what="the ridge point", unit="tokens")
display(tables.ridge_point_table(through, work, machine, step_seconds), tables.overlap_table(through))
plots.plot_ridge_point(through, work, machine)

# %% [markdown]
# *In the picture: the time of a step against its tokens, both axes logarithmic. The two dashed lines are your roofline: flat for
# reading, rising for multiplying; they cross at the predicted ridge point. The blue points lie on or above them.*
#
# **Read the tables.** We call a prediction met if the measured time is within 30 % of it. Is it met from 128 to 1,024 tokens, the
# lengths of usual prompts, and is it met with one token? In a row where it isn't, compare the last two columns with the two constants
# that you measured above. Which rate stays below its constant, and why? Finally, does the small table say that reading and
# multiplying overlapped?
#
# <details><summary>Our reading</summary>
#
# A roofline is a bound, so a measured time is the predicted time or longer, apart from noise.
#
# * *128 to 1,024 tokens.* Large products usually run near the rate that you measured, so the prediction is met here. If it isn't, the
#   multiplying units wait for something else, for example for another program on the same cores.
# * *One token.* If the prediction is met, the step really waits for memory. If the step takes more than 30 % longer, look at *weights
#   read*. It is then well below the bandwidth, although plain reading of the same bytes reached that bandwidth. So memory isn't the
#   limit. The time goes into products with a single row, which use a fraction of the multiplying units.
# * *Ridge point.* If one token takes longer than predicted, the flat part of the curve is higher and meets the rising part later.
#   The measured ridge point is then at more tokens than the predicted one.
# * *Overlap.* If the measured time is near the first column, reading and multiplying went on at the same time, as the roofline
#   assumes. If it is near the second, they took turns. In between they overlapped in part.
#
# The shape matters more than the exact numbers. A few tokens cost hardly more than one, and beyond the ridge point every further
# token costs the same.
# </details>
#
# The whole model has more than matrices. Next we measure prefill by prompt length and decode by batch, with 128 tokens in each
# request's cache:

# %% tags=["measures"]
prefill = ridge_point.time_prefill(wide, [n for n in sizes.wide_tokens if n >= 128], sizes.wide_repeats)
decode = ridge_point.time_decode(wide, sizes.batches, 128, 3 * sizes.wide_repeats)
tables.whole_table(prefill, decode, through, work, machine, step_seconds)

# %% [markdown]
# **Read the table.** Compare *not matrices* in the row with the longest prompt and in the row with one decoding request. Which is
# larger, and what else does the model do in that time? How much faster could a compiled engine be at most?
#
# <details><summary>Our reading</summary>
#
# The rest of the time is attention, norms and, at decode, hundreds of small operations that PyTorch starts one by one. If the share is
# larger at decode, it is because each of these operations has a fixed cost, which a long prompt spreads over many tokens and a single
# token can't. A compiled engine can take away this share and nothing else. For example, if half of the time is not matrices, it can
# at most double the speed. If a row shows 0 %, the difference is smaller than the noise of the two measurements.
# </details>

# %% [markdown]
# ## 3. An engine file that everyone can build
#
# `torch.export` runs the model once with symbols in place of sizes and writes down the graph; AOTInductor turns the graph into
# C++, has it compiled, and packs machine code and weights into one file. Loading it needs neither the model's Python nor a
# compiler. That is what TensorRT's builds were, for any CPU or GPU that PyTorch knows.
#
# Two files are built: prefill, for prompts of any length up to the cache's size (a **dynamic shape**: one file for all), and decode,
# one token at any place of a **static KV cache**. The cache is handed in and written in place: the engine has code and weights, the
# caller has the state.
#
# Building takes time per layer, so the profile sets how many of the model's first layers are built here.

# %% tags=["measures"]
from utils.compiled import engine
from utils.labs.lab_3_3_6 import experiments

work_folder = tempfile.TemporaryDirectory()
tiny = load_target(str(MODELS / "tiny"))
small = first_layers(tiny, sizes.layers)
ways, built, why_not_built = {"eager": engine.eager(small)}, {}, ""
try:
    built["prefill"] = engine.build_prefill(small, Path(work_folder.name), sizes.slots)
    built["decode"] = engine.build_decode(small, Path(work_folder.name), sizes.slots)
    ways["torch.compile"] = engine.just_in_time(small)
    ways["built engine"] = engine.Steps(built["prefill"].run, built["decode"].run)
except engine.CompileError as error:
    why_not_built = str(error)
    print(f"not run here: {error}")
print(f"{small.shape.layers} of the tiny model's {tiny.shape.layers} layers, on the CPU in float32")
tables.built_table(built)

# %% [markdown]
# An engine that is fast but wrong is worthless, so we compare the numbers first. Each way of running the model gets the same prompt and
# the same 16 tokens after it, and must give the logits, keys and values that eager gives. Compiled code adds up in another order, so
# the logits differ by rounding. We accept a difference of up to 0.001, because float32 sums in another order differ by about a
# hundredth of that, while a wrong position or a wrong weight changes a logit by far more. Read the table against these two numbers.

# %% tags=["measures"]
prompt = [7, 3, 11, 2, 42] * 6
found = {
    name: experiments.agreement(small, ways["eager"], way, prompt, sizes.slots) for name, way in ways.items() if name != "eager"
}
display(tables.agreement_table(found))
assert all(one.within for one in found.values()), "an engine with other numbers is no engine of this model"

# %% [markdown]
# **Predict**: how many times as fast as eager is the built engine, at decode?

# %% prediction="built_decode"
### BEGIN SOLUTION
#: built_decode = None  # times eager's speed
built_decode = 2
### END SOLUTION

# %% tags=["measures"]
times = experiments.time_steps(small, ways, sizes.prompts, sizes.slots, sizes.repeats)
if "built engine" in ways:
    measured = experiments.median_speedup(times["decode"], "built engine")
    compare_prediction(built_decode, measured, what="the built engine at decode", unit="times eager's speed")
tables.times_table(times)

# %% [markdown]
# **Read the table.** In which work does the built engine gain most, and in which least? Does its range *least ... most* exclude 1.00
# there? How does that compare with *not matrices* in section 2?
#
# <details><summary>Our reading</summary>
#
# If the gain is largest at decode, it is because every operation is tiny there, and PyTorch starts them one after the other from
# Python. Compiled code fuses the small ones and calls the rest without Python. In a long prefill the matrix products take the time.
# They come from the same library in every row, so there is little to win. That is the roofline again, because compiling takes away
# only the work that is *not* matrices.
#
# If a range includes 1.00, this run doesn't show that the engine is faster. If the whole range is below 1.00, the engine is slower for
# that work on your machine.
# </details>
#
# On a GPU the same cost is the start of kernels, and **CUDA graphs** record a whole step and replay it; TensorRT-LLM does so for the
# batch sizes in `cuda_graph_config`.
#
# ## 4. Chunked prefill: one waits, or all wait
#
# An engine's step may hold tokens of many requests: one token of each that decodes, and prompt tokens of one that arrives. A long prompt in
# *one* step makes everybody wait until it is done. **Chunked prefill** cuts it: each step takes at most `max_num_batched_tokens`
# tokens (vLLM), `max_num_tokens` (TensorRT-LLM), and the others get a token in every step.
#
# Three requests decode, and a long prompt comes. Measured on vLLM, for each chunk size: the long request's time to first token, and the
# longest time that one of the others waited for its next token meanwhile.
#
# **Predict**: how many times longer is that wait with the largest chunks than with the smallest?

# %% prediction="stall_ratio"
### BEGIN SOLUTION
#: stall_ratio = None  # times
stall_ratio = 4
### END SOLUTION

# %% tags=["measures"]
def waits_of(name, vllm, turn):
    chunk = int(name.split()[-1])
    return chunked_prefill.measure_waits(vllm, profile, chunk, "lab 3.3.6: chunked prefill")


waits = chunk_fleet.each(waits_of, turns=profile.load.repeats)
chunk_fleet.stop()
if len(waits) > 1:
    typical = sorted((chunked_prefill.typical(several) for several in waits.values()), key=lambda one: one.chunk)
    ratio = typical[-1].stall_s / typical[0].stall_s
    compare_prediction(stall_ratio, ratio, what="the others' longest wait, largest over smallest chunks", unit="times")
    display(chunked_prefill.waits_table(waits), plots.plot_waits(waits))
for name, reason in chunk_fleet.reasons.items():
    print(f"{name}: {reason}")

# %% [markdown]
# *In the picture: a small mark per run, a large one for the median. To the left nobody waits long; at the bottom the long request is
# answered early.*
#
# **Read the table.** How many times longer did the others wait with the largest chunks than with the smallest? By what factor did the
# smallest chunks delay the long request's first token? Which of the two would your users notice?
#
# <details><summary>Our reading</summary>
#
# The others get a token in every step, so their longest wait is about the time of one step, and a larger chunk makes that step longer.
# The long request usually pays for small chunks, because each step has a cost of its own and the prompt needs more steps. If the chunk
# is below the ridge point, each step also reads the weights for few tokens. In the picture, a smaller chunk moves a mark to the left
# and often up.
#
# If the ratio of the two waits is below 1.2, small chunks spared the others hardly anything in your run. Then measure again on a quieter
# machine before you draw a conclusion, because one slow step is enough to hide the effect.
# </details>

# %% [markdown]
# Write `chunk_for`: the chunk size to set. `measured` holds a `(chunk, ttft_s, stall_s)` for each size. Among those that keep both limits
# (`ttft_s` and `stall_s` at most so large) take the one with the shortest TTFT; where none keeps both, return `None`.

# %% exercise="chunk_for" title="A chunk size for two limits" minutes=8 difficulty=2 importance=4 points=3
def chunk_for(measured: list[tuple[int, float, float]], ttft_s: float, stall_s: float) -> int | None:
    """The chunk size that keeps both limits with the shortest TTFT."""
    ### BEGIN SOLUTION
    fitting = [row for row in measured if row[1] <= ttft_s and row[2] <= stall_s]
    return min(fitting, key=lambda row: row[1])[0] if fitting else None
    ### END SOLUTION

# %% check="chunk_for"
chunk_for = checks.chunk_for(chunk_for)

# %%
rows = [(one.chunk, one.ttft_s, one.stall_s) for one in map(chunked_prefill.typical, waits.values())]
for stall_s in (0.1, 0.5, 2.0):
    print(f"the others wait at most {stall_s} s, any TTFT: chunks of {chunk_for(rows, float('inf'), stall_s)}")

# %% [markdown]
# ## 5. Quantisation: savings and costs
#
# Decode reads weights and KV cache. Smaller numbers are read sooner, and a smaller cache holds more requests. llama.cpp keeps both in
# several types; its quantised types pack 32 numbers with one scale: `q8_0` 34 bytes, `q4_0` 18 bytes for 32 numbers.

# %% [markdown]
# Write `requests_that_fit`: how many requests of `tokens` tokens a KV cache of `memory` bytes holds. For each token it keeps a key and a
# value of `head_dim` numbers per layer and KV head; `group` numbers take `group_bytes` bytes (f16: 1 number, 2 bytes). The numbers of a
# token fill whole groups.
#
# <details><summary>Hint</summary>
#
# Numbers of a token: 2 x layers x kv_heads x head_dim. Divide by `group`, multiply by `group_bytes`: bytes of a token.
# </details>

# %% exercise="requests_that_fit" title="Requests that fit" minutes=8 difficulty=2 importance=4 points=3
def requests_that_fit(
    memory: int, tokens: int, layers: int, kv_heads: int, head_dim: int, group: int, group_bytes: int
) -> int:
    """Requests of one length that the KV cache holds."""
    ### BEGIN SOLUTION
    numbers = 2 * layers * kv_heads * head_dim
    return memory // (tokens * (numbers // group * group_bytes))
    ### END SOLUTION

# %% check="requests_that_fit"
requests_that_fit = checks.requests_that_fit(requests_that_fit)

# %%
llama = cache_shape(LLAMA_3_1_8B)
for name, (group, group_bytes) in {"f16": (1, 2), "fp8": (1, 1), "q8_0": (32, 34), "q4_0": (32, 18)}.items():
    fit = requests_that_fit(16 * 10**9, 8192, llama.layers, llama.kv_heads, llama.head_dim, group, group_bytes)
    print(f"{name}: {fit} requests of 8,192 tokens in 16 GB, Llama-3.1-8B (derived)")

# %% [markdown]
# Now measured, on real llama.cpp: three types of KV cache under the same weights, and two types of weights under the same cache. The size
# of the cache comes from the engine's log. Quality is measured on held-out texts, token by token: each engine is handed the
# text so far and gives the probabilities of the next token. **Perplexity** is exp of the mean of -log p(the token that came); 1
# would be certainty. The table also shows how often the likeliest token is the reference's, and how far the probabilities differ.
#
# **Predict**: by how many percent does a `q4_0` cache raise the perplexity?

# %% prediction="q4_rise"
### BEGIN SOLUTION
#: q4_rise = None  # percent
q4_rise = 2
### END SOLUTION

# %% tags=["measures"]
from utils.labs.lab_3_3_6 import quantisation as quantised

llama_cpp = quantised.variants(profile, Path(work_folder.name))
with Fleet(profile, llama_cpp, engine="llama_cpp") as fleet:
    variants = quantised.measure_variants(fleet, profile, "lab 3.3.6: quantisation")
    why_no_llama_cpp = dict(fleet.reasons)
if {quantised.REFERENCE, "BF16 weights, q4_0 KV"} <= set(variants):
    q4, reference = variants["BF16 weights, q4_0 KV"].judged, variants[quantised.REFERENCE].judged
    rise = 100 * (q4.perplexity / reference.perplexity - 1)
    compare_prediction(q4_rise, rise, what="perplexity with a q4_0 cache", unit="% more")
    print(f"Judged on {len(reference.tokens)} tokens; the reference is {quantised.REFERENCE} (measured)")
    display(quantised.variants_table(variants), plots.plot_variants(variants))

# %% [markdown]
# *In the picture: a row per variant: perplexity to the left, as points on an axis that does not begin at 0; speed to the right.*
#
# **Read the table.** Does the memory of each KV type follow your formula? Which type costs the most quality, and do perplexity and
# divergence agree about it? Which type is slower than f16, although it reads fewer bytes?
#
# <details><summary>Our reading</summary>
#
# The memory follows the formula, because the size of a group is fixed. The quality doesn't follow from any formula, so it has to be
# measured on texts of the kind that you serve. If the perplexity falls with a smaller type, that is chance on few tokens. The
# divergence has no luck in it, because it compares all probabilities and not only that of the token that came. Trust it if the two
# disagree.
#
# Speed may go either way. Fewer bytes are read, but they have to be widened before they are multiplied, and a CPU pays for that. If
# the cache is small compared with the weights, as with short contexts, its type hardly changes the speed.
# </details>

# %% [markdown]
# Write `choose_variant`, which returns the variant to serve. `variants` maps a name to `kv_bytes`, `perplexity` and `tokens_per_s`. A variant is allowed
# if it has at most `most_rise` more perplexity than the `reference` (0.01 is one percent) and at least `least_speed` times its speed. Of those take the one with
# the least `kv_bytes`; of equals, the faster.

# %% exercise="choose_variant" title="Which to serve" minutes=10 difficulty=2 importance=4 points=3
def choose_variant(variants: dict[str, dict[str, float]], reference: str, most_rise: float, least_speed: float) -> str:
    """Name of the variant to serve."""
    ### BEGIN SOLUTION
    base = variants[reference]
    good = [
        name
        for name, row in variants.items()
        if row["perplexity"] <= base["perplexity"] * (1 + most_rise)
        and row["tokens_per_s"] >= base["tokens_per_s"] * least_speed
    ]
    return min(good, key=lambda name: (variants[name]["kv_bytes"], -variants[name]["tokens_per_s"]))
    ### END SOLUTION

# %% check="choose_variant"
choose_variant = checks.choose_variant(choose_variant)

# %%
table = {
    name: {"kv_bytes": one.kv_bytes, "perplexity": one.judged.perplexity, "tokens_per_s": one.speed}
    for name, one in variants.items()
}
for rise_allowed in (0.001, 0.02, 0.2):
    if quantised.REFERENCE in table:
        best = choose_variant(table, quantised.REFERENCE, rise_allowed, 0.5)
        print(f"at most {rise_allowed:.1%} more perplexity, at least half the speed: {best}")

# %% [markdown]
# **Your answer**, in three or four sentences of plain text in the cell below (your instructor reads it): which KV type would you serve on
# your machine, and what speaks for it in your own numbers (memory, perplexity, speed)? Where did your roofline and your measurement
# differ most in section 2, and what explains it?

# %% [markdown] answer="what_to_serve" points=2
# ### BEGIN SOLUTION
# One point: names a type with its saved memory (47 % of f16 for q8_0, 72 % for q4_0), the change of perplexity and the ratio of
# speeds from the learner's own table, and weighs them. A type is right if the figures given speak for it.
#
# One point: names the place and explains it by the measurement. It is usually one or a few tokens, where a CPU takes several times
# the predicted time, because products with a single row reach only a part of the read bandwidth. Small operations between the matrices
# take the rest of the whole model's time.
# ### END SOLUTION

# %% [markdown]
# ## 6. FP8, NVFP4 and MXFP4
#
# On a DGX Spark, TensorRT-LLM's published decode rate is twice what bfloat16 allows there, because the weights are in **NVFP4**. This
# section is about such formats as numbers. It shows their **bytes** and their **quality**, and it can't show their speed. Your CPU
# has no instructions for them, so we round the weights to each format and compute in float32 as before.
#
# | format | a number | scales |
# |---|---|---|
# | INT8 | a whole number from -127 to 127 | a float32 for each row |
# | FP8 E4M3 | a float with 4 bits of exponent and 3 of mantissa, up to 448 | a float32 for the matrix |
# | MXFP4 | E2M1: ±0, 0.5, 1, 1.5, 2, 3, 4, 6 | a power of two for each 32 numbers |
# | NVFP4 | E2M1 | an E4M3 number for each 16 numbers, and a float32 for the matrix |

# %% [markdown]
# Write `nearest_e2m1`: the nearest of E2M1's values. A number in the middle of two values goes to the one with the even mantissa,
# which is 0, 1, 2 or 4. Numbers beyond 6 become 6, and negative numbers mirror positive ones.
#
# <details><summary>Hint</summary>
#
# In the list 0, 0.5, 1, 1.5, 2, 3, 4, 6 every second value, from the first on, has an even mantissa. Compare distances of `abs(x)`.
# For example, 0.75, 1.75, 3.5 and 6 become 1, 2, 4 and 6, and 0.25, 1.25, 2.5 and 5 become 0, 1, 2 and 4.
# </details>

# %% exercise="nearest_e2m1" title="A number in four bits" minutes=8 difficulty=2 importance=3 points=3
def nearest_e2m1(x: float) -> float:
    """The 4-bit float that is nearest to x."""
    ### BEGIN SOLUTION
    values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    index = min(range(8), key=lambda i: (abs(abs(x) - values[i]), i % 2))
    return values[index] if x >= 0 else -values[index]
    ### END SOLUTION

# %% check="nearest_e2m1"
nearest_e2m1 = checks.nearest_e2m1(nearest_e2m1)

# %% [markdown]
# Write `nvfp4_block`: the 16 weights of a block as NVFP4 keeps them. The block's **scale** is its largest magnitude divided by 6, so
# that the largest weight becomes 6. The scale is stored in E4M3, relative to `unit`, the one float of the matrix. So divide by `unit`,
# round with `nearest_e4m3`, and multiply by `unit` again. Each weight is divided by the scale, rounded with `nearest_e2m1`, and
# multiplied by the scale. A block of zeros stays zero.

# %% exercise="nvfp4_block" title="A block in NVFP4" minutes=10 difficulty=3 importance=4 points=3
def nvfp4_block(block: list[float], unit: float) -> list[float]:
    """The block's weights after rounding to NVFP4."""
    from utils.quantisation.number_formats import nearest_e2m1, nearest_e4m3
    ### BEGIN SOLUTION
    scale = nearest_e4m3(max(abs(x) for x in block) / 6 / unit) * unit
    if scale == 0:
        return [0.0] * len(block)
    return [nearest_e2m1(x / scale) * scale for x in block]
    ### END SOLUTION

# %% check="nvfp4_block"
nvfp4_block = checks.nvfp4_block(nvfp4_block)

# %% [markdown]
# Now every matrix of the trained tiny model, in each format. The model then predicts held-out texts: answers, which it knows nearly by
# heart, and prose, which it doesn't. The last two rows lie between MXFP4 and NVFP4: each changes one thing of the two.
#
# **Predict**: by how many percent does NVFP4 raise the perplexity on prose?

# %% prediction="nvfp4_rise"
### BEGIN SOLUTION
#: nvfp4_rise = None  # percent
nvfp4_rise = 2
### END SOLUTION

# %% tags=["measures"]
from utils.labs.lab_3_3_6 import format_quality
from utils.quantisation.number_formats import BETWEEN, FORMATS

texts = format_quality.judged_texts(tiny, sizes.quality_texts, sizes.prose_texts)
qualities = format_quality.measure_formats(tiny, {**FORMATS, **BETWEEN}, texts)
prose = {name: one.perplexity["prose"] for name, one in qualities.items()}
compare_prediction(nvfp4_rise, 100 * (prose["NVFP4"] / prose["float32"] - 1), what="perplexity on prose in NVFP4", unit="% more")
format_quality.formats_table(qualities, ridge_point.work_of(ridge_point.layer_matrices(tiny)).parameters)

# %% [markdown]
# **Read the table.** Why do the answers hardly tell the formats apart? Q4_0 and NVFP4 take the same bits. Which has the larger error of
# the weights, and which the better perplexity on prose? Which of the two rows in between is nearer to NVFP4?
#
# <details><summary>Our reading</summary>
#
# On the answers the model is nearly certain, so a small change of its probabilities hardly moves the perplexity. On prose it is
# uncertain, and each error shows.
#
# In our runs NVFP4 has the larger error of the weights and the better perplexity. So the mean error of the weights isn't the whole
# story. E2M1 is finer near zero, where most weights are, and that is one candidate for the reason.
#
# The real scale makes the difference. With a power of two, blocks of 16 are no better than blocks of 32, because the scale is still
# wrong by up to a factor of two.
# </details>
#
# **Your answer**, in two or three sentences (your instructor reads it): why do blocks of 16 with a real scale keep the weights better than
# blocks of 32 with a power of two, and what do they cost?

# %% [markdown] answer="why_blocks_of_16" points=2
# ### BEGIN SOLUTION
# One point: the scale. A power of two can miss the block's largest weight by up to a factor of two, so up to half of E2M1's range is
# unused, or weights above 6 are cut off. An E4M3 scale with 3 bits of mantissa brings the largest weight to about 6.
#
# One point: the block and the cost. Fewer weights share a scale, so one large weight makes fewer neighbours coarse. The cost is 8 bits
# for 16 weights and not for 32, so 4.5 and not 4.25 bits per weight. Evidence from the table, such as the rows in between, is welcome.
# ### END SOLUTION

# %% [markdown]
# ### The speed of fewer bytes
#
# To see speed, we need an engine with real kernels for small numbers. llama.cpp has them for `Q8_0` and `Q4_0`. The untrained model is
# large enough for memory to be the limit.
#
# **Predict**: how many times as fast as BF16 does Q4_0 decode one request?

# %% prediction="q4_speed"
### BEGIN SOLUTION
#: q4_speed = None  # times BF16's speed
q4_speed = 3
### END SOLUTION

# %% tags=["measures"]
from utils.labs.lab_3_3_6 import wide_speed

memory = wide_speed.measure_bandwidth(0.4 * sizes.repeats)
with Fleet(profile, wide_speed.variants(), engine="llama_cpp") as fleet:
    kinds = wide_speed.measure_kinds(fleet, profile.load.repeats)
    why_no_wide = dict(fleet.reasons)
if {"BF16", "Q4_0"} <= set(kinds):
    speed_table = wide_speed.kinds_table(kinds, memory)
    compare_prediction(q4_speed, speed_table.loc["Q4_0", "decode, times BF16"], what="Q4_0 at decode", unit="times BF16's speed")
    display(speed_table)

# %% [markdown]
# **Read the table.** Which share of its bound does each type reach at decode? Do the rates grow as the bytes shrink? What do fewer bytes
# do for prefill, and why?
#
# <details><summary>Our reading</summary>
#
# Decode of one request reads every weight once per token. So its bound grows as the bytes shrink, and so does the rate, as long as
# memory is the limit. If the share of the bound falls for Q4_0, the processor spends more of the time on unpacking 4-bit numbers.
#
# Prefill multiplies each weight with hundreds of tokens, so it waits for arithmetic. Fewer bytes help it only if the kernel also
# multiplies small numbers faster, as llama.cpp's do with 8-bit products on many processors. On a GPU with FP8 or FP4 units that is the
# rule, and it is why TensorRT-LLM's prefill gains from NVFP4, too.
# </details>

# %% [markdown]
# ## 7. TensorRT-LLM
#
# `trtllm-serve MODEL --config FILE` reads its settings from a YAML file. If the file has a typo, or a type that the GPU doesn't have,
# you find out minutes later, when the container has been pulled and the weights have been loaded. So the course checks it first. The
# keys and the kinds of their values come from NVIDIA's JSON Schema, and our own rules add the facts that a schema can't express.
# Each of them describes the engine's behaviour and names the source, because the engine was not run here.

# %%
import yaml

from utils.engines import EngineError, launch
from utils.engines import tensorrt_llm_checks as before
from utils.engines.tensorrt_llm_settings import settings_notes, write_settings

settings = {
    "dtype": "bfloat16",
    "max_batch_size": 32,
    "max_num_tokens": 4096,
    "enable_chunked_prefill": True,
    "kv_cache_config": {"dtype": "fp8", "free_gpu_memory_fraction": 0.7},
    "cuda_graph_config": {"max_batch_size": 32, "enable_padding": True},
    "guided_decoding_backend": "xgrammar",
}
print(yaml.safe_dump(settings, sort_keys=False))

# %% [markdown]
# The table shows what the engine does with seven settings that aren't as they should be. Only *refuses to start* is an error. In the
# other rows the engine starts, and it serves something else than you wrote.

# %%
tables.notes_table({
    "a typo": {"max_batch_sise": 8},
    "a key of an old recipe": {"kv_cache_dtype": "fp8"},
    "an engine build": {"backend": "tensorrt"},
    "NGram with the overlap scheduler": {"speculative_config": {"decoding_type": "NGram", "max_draft_len": 3}},
    "graphs above the batch size": {"max_batch_size": 64, "cuda_graph_config": {"batch_sizes": [1, 32, 128]}},
    "MTP in an older notation": {"speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 1}},
    "long prompts, small steps": {"max_seq_len": 32768, "max_num_tokens": 4096},
}, settings_notes)

# %% [markdown]
# The GPU has a say, too. FP8 needs compute capability 8.9, FP4 needs 10.0, and weights and KV cache have to fit:

# %%
from utils.gpu import Gpu
from utils.memory_plan import need, refusal

spark, ampere = Gpu("NVIDIA GB10", 12.1, 128e9, unified=True), Gpu("NVIDIA A100", 8.0, 80e9)
wanted = need("tensorrt_llm", "Qwen/Qwen3-8B", dtype="bfloat16", context_length=8192, max_sequences=32, kv_cache_gib=16)
for case, faults in {
    "an FP8 cache on an A100": before.device_faults(settings, ampere),
    "8B in bfloat16 where 30 GB are left": [refusal("TensorRT-LLM", wanted, 30e9, spark)],
    "no GPU": before.device_faults(settings, None),
}.items():
    print(f"{case}: {' '.join(faults)}\n")

# %% [markdown]
# ### Public recipes
#
# Recipes on the web are as old as their authors' containers. These three are shortened, with their sources. How does today's engine
# treat them?

# %%
from utils.labs.lab_3_3_6.recipes import RECIPES

recipes = {name: recipe.settings for name, recipe in RECIPES.items()}
for name, recipe in RECIPES.items():
    print(f"{name}: {recipe.source}")
tables.notes_table(recipes, settings_notes)

# %% [markdown]
# Write `repair_recipe`, which rewrites an old recipe with today's keys and keeps its meaning:
#
# | old | today |
# |---|---|
# | `pytorch_backend_config: {...}` | its keys are at the top level |
# | `use_cuda_graph`, `cuda_graph_padding_enabled`, `cuda_graph_batch_sizes`, `cuda_graph_max_batch_size` | `cuda_graph_config` with `enable_padding`, `batch_sizes`, `max_batch_size`; if the graphs are off, it is `None` |
# | `enable_overlap_scheduler: x` | `disable_overlap_scheduler: not x` |
# | `kv_cache_dtype`, `kv_cache_free_gpu_memory_fraction` | `kv_cache_config` with `dtype`, `free_gpu_memory_fraction` |
# | `scheduler_policy: x` | `scheduler_config: {capacity_scheduler_policy: x}` |
# | `num_nextn_predict_layers` in `speculative_config` | `max_draft_len` there |
#
# All other keys stay. If a section is there already, it keeps its own keys. Don't change the recipe that you are given.
#
# <details><summary>Hint 1</summary>
#
# Begin with `old = copy.deepcopy(recipe)`, then merge `old.pop("pytorch_backend_config", {})` into it.
# </details>
# <details><summary>Hint 2</summary>
#
# Collect the parts of a section first, for example `{"dtype": old.pop("kv_cache_dtype")}` if the key is there. Merge them into
# `old.get("kv_cache_config", {})`.
# </details>

# %% exercise="repair_recipe" title="An old recipe repaired" minutes=15 difficulty=3 importance=3 points=4
def repair_recipe(recipe: dict) -> dict:
    """The recipe with the keys of today."""
    import copy
    ### BEGIN SOLUTION
    old = copy.deepcopy(recipe)
    old.update(old.pop("pytorch_backend_config", {}))

    def moved(names):
        return {new: old.pop(key) for key, new in names.items() if key in old}

    graphs = moved({
        "cuda_graph_padding_enabled": "enable_padding",
        "cuda_graph_batch_sizes": "batch_sizes",
        "cuda_graph_max_batch_size": "max_batch_size",
    })
    wanted = old.pop("use_cuda_graph", None)
    if wanted is False:
        old["cuda_graph_config"] = None
    elif wanted or graphs:
        old["cuda_graph_config"] = {**(old.get("cuda_graph_config") or {}), **graphs}
    cache = moved({"kv_cache_dtype": "dtype", "kv_cache_free_gpu_memory_fraction": "free_gpu_memory_fraction"})
    if cache:
        old["kv_cache_config"] = {**old.get("kv_cache_config", {}), **cache}
    if "enable_overlap_scheduler" in old:
        old["disable_overlap_scheduler"] = not old.pop("enable_overlap_scheduler")
    if "scheduler_policy" in old:
        old["scheduler_config"] = {"capacity_scheduler_policy": old.pop("scheduler_policy")}
    method = old.get("speculative_config", {})
    if "num_nextn_predict_layers" in method:
        method["max_draft_len"] = method.pop("num_nextn_predict_layers")
    return old
    ### END SOLUTION

# %% check="repair_recipe"
repair_recipe = checks.repair_recipe(repair_recipe)

# %%
tables.notes_table({name: repair_recipe(dict(recipe)) for name, recipe in recipes.items()}, settings_notes)

# %% [markdown]
# The table shows the remarks that are left. If it is empty, the engine would start with all three as they are.
#
# ### Drafts, graphs and blocks
#
# Speculation pays while few requests run, and costs when many do (lab 3.3.5). TensorRT-LLM's `draft_len_schedule` follows that.
# `{4: 4, 8: 2, 32: 1}` drafts 4 tokens for up to 4 requests, 2 for up to 8, 1 for up to 32, and none for more. Write `draft_length`.

# %% exercise="draft_length" title="A schedule of drafts" minutes=5 difficulty=1 importance=2 points=2
def draft_length(schedule: dict[int, int], batch: int) -> int:
    """Tokens that are drafted for a batch of this size."""
    ### BEGIN SOLUTION
    for size in sorted(schedule):
        if batch <= size:
            return schedule[size]
    return 0
    ### END SOLUTION

# %% check="draft_length"
draft_length = checks.draft_length(draft_length)

# %% [markdown]
# A **CUDA graph** is recorded for one batch size. With `enable_padding` a batch between two sizes runs in the next larger graph, and the
# rows that nobody needs are computed and thrown away. With graphs of 1, 2, 4, 8, 16 and 32, a step of 9 requests wastes 7 of 16 rows.
# Above the largest graph a step runs without one, and nothing is padded. Write `padded_share`: of all rows of the steps with these
# `batches`, the share that is padding.

# %% exercise="padded_share" title="Rows that nobody needs" minutes=8 difficulty=2 importance=3 points=3
def padded_share(sizes: list[int], batches: list[int]) -> float:
    """Share of padded rows, 0 to 1, over all steps."""
    ### BEGIN SOLUTION
    rows = [min([size for size in sizes if size >= batch], default=batch) for batch in batches]
    return (sum(rows) - sum(batches)) / sum(rows)
    ### END SOLUTION

# %% check="padded_share"
padded_share = checks.padded_share(padded_share)

# %%
import random

draw = random.Random(0)
day = [min(32, max(1, round(draw.gauss(11, 4)))) for _ in range(2000)]
for graphs in ([1, 2, 4, 8, 16, 32], [1, 2, 4, *range(8, 33, 8)], list(range(1, 33))):
    print(f"{len(graphs)} graphs: {padded_share(graphs, day):.0%} of the rows are padding (derived from made-up batches around 11)")

# %% [markdown]
# More graphs waste fewer rows, but each takes time to record and memory: NVIDIA's schema says up to 200 MB.
#
# **Block reuse** keeps the blocks of a finished request, so that the next turn of the conversation finds its prefix
# (`enable_block_reuse`, on by default). If the GPU needs a block, it evicts the one that was used the longest time ago. With
# `host_cache_size`, the evicted block moves to host memory and can come back over the bus. Only what leaves host memory, too, is
# computed again.
#
# Write `prefix_places`: for each visit of a user, the place of this user's prefix: `"gpu"`, `"host"` or `"recompute"`. A visit is
# `(user, blocks)`, and a user's prefix always has the same number of blocks. The most recently used prefixes are on the GPU, as many
# as fit into `gpu_blocks`. The next ones are in the host's `host_blocks`. A prefix counts as a whole.
#
# <details><summary>Hint</summary>
#
# Keep a list of the users by their latest visit. A prefix is still on the GPU if it and all prefixes that were used since its latest
# visit have at most `gpu_blocks` blocks together. Each of those counts once.
# </details>

# %% exercise="prefix_places" title="Where the prefix is" minutes=15 difficulty=3 importance=3 points=4
def prefix_places(visits: list[tuple[str, int]], gpu_blocks: int, host_blocks: int) -> list[str]:
    """The place of the prefix at each visit."""
    ### BEGIN SOLUTION
    latest, places = {}, []  # blocks by user, the least recently used first
    for user, blocks in visits:
        place = "recompute"
        if user in latest:
            users = list(latest)
            needed = sum(latest[other] for other in users[users.index(user):])
            if needed <= gpu_blocks:
                place = "gpu"
            elif needed <= gpu_blocks + host_blocks:
                place = "host"
        places.append(place)
        latest.pop(user, None)
        latest[user] = blocks
    return places
    ### END SOLUTION

# %% check="prefix_places"
prefix_places = checks.prefix_places(prefix_places)

# %%
turns = [(f"user {draw.randrange(24)}", 40) for _ in range(600)]  # 24 users, prefixes of 40 blocks of 32 tokens
for gpu_blocks, host_blocks in ((400, 0), (400, 400), (800, 0), (400, 800)):
    places = prefix_places(turns, gpu_blocks, host_blocks)
    shares = ", ".join(f"{place} {places.count(place) / len(places):.0%}" for place in ("gpu", "host", "recompute"))
    print(f"{gpu_blocks} blocks on the GPU, {host_blocks} in host memory: {shares} (derived)")

# %% [markdown]
# ### Who may start
#
# Blocks are scarce, and nobody knows how long an answer will be. `capacity_scheduler_policy` decides who may start:
#
# * `GUARANTEED_NO_EVICT` (the default) admits a request only if its *longest* answer fits together with those of all that run.
# * `MAX_UTILIZATION` admits it as soon as its prompt fits. If blocks run out later, the youngest request is paused and computed again.
#
# The course's own scheduler of lab 3.3.3 runs both, on the same requests. The pool has 120 blocks of 32 tokens. Forty requests arrive at
# once, each with a prompt of 64 tokens and at most 448 tokens of answer.
#
# **Predict**: how many requests run at once, at most, under `GUARANTEED_NO_EVICT`?

# %% prediction="guaranteed_at_once"
### BEGIN SOLUTION
#: guaranteed_at_once = None  # requests
guaranteed_at_once = 120 // ((64 + 448) // 32)
### END SOLUTION

# %% [markdown]
# **Predict**: how many times does `MAX_UTILIZATION` pause a request?

# %% prediction="pauses"
### BEGIN SOLUTION
#: pauses = None  # times
pauses = 10
### END SOLUTION

# %%
from utils.kvcache.simulate import fit_step_cost
from utils.labs.lab_3_3_6 import capacity_policies

few, many = min(decode), max(decode)
policy_runs = capacity_policies.run_policies(fit_step_cost({few: decode[few], many: decode[many]}))
guaranteed, utilised = policy_runs["GUARANTEED_NO_EVICT"], policy_runs["MAX_UTILIZATION"]
compare_prediction(guaranteed_at_once, capacity_policies.most_running(guaranteed), what="requests at once with the guarantee")
compare_prediction(pauses, utilised.preemptions, what="pauses under MAX_UTILIZATION", unit="times")
capacity_policies.policies_table(policy_runs)

# %% [markdown]
# **Read the table.** Which policy needs fewer steps? Which computes more tokens, and why? When would you still choose the guarantee?
#
# <details><summary>Our reading</summary>
#
# Most answers are shorter than the longest that is allowed, so the guarantee leaves blocks unused, and fewer requests share each step.
# `MAX_UTILIZATION` fills the pool. It pays with pauses, because a paused request's tokens are computed again.
#
# Choose the guarantee if a pause in the middle of an answer is worse for your users than a later start, or if answers often reach their
# limit. Then there is little to gain and much to compute twice.
# </details>

# %% [markdown]
# ### Settings for a requirement

# %% [markdown]
# Write `serve_settings`: the file's content as a dictionary, for a requirement. Weights in bfloat16; at most `requests` requests and `chunk`
# tokens in a step; chunked prefill switched on only where a prompt of up to `context` tokens may not fit into a step; a KV cache in fp8 if `fp8`, else
# in the model's type; answers that follow a JSON schema if `json` (the xgrammar backend); and statistics of every step for `/metrics`.
#
# <details><summary>Hint 1</summary>
#
# Look at the YAML above: `dtype`, `max_batch_size`, `max_num_tokens`, `enable_chunked_prefill`, `kv_cache_config`,
# `guided_decoding_backend`, `enable_iter_perf_stats`.
# </details>
# <details><summary>Hint 2</summary>
#
# `kv_cache_config` is a dictionary of its own: `{"dtype": "fp8"}` or `{"dtype": "auto"}`. A prompt does not fit where `chunk < context`.
# </details>

# %% exercise="serve_settings" title="Settings for a requirement" minutes=12 difficulty=3 importance=4 points=4
def serve_settings(requests: int, context: int, chunk: int, fp8: bool, json: bool) -> dict:
    """The configuration of `trtllm-serve`, as a dictionary."""
    ### BEGIN SOLUTION
    settings = {
        "dtype": "bfloat16",
        "max_batch_size": requests,
        "max_num_tokens": chunk,
        "enable_chunked_prefill": chunk < context,
        "kv_cache_config": {"dtype": "fp8" if fp8 else "auto"},
        "enable_iter_perf_stats": True,
    }
    if json:
        settings["guided_decoding_backend"] = "xgrammar"
    return settings
    ### END SOLUTION

# %% check="serve_settings"
serve_settings = checks.serve_settings(serve_settings)

# %% [markdown]
# With a GPU and docker, the cell below starts TensorRT-LLM with *your* settings, then vLLM and SGLang at the same load. It measures
# prefill, TTFT and decode in bfloat16 and, if the GPU has the format, with NVIDIA's FP8 and NVFP4 checkpoints of the same model. On other
# machines it tells you why TensorRT-LLM can't run, and counts it as not run.
#
# In the table below the cell, the row *TensorRT-LLM NVFP4* has the rates to meet on a DGX Spark, which NVIDIA published for Llama-3.1-8B
# (*cited*, 2025-10, `utils/roofline/published.py`). In bfloat16 no engine decodes this model faster than 18 tokens per second at batch 1
# (derived from 273 GB/s over 15.0 GB), because each token reads all weights and one row of the embedding.

# %% tags=["measures"]
from utils.labs.lab_3_3_6 import gpu_engines
from utils.roofline import roofline
from utils.telemetry.iterations import read_iterations

why_no_trtllm = ""
config = write_settings(
    serve_settings(32, profile.context_length, 4096, False, True), Path(work_folder.name) / "trtllm.yml", profile.context_length
)
rates, gpu_reasons = gpu_engines.compare_engines(profile, gpu_engines.gpu_checkpoints(profile), config)
if rates:
    display(gpu_engines.engines_table(rates))
try:
    with launch("tensorrt_llm", profile, config=config, quiet=True) as trtllm:
        gpu_engines.sweep.sweep(trtllm, profile, label="lab 3.3.6: TensorRT-LLM's steps", levels=[max(profile.load.levels)])
        steps = read_iterations(trtllm)
        print(f"{len(steps)} steps in the engine's own statistics, {steps.peak('running')} requests in the fullest")
except EngineError as error:
    why_no_trtllm = str(error).removeprefix("TensorRT-LLM: ")
    print(error)
roofline.judge_published().filter(like="TensorRT-LLM", axis=0)

# %% [markdown]
# ## What did not run here
#
# By name and reason; an empty table means that everything ran.

# %%
from utils.labs.lab_3_3_6.quantisation import fp8_reason, why_no_k_quants

no_gpu = "" if device == "cuda" else "not run here: it needs an NVIDIA GPU"
tables.not_run([
    ("TensorRT-LLM", why_no_trtllm),
    ("speed in FP8 and NVFP4", no_gpu),
    ("CUDA graphs against none", no_gpu or "not in this notebook: TensorRT-LLM and vLLM use them by themselves"),
    ("engine files", why_not_built),
    ("FP8 KV cache in vLLM", fp8_reason(profile)),
    ("Q4_K_M weights of the tiny model", why_no_k_quants([m.shape[1] for m in ridge_point.layer_matrices(tiny)])),
    *chunk_fleet.reasons.items(),
    *why_no_llama_cpp.items(),
    *why_no_wide.items(),
    *gpu_reasons.items(),
])

# %%
work_folder.cleanup()

# %% [markdown]
# ## Summary
#
# | | the idea | where it was measured |
# |---|---|---|
# | intensity | operations per byte; n tokens share one reading of the weights | section 1, by hand |
# | ridge point | where a step stops waiting for memory | section 2, from two constants of your machine |
# | engine file | graph, machine code and weights, built once | section 3: same numbers, other speed |
# | what compiling takes away | all that is not matrices, so decode gains more than prefill | section 3 |
# | chunked prefill | one long prompt, or everybody else | section 4, on vLLM |
# | KV types | memory by formula, quality by measurement | section 5, on llama.cpp |
# | NVFP4, MXFP4, FP8 | bytes and quality of number formats | section 6, on the trained tiny model |
# | fewer bytes | decode grows with them, as far as the roofline | section 6, llama.cpp on the untrained model |
# | settings | checked and repaired before minutes are spent | section 7 |
# | drafts, graphs, blocks, policies | counted before an engine starts | section 7, by hand and on the course's scheduler |

# %% [markdown]
# ## Questions
#
# <details><summary>1. A vendor shows four times the prefill speed of another engine. What does that say about a chat with short prompts?</summary>
#
# Little: there decode takes the time, and decode is bound by bandwidth, which is the same for both engines.
# </details>
# <details><summary>2. The ridge point of a GPU in bfloat16 is at 458 tokens. The weights become 4-bit, computed in bfloat16. Where is it now?</summary>
#
# At a quarter: reading takes a quarter of the time, multiplying as long as before. From about 115 tokens on nothing is gained.
# </details>
# <details><summary>3. Why does a larger batch not help the reading of the KV cache?</summary>
#
# Every request has a cache of its own. A batch shares the weights, not the keys and values; with long contexts those dominate, and a
# smaller type of the cache helps where a larger batch does not.
# </details>
# <details><summary>4. An engine file was built for a cache of 512 tokens. A request has 600. What now?</summary>
#
# It does not fit: static sizes are part of the file. That was the trouble with TensorRT's builds, too: other lengths, batch sizes or
# GPUs meant another build.
# </details>
# <details><summary>5. A file sets NGram and leaves the overlap scheduler on. Does TensorRT-LLM start?</summary>
#
# Yes. It logs that it switches the overlap scheduler off, and goes on. So each step waits for the one before, and you may wonder where
# the speed went.
# </details>
# <details><summary>6. Perplexity rose from 2.50 to 2.51 on 100 tokens. Is the quantised cache worse?</summary>
#
# On so few tokens that may be chance. Look at the divergence of the probabilities, which has no luck in it, and judge more text.
# </details>
#
# ## Further experiments
#
# * `sizes.layers` of 24: build the whole tiny model. How does the building time grow? And the file?
# * A chunk size between the two best: predict both of its times from the table first.
# * `-ctk q8_0 -ctv q4_0`: keys and values of different types (`extra_arguments`). Which of the two is more sensitive?
# * On a GPU: `speculative_config: {decoding_type: Eagle3, max_draft_len: 3, speculative_model: ...}`, and lab 3.3.5's counters.
