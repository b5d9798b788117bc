# %% [markdown]
# # Lab 3.3.99: A sample
#
# It proves the way from one source to two notebooks that run.

# %%
import time

import sample_checks as checks

from utils.checks import compare_prediction

# %% [markdown]
# ## 1. Latency

# %% [markdown]
# Write `ttft`: seconds from the scheduled time to the first chunk with text.
#
# <details><summary>Hint</summary>
#
# The first chunk carries the role and no text.
# </details>


# %% exercise="ttft" title="Time to first token" minutes=10 difficulty=2 importance=3 points=3
def ttft(scheduled: float, chunks: list[tuple[float, str]]) -> float:
    """Seconds from `scheduled` to the first of `chunks` with text."""
    ### BEGIN SOLUTION
    for at, text in chunks:
        if text:
            return at - scheduled
    raise ValueError("no chunk with text")
    ### END SOLUTION


# %% check="ttft"
ttft = checks.ttft(ttft)

# %% [markdown]
# How many bytes does one token take in the KV cache?

# %% exercise="kv_bytes" title="One token" minutes=5 difficulty=1 importance=3 points=1
layers, kv_heads, head_size = 12, 4, 64
### BEGIN SOLUTION
#: kv_bytes = ...  # your formula
kv_bytes = 2 * layers * kv_heads * head_size * 2
### END SOLUTION

# %% check="kv_bytes"
kv_bytes = checks.kv_bytes(kv_bytes)

# %% prediction="pause_s"
### BEGIN SOLUTION
pause_s = 0.1
### END SOLUTION

# %% tags=["measures"]
began = time.perf_counter()
time.sleep(0.1)
measured_s = time.perf_counter() - began
print(f"paused for {measured_s:.2f} s, {kv_bytes} bytes, {ttft(0.0, [(1.0, 'a')])} s")

# %%
compare_prediction(pause_s, measured_s, what="the pause", unit="s")
