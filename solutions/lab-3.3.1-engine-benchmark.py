# %% [markdown]
# # Lab 3.3.1: Engine benchmark
#
# Five engines claim to be the fastest. By the end of this lab you can say which one is, *for your
# use, on your machine*, and you can tell a number that was measured from one that was made up.
#
# You will be able to
#
# * compute TTFT, TPOT and ITL from a raw event stream, and say what each of them hides;
# * tell a closed loop from an open loop, and why one of them flatters an engine;
# * report percentiles, goodput and confidence intervals that hold up;
# * predict decode and prefill ceilings from a roofline, and judge published numbers with it;
# * recommend an engine for a use case from your own records.
#
# **Time**: about 3 hours. *Run All* takes some minutes of them on a quiet CPU, most of them in section 5, where every
# engine is measured in three rounds. With a large model on a GPU it takes longer.
#
# **It starts** vLLM, llama.cpp, a naive `transformers` server, and SGLang, TensorRT-LLM and Ollama where they run, on
# free ports of 127.0.0.1, and stops each of them. **It writes** one JSON record per run and an HTML
# report into `records/`. If your machine cannot run something, the lab names it at the end and never imitates it.

# %%
import json

import numpy as np
import pandas as pd
from IPython.display import display

from utils.benchmark import (
    ClosedLoop, OpenLoop, Request, Slo, load_all, make_record, repeat_interval, run, write_record
)
from utils.benchmark import foreign, report, stream_plot
from utils.roofline import roofline
from utils.benchmark.engine_clients import benchmark_client, chat_client
from utils.benchmark.sweep import prompts
from utils.checks import compare_prediction
from utils.checks import lab_3_3_1 as checks
from utils.engines import launch_first, skip_on_failure
from utils.labs.lab_3_3_1 import experiments, tables
from utils.profiles import load_profile

profile = load_profile()
pd.set_option("display.max_colwidth", None)
pd.set_option("display.float_format", report.number)
print(f"Profile {profile.name}: {profile.description}")

# %% [markdown]
# ## 1. What a stream looks like
#
# An engine answers with *server-sent events*. The picture shows one real request from the
# outside. Each mark is the moment at which a piece of text arrived.

# %% tags=["measures"]
not_run = {}  # reasons, by engine
first = launch_first(("vllm", "llama_cpp", "sglang"), profile, not_run)  # vLLM, unless it doesn't start here
warm = prompts(profile, 2)  # new prompts at every call, because the engine remembers those that it has seen
with skip_on_failure("one stream"):
    one = run(chat_client(first), prompts(profile, 1), ClosedLoop(1), warmup=warm)
    trace = one.traces[0]
    stream_plot.draw_stream(trace)
    print(f"{trace.completion_tokens} tokens in {len(trace.chunk_times)} chunks")

# %% [markdown]
# *In the picture: a time axis in milliseconds. The grey bar up to the first mark is the prefill
# (the engine reads the prompt), then one mark per chunk (it writes).*
#
# These are the first and last events that came over the wire for another request:

# %% tags=["measures"]
ask = Request(prompt="What is continuous batching?", max_tokens=profile.load.output_tokens)
raw = []
with skip_on_failure("its events"):
    async with chat_client(first) as raw_client:
        raw = [(at, data) async for at, data in raw_client.events(ask)]
    for at, data in (*raw[:3], *raw[-3:]):
        print(f"{at * 1000:6.1f} ms  {data[:140]}")

# %% [markdown]
# Three numbers describe such a stream. Our definitions are stricter than those of `vllm bench serve` 0.32:
#
# | name | meaning here | in `vllm bench serve` |
# |---|---|---|
# | **TTFT**, time to first token | from sending to the first chunk *with text* | to the first chunk, even if it holds only the role |
# | **E2EL**, end-to-end latency | to the last chunk with text or a finish reason | to the last chunk with `choices` |
# | **TPOT**, time per output token | (E2EL − TTFT) ÷ (output tokens − 1) | the same formula, with its TTFT and E2EL |
# | **ITL**, inter-token latency | the gap between one chunk with text and the next | the gap between two chunks |
# | start, in an open loop | when the request was *due* | when it was sent; the wait is a number of its own |
#
# Two traps. The first event usually carries only the role, no text: it is not a token. And a
# chunk may carry *several* tokens (speculative decoding makes that the rule): count tokens from
# the engine's `usage` block, never from chunks. If you count chunks, an engine with
# speculation looks slower than it is.

# %% [markdown]
# Write `stream_metrics`. `events` are pairs of arrival time (seconds) and text; some texts are
# empty, and any other counts as text, a lone newline too. Return a dictionary with `ttft`, `tpot`
# and `e2el` (from sending to the last text) in seconds. A one-token answer has a TPOT of 0.
#
# Your `e2el` ends with the last text, because `events` doesn't tell you the finish reasons. The course's client counts a
# last chunk that has only a finish reason too, so its E2EL can be a little longer.
#
# <details><summary>Hint 1</summary>
#
# Make a list of the times of those events that have text. Its first and last entry are all you need.
# </details>
# <details><summary>Hint 2</summary>
#
# The number of tokens is an argument because it comes from `usage`. You do not count anything.
# </details>

# %% exercise="stream_metrics" title="Metrics from a raw stream" minutes=15 difficulty=2 importance=5 points=3
def stream_metrics(
    sent: float, events: list[tuple[float, str]], completion_tokens: int
) -> dict[str, float]:
    """TTFT, TPOT and end-to-end latency in seconds."""
    ### BEGIN SOLUTION
    times = [at for at, text in events if text]
    ttft = times[0] - sent
    e2el = times[-1] - sent
    tpot = (e2el - ttft) / (completion_tokens - 1) if completion_tokens > 1 else 0.0
    return {"ttft": ttft, "tpot": tpot, "e2el": e2el}
    ### END SOLUTION


# %% check="stream_metrics"
stream_metrics = checks.stream_metrics(stream_metrics)

# %% [markdown]
# The table shows your function on the raw events, next to the figures of the course's client for the request in the
# picture. That is another request, so they are near but not equal:

# %%
if raw:
    parsed = [(at, json.loads(data)) for at, data in raw if data != "[DONE]"]
    usage = next(event["usage"] for _, event in reversed(parsed) if event.get("usage"))
    events = [
        (at, event["choices"][0]["delta"].get("content") or "") for at, event in parsed if event["choices"]
    ]
    print("".join(text for _, text in events))
    print(f"\n{usage['completion_tokens']} tokens by usage, {len(events)} events")
    yours = stream_metrics(0.0, events, usage["completion_tokens"])
    reference = {"ttft": trace.ttft(), "tpot": trace.tpot, "e2el": trace.e2el()}
    display(pd.DataFrame({"yours (ms)": yours, "the client's (ms)": reference}).mul(1000))

# %% [markdown]
# ## 2. Closed loop, open loop
#
# A **closed loop** is a fixed number of users who each wait for an answer before they ask again.
# It measures throughput well. But when the engine stalls, the users stall with it: nobody asks
# while it is slow, so the slow moment is recorded *once*, not once for everybody who would have
# come. Gil Tene named this *coordinated omission*.
#
# An **open loop** sends on a schedule (a Poisson process: independent people), whether or not
# earlier answers have come. Its latency counts from when a request **was due**.

# %% [markdown]
# A server handles one request at a time, each in `service` seconds, first come first served.
# Requests are due at `arrivals`. Return the latency of each, counted from when it was due.
#
# <details><summary>Hint</summary>
#
# Keep one variable: the time at which the server is free again. A request starts when it is due or
# when the server is free, whichever is later.
# </details>

# %% exercise="open_loop_latencies" title="Latency that omits nothing" minutes=15 difficulty=2 importance=4 points=3
def open_loop_latencies(arrivals: list[float], service: float) -> list[float]:
    """Latencies in seconds, counted from when each request was due."""
    ### BEGIN SOLUTION
    free = 0.0
    latencies = []
    for due in arrivals:
        free = max(free, due) + service
        latencies.append(free - due)
    return latencies
    ### END SOLUTION


# %% check="open_loop_latencies"
open_loop_latencies = checks.open_loop_latencies(open_loop_latencies)

# %% [markdown]
# Now on the real engine. First a closed loop at the middle level: how many requests a second does
# it complete? Then open loops at shares of that rate, up to more than it can take.
#
# In an open loop requests are due at random times (a Poisson process), whatever the engine does. `max_concurrency`
# keeps the engine's load the same in all four runs: as with `--max-concurrency` of `vllm bench serve`, at most
# `middle` requests are in flight, and one that is due while all are taken waits in the client. The clock that starts
# when a request is *sent* does not see that waiting. The clock that starts when it was *due* does.

# %% tags=["measures"]
middle = profile.load.levels[len(profile.load.levels) // 2]
count = profile.load.requests_at(middle)
open_records = []
with skip_on_failure("the open loop"):
    client = benchmark_client(first)
    closed = run(client, prompts(profile, count), ClosedLoop(middle), warmup=warm)
    capacity = closed.summary()["request_throughput"]
    print(f"closed loop, {middle} users: {capacity:.1f} requests/s")
    for i, share in enumerate((0.5, 1.0, 1.5)):
        load = OpenLoop(capacity * share, seed=i, max_concurrency=middle)
        label = f"open loop at {share:.0%}"
        result = run(client, prompts(profile, 2 * count), load, label=label, alive=first.running)
        record = make_record(result, first, profile, label=f"{first.spec.title}, {share:.0%} of capacity")
        write_record(record)
        open_records.append((share, result, record))

# %%
pd.DataFrame(
    {
        "load": f"{share:.0%}",
        "from when it was sent, p95 (ms)": result.summary(clock="sent")["p95_e2el_ms"],
        "from when it was due, p95 (ms)": result.summary(clock="scheduled")["p95_e2el_ms"],
        "the client itself was late by up to (ms)": 1000 * result.client_lag,
    }
    for share, result, _ in open_records
).set_index("load") if open_records else None

# %% [markdown]
# **Read the table.** At which load do the two clocks begin to differ? Which of them would your users agree with? Is
# the difference larger than the delay of the client itself?
#
# <details><summary>Our reading</summary>
#
# As long as the engine keeps up, the two columns should be close. If it doesn't, they differ: the clock that starts
# when a request was sent reports that all is well, but the people who wait would report the other one.
#
# On a small machine two things blur this. The client shares the cores with the engine, so ignore differences that are
# smaller than the last column. And if there are few requests, the start and the end of a run have a large weight.
# </details>
#
# From here on, latency under an open loop counts from when a request was due.

# %%
if open_records:
    report.plot_latency_against_rate([record for _, _, record in open_records])

# %% [markdown]
# *In the picture: requests per second across, latency in milliseconds up, on both clocks.*
#
# ## 3. Percentiles, goodput, confidence
#
# There are three ways to fool yourself: you average percentiles, you quote a throughput
# that nobody was happy with, or you call a difference of one run an improvement. This section shows the cures.

# %% [markdown]
# `runs` holds the latencies of several runs of different lengths. Return the 99th percentile over
# *all requests*, linearly interpolated as NumPy does.
#
# <details><summary>Hint</summary>
#
# A percentile of a few requests and one of many cannot be averaged. The requests can be put together.
# </details>

# %% exercise="p99_of_runs" title="The percentile of several runs" minutes=10 difficulty=1 importance=4 points=2
def p99_of_runs(runs: list[list[float]]) -> float:
    """99th percentile over the requests of all runs."""
    ### BEGIN SOLUTION
    return float(np.percentile(np.concatenate([np.asarray(run) for run in runs]), 99))
    ### END SOLUTION


# %% check="p99_of_runs"
p99_of_runs = checks.p99_of_runs(p99_of_runs)

# %% [markdown]
# **Goodput** (DistServe, OSDI'24) counts only requests that met their service-level objectives.
# `requests` are dictionaries with `ok`, `ttft` and `tpot` (seconds; NaN is an unknown value, and an
# unknown value does not meet a limit). Return good requests per second.
#
# <details><summary>Hint</summary>
#
# A failed request is never good, however fast it failed. A request exactly at a limit meets it. Any
# comparison with NaN is `False`.
# </details>

# %% exercise="goodput" title="Goodput" minutes=10 difficulty=1 importance=5 points=2
def goodput(requests: list[dict], duration: float, ttft_limit: float, tpot_limit: float) -> float:
    """Requests per second that succeeded within both limits."""
    ### BEGIN SOLUTION
    good = [r for r in requests if r["ok"] and r["ttft"] <= ttft_limit and r["tpot"] <= tpot_limit]
    return len(good) / duration
    ### END SOLUTION


# %% check="goodput"
goodput = checks.goodput(goodput)

# %% [markdown]
# The open loops again. As limits we take twice the medians of the closed loop.

# %%
if open_records:
    base = closed.summary()
    slo = Slo(ttft_ms=2 * base["median_ttft_ms"], tpot_ms=2 * base["median_tpot_ms"])
    table = pd.DataFrame(
        {
            "load": f"{share:.0%}",
            "throughput (requests/s)": result.summary()["request_throughput"],
            "goodput, yours (requests/s)": goodput(
                [{"ok": t.ok, "ttft": t.ttft("scheduled"), "tpot": t.tpot} for t in result.traces],
                result.duration, slo.ttft_ms / 1000, slo.tpot_ms / 1000,
            ),
            "goodput, the course's": result.summary(slo=slo)["request_goodput"],
        }
        for share, result, _ in open_records
    )
    display(table.set_index("load"))

# %% [markdown]
# **Read the table.** At which load is goodput much lower than throughput? Why does the throughput hide that?
#
# <details><summary>Our reading</summary>
#
# If the load is above the capacity, the throughput stays near the capacity, because the engine is always busy. But the
# requests wait longer and longer, so fewer of them meet the limit of TTFT, and goodput falls. If your columns are about
# equal at every load, the run was too short for a queue to grow, or the limits are generous for this machine.
# </details>
#
# A machine that others share gives a different number each time. Before "A is faster than B", ask
# how far apart two runs of *A* are. `mean_interval` returns the confidence interval of the mean,
# `(low, high)`, given Student's t for the number of runs.
#
# <details><summary>Hint</summary>
#
# mean ± t · s/√n, and s² divides by n − 1: with few runs the deviation from their own mean
# underestimates the true one.
# </details>

# %% exercise="mean_interval" title="How sure are you?" minutes=10 difficulty=2 importance=4 points=2
def mean_interval(values: list[float], t: float) -> tuple[float, float]:
    """Confidence interval of the mean of `values`."""
    ### BEGIN SOLUTION
    mean = float(np.mean(values))
    reach = t * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return mean - reach, mean + reach
    ### END SOLUTION


# %% check="mean_interval"
mean_interval = checks.mean_interval(mean_interval)

# %% tags=["measures"]
with skip_on_failure("repeats"):
    client = benchmark_client(first)
    again = [
        run(client, prompts(profile, count), ClosedLoop(middle), label=f"repeat {i + 1}")
        for i in range(profile.load.repeats)
    ]
    throughputs = [result.summary()["output_throughput"] for result in again]
    t_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}[len(throughputs)]
    low, high = mean_interval(throughputs, t_95)
    print("the same run,", len(throughputs), "times:", ", ".join(f"{x:.0f}" for x in throughputs), "tok/s")
    print(f"your 95 % interval: {low:.0f} to {high:.0f} tok/s; the course's: {repeat_interval(throughputs)}")

# %% [markdown]
# Before you call one engine faster, measure *both* several times, and look at the interval of the **difference**. If it
# includes zero, these runs don't decide which is faster. Don't compare the two intervals by eye: they may overlap
# although the difference is clear (with three runs each, "no overlap" finds only a third of the differences that the
# interval of the difference finds).[^overlap]
#
# Measure the engines **in turn** (A, B, A, B, …) if you can. If the machine has a slow phase, it then slows both runs
# of a pair, and it cancels out in their difference. Your `mean_interval` works for this too: give it the differences
# of the pairs. Section 8 does so with your engines.
#
# [^overlap]: Simulated for normal runs and a true difference of three standard deviations: 23 % against 78 %. See also
#     Schenker and Gentleman, *On judging the significance of differences by examining the overlap between confidence
#     intervals*, 2001.
#
# ## 4. The limit: the roofline
#
# One decode step reads every weight once (but the embedding table, of which it looks up one row a token), and the KV
# cache of every token before it. However clever an engine is, it cannot read faster than memory delivers:
#
# $$\text{tok/s} \le \frac{\text{batch} \times \text{bandwidth}}{\text{weight bytes} + \text{batch} \times \text{context} \times \text{KV bytes per token}}$$
#
# As an example, here is Llama-3.1-8B in bf16 on a DGX Spark. The bandwidth is *cited* from
# [NVIDIA](https://www.nvidia.com/en-us/products/workstations/dgx-spark/), and the rest is *derived* from the model's
# `config.json`:
#
# | weights without the embedding table | bytes per step | bandwidth | decode ceiling at batch 1 |
# |---|---|---|---|
# | 7.5 billion | 15.0 GB | 273 GB/s | 18.2 tok/s |
#
# No engine can beat that without fewer bytes (quantisation) or more tokens per step (batching, speculation).
#
# Prefill reads the weights once for a whole prompt, so it waits for arithmetic instead, two operations per weight and
# token (and attention, which grows with the prompt; lab 3.3.6 takes it up):
#
# $$\text{prompt tok/s} \le \frac{\text{FLOP/s}}{2 \times \text{weights} + \text{FLOP of attention per token}}$$
#
# `utils.roofline.roofline` computes that one; the first is your exercise.

# %% [markdown]
# Write the formula of the decode ceiling. It is about *all* requests of the batch together.
#
# <details><summary>Hint</summary>
#
# Steps per second = bandwidth ÷ bytes read in a step. How many tokens does a step yield?
# </details>

# %% exercise="decode_ceiling" title="The decode ceiling" minutes=10 difficulty=2 importance=5 points=3
def decode_ceiling(
    bandwidth: float, weight_bytes: float, kv_bytes_per_token: float, context: int, batch: int
) -> float:
    """Highest possible decode throughput of a batch, tokens per second."""
    ### BEGIN SOLUTION
    bytes_per_step = weight_bytes + batch * context * kv_bytes_per_token
    return batch * bandwidth / bytes_per_step
    ### END SOLUTION


# %% check="decode_ceiling"
decode_ceiling = checks.decode_ceiling(decode_ceiling)

# %% [markdown]
# ### Your machine and your model
#
# Bandwidth and FLOP/s are measured now, for a working set as large as the model's weights: a small
# model lives in the processor's cache, which is faster than memory. The data type that counts is the one in
# which the engine holds weights and KV cache, not the file's own. The first line of this lab's output names it.

# %% tags=["measures"]
from utils.roofline.rates import measure_machine

model = roofline.describe_model(profile.models["vllm"], profile.dtype)
machine = measure_machine(working_set=model.weight_bytes, dtype=profile.dtype)
context = profile.load.prompt_tokens + profile.load.output_tokens // 2
print(machine)
print(model)

# %% [markdown]
# Before you measure: what will vLLM's decode throughput be for **one** request, in tokens per second?
# The ceiling is printed below; how near will a real engine come? Commit to a number.

# %%
ceiling = decode_ceiling(machine.bandwidth, model.weight_bytes, model.kv_bytes_per_token, context, 1)
print(f"decode ceiling for one request: {ceiling:,.0f} tok/s")

# %% prediction="single_stream"
### BEGIN SOLUTION
#: single_stream = None  # tokens per second that vLLM will give one request
single_stream = 200
### END SOLUTION

# %% [markdown]
# ## 5. Every engine that runs here
#
# Every engine gets the same kind of prompts and answers from the same client. Their lengths are spread around the
# profile's, because requests of equal lengths would start and end together, and no prefill would ever meet another
# request's decode. The engines are measured **in turn**, in three rounds, and only one of them works at a time.
#
# * `transformers` serves one request at a time. It shows what serving looks like without an engine. It gets fewer
#   requests, and not the highest level, because it would only let everybody wait longer.
# * llama.cpp serves the weights as they are in its file (BF16, Q8_0). The other engines hold them in the profile's data
#   type. On a CPU without bfloat16 instructions that is float32, so twice the bytes of bfloat16.
# * llama.cpp reserves the KV cache of every slot when it starts. A device at the edge has one user, so it is measured
#   once more with a single slot. Look at its memory in the recommendation below.
# * Without a GPU, vLLM runs here with `--enforce-eager`, kernel by kernel, because compiling takes longer than the lab
#   has. That costs it most at one request; lab 3.3.3 measures how much.
# * Without a GPU, SGLang runs here without its own kernels. Its speed says nothing about SGLang elsewhere, so it is shown
#   but not ranked.
#
# Before you look: how many times the throughput of one request will vLLM give at the highest level?

# %% prediction="vllm_gain"
### BEGIN SOLUTION
#: vllm_gain = None  # a factor
vllm_gain = 12
### END SOLUTION

# %% [markdown]
# Where engines are containers, each starts when it is its turn. Local processes start now and wait for their turns.

# %% tags=["measures"]
fleet = experiments.start_fleet(profile, first, not_run)
rounds = experiments.measure_rounds(fleet, profile)
records, prefills = rounds.records, rounds.prefills
not_run |= rounds.not_run
fleet.stop()

# %% [markdown]
# ### Results

# %%
report.table(records) if records else None

# %%
if records:
    report.plot_throughput(records)

# %% [markdown]
# *In the picture: requests in flight across, output tokens per second up, one line per engine.*

# %%
single = [r for r in records if r.load["concurrency"] == profile.load.levels[0]]
if single:
    report.plot_distributions(single)

# %% [markdown]
# *In the picture: the distributions of TTFT and ITL of each engine with one request in flight.*

# %% [markdown]
# ## 6. Prediction against measurement

# %%
by_level = {r["concurrency"]: r["output_throughput"] for r in tables.rows(records) if r["label"] == "vLLM"}
if by_level:
    lowest, highest = min(by_level), max(by_level)
    compare_prediction(single_stream, by_level[lowest], what="vLLM, one request", unit="tok/s")
    gain = by_level[highest] / by_level[lowest]
    compare_prediction(vllm_gain, gain, what=f"vLLM, {highest} requests over one", unit="×")
else:
    print(f"vLLM: not run here: {not_run.get('vLLM', 'it gave no record')}")

# %% [markdown]
# And the roofline against the engines:

# %%
roofline.compare(records, prefills, machine, model, decode_ceiling) if records else None

# %% [markdown]
# Each engine's ceiling counts the bytes that it holds itself: the weights in its own format, the KV cache in
# the profile's data type (in llama.cpp: 16 bits).
#
# **Read the table.** How large is the share of the ceiling at one request, and how does it change with more requests in
# flight? Which of your engines gain from batching, and which don't?
#
# <details><summary>Our reading</summary>
#
# If the share is over a half, memory is the main limit, and engines that read the same bytes can't differ much. That is
# usual for an 8B model on a DGX Spark. For example, compare LMSYS's row for SGLang in FP8 (in the next table) with twice
# the ceiling of section 4, because FP8 halves the bytes. If the share is small, as for a model of a few megabytes, you see *overhead* instead: Python,
# scheduling and HTTP. Batching divides that overhead by the batch, so the engines with the most overhead gain most from
# it, and an engine with little overhead has little to divide.
#
# If a share is over 0.9, doubt the measurement, because no engine is known to come that close. If it is over 1, it
# can't be right.
# </details>
#
# **Take the method to your machine, not these numbers.**
#
# ## 7. Judge a published table
#
# An older edition of this course printed the following speeds for 8B models on a DGX Spark. The
# roofline can say which of them are possible, without a DGX Spark:

# %%
roofline.judge_published()

# %% [markdown]
# **Read the table.** Which rows are impossible unless the weights have 4 bits? Which row may exceed the ceiling of one
# token per step, and why? Which column is missing from the old table that would have prevented the confusion?
#
# <details><summary>Our reading</summary>
#
# The old table names no quantisation, so the roofline tries the common ones. If a row is possible only at 4 bits, it
# can't be compared with a row in bf16 or FP8, because they don't read the same bytes. The row with speculation may
# exceed the ceiling, because several tokens share one reading of the weights: divide it by the acceptance length
# first. If a number is within a tenth of its ceiling, it is possible but not plausible. The table should have named the
# source, the model, the quantisation and the date of each row.
# </details>
#
# You can judge anybody's numbers like this. Put the result file of `vllm bench serve`, SGLang's `bench_serving`,
# `llama-bench`, guidellm or aiperf into `records/others/`, and run the next cell. Each row keeps its file and its tool as
# its origin. The ceilings are those of *your* machine and model, so a row from a faster machine may exceed them.

# %%
others = foreign.load_foreign()
report.table(single, others) if others else print("no files in", foreign.others_dir())

# %% [markdown]
# ## 8. Your recommendation

# %% [markdown]
# Write the rule for a high-throughput API: of the rows at the **highest concurrency** without failed
# requests whose p95 TTFT is within the limit, the label with the most output tokens per second; `None`
# if there is none. The highest concurrency is that of all rows, those with failed requests included.
# Keys: `label`, `concurrency`, `output_throughput`, `p95_ttft_ms`, `failed`.
#
# <details><summary>Hint</summary>
#
# First find the highest concurrency among the rows, then filter, then `max(..., key=...)`.
# </details>

# %% exercise="best_for_api" title="Choose by rule, not by taste" minutes=15 difficulty=2 importance=3 points=3
def best_for_api(rows: list[dict], ttft_limit_ms: float) -> str | None:
    """Label of the engine to put behind an API."""
    ### BEGIN SOLUTION
    top = max(row["concurrency"] for row in rows)
    good = [
        row for row in rows
        if row["concurrency"] == top and not row["failed"] and row["p95_ttft_ms"] <= ttft_limit_ms
    ]
    return max(good, key=lambda row: row["output_throughput"])["label"] if good else None
    ### END SOLUTION


# %% check="best_for_api"
best_for_api = checks.best_for_api(best_for_api)

# %% [markdown]
# How long may the first token take? One second is a wait that people notice; the limit is yours to
# choose. If no engine meets it, raise it, and say what you gave up.

# %%
rows = tables.rows(records)  # one row for each engine and level, the rounds put together
limit_ms = 1000.0  # p95 of TTFT
choices = tables.guide(rows, best_for_api(tables.ranked(rows), limit_ms) if tables.ranked(rows) else None, limit_ms)
tables.guide_table(choices)

# %% [markdown]
# The last column is the table that everybody copies. "Not decided" means that the interval of the difference between the
# first and the second engine includes zero, or that there is only one run of each. Handicapped engines aren't ranked.
#
# **Your answer**, in three or four
# sentences of plain text in the cell below (your instructor reads it): take one row in which the two disagree, or agree by chance. Which
# engine do you recommend for that use, which of your figures and intervals decide it (or why don't they?), and how far
# does the recommendation reach: another machine, another model size, an engine that did not run here?

# %% [markdown] answer="recommendation" points=2
# ### BEGIN SOLUTION
# One point: an engine, a use, and the figures of the learner's own table that decide between the two best (for an
# API the throughput at the highest concurrency with p95 TTFT within the limit; for chat TTFT and TPOT of one
# request), with the interval of their difference: if it includes zero, nothing is decided.
#
# One point: the limit. The records are of one machine and one model. A model of a few megabytes shows an engine's
# overhead, a model of 8B shows memory bandwidth; an engine that did not run here may still be the best.
# ### END SOLUTION

# %% [markdown]
# ## 9. The report
#
# Here are your records as one page, with comparison, plots, recommendation, the judged table, the engines that did not run,
# and the origin of each number. The page opens anywhere, needs no network, and is the deliverable of this lab.

# %%
if all_records := [*records, *(record for _, _, record in open_records)]:
    page = report.write_html(
        all_records,
        not_run=not_run,
        cited=others,
        tables={
            "Recommendation": tables.guide_table(choices),
            "Measured against the roofline": roofline.compare(records, prefills, machine, model, cited=others),
            "Published numbers for a DGX Spark, judged": roofline.judge_published(),
        },
    )
    print("report:", page)
else:
    print("No report, because no engine ran here:", *(f"{name}: {reason}" for name, reason in not_run.items()), sep="\n")

# %% [markdown]
# ## Summary
#
# * A chunk is not a token; TTFT starts when the request was due; failed requests stay in the count.
# * A closed loop measures throughput, an open loop measures what people feel.
# * Percentiles are computed over requests, goodput over satisfied ones, differences over repeats in turn.
# * A ceiling costs one division. Do it before you believe a table.
#
# **Questions**
#
# <details><summary>An engine shows half the ITL of another and the same throughput. How?</summary>
#
# One of them sends several tokens per chunk: then ITL counts gaps between chunks, not tokens. Compare TPOT.
# </details>
# <details><summary>Your p99 TTFT doubled, the median did not move. What do you look at first?</summary>
#
# The queue: waiting requests, preemptions, long prompts that block others (chunked prefill).
# </details>
# <details><summary>When would the naive baseline be the right choice?</summary>
#
# One user at a time, no latency target, and code you can step through: for looking inside a model.
# </details>
#
# **Further experiments**: other prompt and answer lengths; `burstiness=0.3` in the open loop; the same lab
# on another machine, then `load_all()` and one table for both.

# %%
print(f"{len(load_all())} records in all on this machine; {len(not_run)} engines not run here.")
