# %% [markdown]
# # Lab 3.3.7: a production API
#
# A restaurant is more than its stove. Somebody meets the guests, says how long they will wait, sends each order to a
# cook who has a free hand, and finds the right words when a pan catches fire. Nobody praises that person for the food, but
# without that person there is no restaurant. An inference engine is a stove. This lab builds the person in front of it.
#
# You will be able to
#
# * write server-sent events and read them again, however the network cuts them;
# * measure time to first token where it is served, and not mistake a head or a comment for the first token;
# * limit what a key may use, with a token bucket, and say when to come back;
# * choose a backend: fewest in flight, or the one that has the prompt's beginning in its cache, with a bound;
# * say what a client sees when an engine is killed, frozen, slow, or lies about its health, and why;
# * end a server without cutting anybody off;
# * read the four numbers that a dashboard of such a service needs, and write down what a deployment needs.
#
# **Time**: about 2 hours. *Run All* is meant to take at most 5 minutes of them on a quiet CPU, and more with a large
# model on a GPU.
#
# **It starts** two vLLM and three llama.cpp, and several gateways in front of them, on free ports of 127.0.0.1, and stops
# them all. **It writes** one JSON record per measured run into `records/`. Numbers are *measured* here, *cited* with their
# source, or *derived* by a formula that you see, and each is marked accordingly.
#
# The gateway is in `utils/gateway`. It is built on FastAPI and has an OpenAI-compatible API. In this lab you write its rules. Each
# rule has a small file of its own there, without any network code, and the gateway runs on these files.

# %%
from dataclasses import replace

from IPython.display import display

from utils.checks import compare_prediction
from utils.checks import lab_3_3_7 as checks
from utils.engines import skip_on_failure
from utils.engines.fleet import Fleet
from utils.fleet_plan import gateway_replicas
from utils.gateway import balance, bucket
from utils.labs.lab_3_3_7 import plots
from utils.labs.lab_3_3_7 import experiments
from utils.labs.lab_3_3_7 import tables
from utils.labs.lab_3_3_7.fault_injection import LIES
from utils.labs.lab_3_3_7.sli import judge_sli, measured_capacity
from utils.gateway.bucket import Bucket
from utils.gateway.fair_queue import Share
from utils.gateway.circuit import Circuit
from utils.gateway.auth import digest
from utils.gateway.local_gateway import models_of, serve, start
from utils.gateway.timing import Timing
from utils.http.answers import has_text
from utils.profiles import load_profile

profile = load_profile()
sizes = profile.load.serving
print(f"Profile {profile.name}: {profile.description}")

# %% [markdown]
# The engines start now, and meanwhile you write. Most of the lab uses three llama.cpp, and section 4 uses two vLLM. On a CPU
# all five start now. On a GPU they share one memory, so the two vLLM start in section 4, after the three have made room.

# %% tags=["measures"]
small = Fleet(profile, gateway_replicas(profile), together=True)
engines = small.running
replicas = experiments.replicas_later(profile)  # two vLLM, wanted in section 4
print("Running:", ", ".join(f"{engine.spec.title} at {engine.base_url}" for engine in engines) or "none")

# %% [markdown]
# ## 1. Server-sent events by hand
#
# A chat answer comes word by word over one HTTP response. Its format is older than language models: **server-sent
# events** (WHATWG HTML, section 9.2). It consists of lines of UTF-8 text. `data: ` comes in front of the content, and an *empty line* ends an
# event. OpenAI's API puts one JSON chunk into each, and `[DONE]` into the last.

# %% tags=["measures"]
pieces = []
with skip_on_failure("a raw stream"):
    pieces = experiments.raw_pieces(small.at_least(1)[0], "def add(a, b):", 6)
    for number, piece in enumerate(pieces[:3]):
        print(f"piece {number}, {len(piece)} bytes: {piece[:150]!r}")
    print("the last one:", pieces[-1][-60:])

# %% [markdown]
# Write `encode`, which returns one event as bytes, in UTF-8. `data` may have several lines (separated by LF, CRLF or CR). Each
# becomes a line `data: ...` of its own. If there is a name, it comes first, as `event: NAME`. A name with a line break in it
# would smuggle in another field, so it raises `ValueError`. An empty line ends the event, and empty `data` is one empty line of data.
#
# <details><summary>Hint</summary>
#
# Bring all line breaks to `\n` first, then `text.split("\n")`. (`splitlines()` also splits at characters that are no line
# breaks here, and makes nothing of an empty text.)
# </details>

# %% exercise="encode" title="An event, written" minutes=10 difficulty=2 importance=3 points=3
def encode(data: str, event: str = "") -> bytes:
    """One server-sent event."""
    ### BEGIN SOLUTION
    if "\n" in event or "\r" in event:
        raise ValueError("a name is one line")
    lines = [f"event: {event}"] if event else []
    for line in data.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        lines.append("data: " + line)
    return ("\n".join(lines) + "\n\n").encode()
    ### END SOLUTION

# %% check="encode"
encode = checks.encode(encode)

# %% [markdown]
# Reading is harder, because TCP knows no events: a piece may hold half of one, or three, or end in the middle of a
# character. A parser keeps what is not complete and waits.
#
# Write `feed`. It takes the rest of earlier pieces (`buffer`) and the next `piece`. It returns the data of every event that is
# complete now, and the new rest. Lines end with LF or CRLF, and a CRLF may be cut in two. Lines that begin with a colon are
# comments, which servers send to keep a connection open. Other fields (`event`, `id`) are not the data. Several `data` lines are
# joined by `\n`. One space after `data:` is dropped, if there is one. An event without data doesn't count. Decode whole lines only.
#
# <details><summary>Hint 1</summary>
#
# Work on bytes. A CR at the very end of your bytes may be half of a CRLF, so leave it for later. Then bring CRLF to LF, and
# everything up to the last `\n\n` is complete.
# </details>
# <details><summary>Hint 2</summary>
#
# `*events, rest = text.split(b"\n\n")`; of each event collect the lines that start with `b"data:"`.
# </details>

# %% exercise="feed" title="Events, read" minutes=20 difficulty=4 importance=4 points=5
def feed(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    """The data of each event that is complete, and the bytes that are left."""
    ### BEGIN SOLUTION
    text = buffer + piece
    held = b"\r" if text.endswith(b"\r") else b""
    text = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *events, rest = text.split(b"\n\n")
    found = []
    for event in events:
        data = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
        if data:
            found.append(b"\n".join(data).decode())
    return found, rest + held
    ### END SOLUTION

# %% check="feed"
feed = checks.feed(feed)

# %% [markdown]
# The bytes of that engine again, cut at many more places than the network did, through your parser:

# %%
stream = b"".join(pieces)
events, rest = [], b""
for piece in experiments.recut(stream, seed=1):
    complete, rest = feed(rest, piece)
    events += complete
if events:
    print(f"{len(events)} events from {len(stream)} bytes, {len(rest)} bytes left; the last: {events[-1]}")
print("written again and read again, the same:", feed(b"", b"".join(map(encode, events)))[0] == events)

# %% [markdown]
# **In words.** A gateway does not parse what it relays. It looks for the empty line, so that it never sends half an event; for
# the block `usage`, to count tokens; for `[DONE]`, to know that the answer is whole. If an engine dies in the middle, a
# gateway that sends bytes on blindly ends the response in good order, and the client takes half an answer for the whole.
# Ours ends it with an event `{"error": ...}` that OpenAI's clients raise.
#
# ## 2. Where the first token is measured
#
# `http.response.start` is the message by which an ASGI application sends the head of an answer: status, headers.
# `http.response.body` brings bytes; `more_body` says whether more come. Middleware sees all messages pass by.
#
# The first *bytes* aren't the first *token*. llama.cpp sends a comment (`: ping`) while it works on a long prompt, and vLLM's
# first chunk holds only the role. If you count them, a slow engine looks fast. So the first token is the first event with text,
# which may be an answer, reasoning or a tool call. `has_text(body)` tells whether a piece of a body has any. The gateway, the
# benchmark's client and this lab all use this rule.

# %% [markdown]
# Write `on_message`, which returns the timing after one more message. `Timing` is a frozen dataclass (`began`, `status`, `first_token`,
# `ended`, all but the first `None` at the beginning); `replace(timing, status=200)` makes a changed copy. `first_token` is the
# time of the first message whose body *has text*, `ended` that of the one after which no more comes. `body` and `more_body`
# may be missing from a message: then they are `b""` and `False`. Messages of other types change nothing.
#
# <details><summary>Hint</summary>
#
# `has_text(message.get("body", b""))`. One message can be both the first token and the end, so change `timing` in two steps.
# </details>

# %% exercise="on_message" title="TTFT middleware" minutes=10 difficulty=2 importance=5 points=3
def on_message(timing: Timing, message: dict, now: float) -> Timing:
    """What is known of an answer after one more message."""
    ### BEGIN SOLUTION
    if message["type"] == "http.response.start":
        return replace(timing, status=message["status"])
    if message["type"] != "http.response.body":
        return timing
    if timing.first_token is None and has_text(message.get("body", b"")):
        timing = replace(timing, first_token=now)
    if not message.get("more_body", False):
        timing = replace(timing, ended=now)
    return timing
    ### END SOLUTION

# %% check="on_message"
on_message = checks.on_message(on_message)

# %% tags=["measures"]
timing = experiments.watched_answer(on_message, first_s=0.2, gap_s=0.1)
print(f"a small app that sends a comment, waits 0.2 s and then sends three pieces 0.1 s apart: TTFT {timing.ttft:.2f} s, "
      f"the whole {timing.ended - timing.began:.2f} s, status {timing.status} (measured)")

# %% [markdown]
# The response headers and a comment were sent immediately. If you mistake one of them for the first token, you'll report a TTFT of a millisecond no matter
# how slow the engine is.
#
# ## 3. Who may, and how much
#
# Now the gateway itself, in front of one engine: `serve` starts it as a process. Keys are stored as hashes (a key has
# 256 random bits, so SHA-256 will do; passwords would need a slow hash) and compared in constant time.
#
# A limit "60 requests a minute" is a **token bucket**: a bucket that holds up to 60, into which one flows each second. A client
# that takes from it may be quick for a while, but no quicker than the flow in the long run. (The tokens of this bucket are no tokens
# of a model; the gateway has one bucket for requests and one for a model's tokens.)

# %% [markdown]
# Write `take`. A `Bucket` has `rate` (a second), `capacity`, `level` and `at`, the time of its last change. First add the flow
# since `at`, at most up to `capacity`. If `now` is before `at` (a clock was set back), nothing flows and `at` stays. Then:
# is there enough, take `cost` out and return the bucket with a wait of `0.0`; if not, take nothing, and return the bucket with
# the seconds until there is enough. A `cost` above the capacity would wait for ever: let it through when the bucket is *full*,
# and leave a debt (a level below 0).
#
# <details><summary>Hint</summary>
#
# `needed = min(cost, bucket.capacity)` decides whether a request is let through, but `cost` is taken out. `replace(bucket, level=..., at=...)`.
# </details>

# %% exercise="take" title="Token bucket" minutes=15 difficulty=3 importance=5 points=4
def take(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    """The bucket after, and the seconds to wait; 0.0: admitted."""
    ### BEGIN SOLUTION
    passed = max(0.0, now - bucket.at)
    level = min(bucket.capacity, bucket.level + passed * bucket.rate)
    bucket = replace(bucket, level=level, at=max(now, bucket.at))
    needed = min(cost, bucket.capacity)
    if level >= needed:
        return replace(bucket, level=level - cost), 0.0
    return bucket, (needed - level) / bucket.rate
    ### END SOLUTION

# %% check="take"
take = checks.take(take)

# %% [markdown]
# A key may send 120 requests a minute, with room for as many. **Predict**: of 160 small requests, sent one after the other
# as fast as they are answered, how many are let through?

# %% prediction="let_through"
### BEGIN SOLUTION
#: let_through = None  # requests, of 160
let_through = 125
### END SOLUTION

# %% tags=["measures"]
key = [{"name": "ann", "sha256": digest("gw-ann"), "requests_per_minute": 120}]
with skip_on_failure("the burst"):
    with serve(models_of({experiments.MODEL: small.at_least(1)[:1]}), keys=key, log_level="warning") as gateway:
        statuses, took, wait = experiments.burst(gateway, "gw-ann", 160)
        stranger, _, _ = experiments.burst(gateway, "gw-eve", 1)
    own, yours = bucket.full(2.0, 120.0, 0.0), 0
    for number in range(160):
        own, seconds = take(own, 1.0, number * took / 160)
        yours += seconds == 0.0
    compare_prediction(let_through, statuses.count(200), what="requests let through", unit="of 160")
    print(f"Your bucket, fed with 160 requests over the {took:.1f} s that they took: {yours} (derived)")
    print(f"The others: HTTP {set(statuses) - {200}}, the first with Retry-After {wait} s. A key nobody knows: HTTP {stranger[0]}")

# %% [markdown]
# **Read the numbers.** How many requests were let through beyond the 120 that the bucket holds, and where do they come from? Does your
# bucket agree with the gateway's? What did a refused request cost?
#
# <details><summary>Our reading</summary>
#
# The bucket lets 120 requests through at once, and 2 more for each second that the run took. If your run took so long that the bucket
# never ran dry, all were let through, because the client stayed within its rate. Your bucket may differ from the gateway's by one or
# two requests, because it assumes that the requests came at equal distances. A refused request takes nothing from the bucket.
# </details>
#
# ## 4. Which replica?
#
# Two engines serve the same model. **Round robin** deals requests out like cards. That is fair to the count, and blind: a
# request of 2,000 tokens counts as one of two. **Least outstanding** asks who has least to do.

# %% [markdown]
# Write `least_outstanding`: the name of the backend with the fewest requests in flight. Where several have the fewest, take
# them in turn: with k of them, number `turn % k`, in the order of the dictionary.
#
# <details><summary>Hint</summary>
#
# First the smallest count, then the list of all names that have it.
# </details>

# %% exercise="least_outstanding" title="Fewest in flight" minutes=5 difficulty=1 importance=3 points=2
def least_outstanding(outstanding: dict[str, int], turn: int) -> str:
    """The backend with the fewest requests in flight; equals take turns."""
    ### BEGIN SOLUTION
    fewest = min(outstanding.values())
    equals = [name for name, count in outstanding.items() if count == fewest]
    return equals[turn % len(equals)]
    ### END SOLUTION

# %% check="least_outstanding"
least_outstanding = checks.least_outstanding(least_outstanding)

# %% [markdown]
# But engines remember. The work that a prefix cache saved in lab 3.3.2 is lost if a conversation's next turn goes to another replica.
# **Consistent hashing** sends the same beginning to the same place: backends and keys are points on a ring, and a key goes to
# the first backend at this point or after it. If one leaves, only its keys move. And so that one popular system prompt does not bury one
# replica, there is a **bound**: with m requests in flight, no backend gets more than `ceil(slack * (m + 1) / n)` of n backends
# (Mirrokni, Thorup, Zadimoghaddam, 2018).

# %% [markdown]
# Write `bounded_hash`. `ring` is a sorted list of `(place, name)`, each backend many times; `outstanding` has the backends that
# may be chosen, with their requests in flight (the ring may hold others: pass over them). Begin at the first entry whose place
# is not below `place`, go on in order, from the last entry to the first, and return the first backend whose count is below
# the limit.
#
# <details><summary>Hint 1</summary>
#
# The entries in the order in which you look at them: those with `at >= place`, then the others.
# </details>
# <details><summary>Hint 2</summary>
#
# m is `sum(outstanding.values())`, n is `len(outstanding)`. Somebody always has room, since not all can be above the mean.
# </details>

# %% exercise="bounded_hash" title="A hash with a bound" minutes=15 difficulty=3 importance=4 points=4
def bounded_hash(ring: list[tuple[int, str]], outstanding: dict[str, int], place: int, slack: float) -> str:
    """The first backend at or behind `place` that has room."""
    ### BEGIN SOLUTION
    import math

    limit = math.ceil(slack * (sum(outstanding.values()) + 1) / len(outstanding))
    ahead = [name for at, name in ring if at >= place] + [name for at, name in ring if at < place]
    for name in ahead:
        if name in outstanding and outstanding[name] < limit:
            return name
    raise ValueError("nobody of the ring may be chosen")
    ### END SOLUTION

# %% check="bounded_hash"
bounded_hash = checks.bounded_hash(bounded_hash)

# %% [markdown]
# The prompts come in groups that share a long beginning, and the groups take turns. Each group's first prompt at a replica is
# computed whole, and all later ones find the beginning there. Before anything is measured, your function predicts how often:

# %%
prompts = experiments.grouped_prompts(profile, seed=1)
ring, idle = balance.make_ring(["vllm-0", "vllm-1"]), {"vllm-0": 0, "vllm-1": 0}
by_hash = [bounded_hash(ring, idle, balance.point(experiments.affinity_key(prompt)), 1.25) for prompt in prompts]
in_turn = [("vllm-0", "vllm-1")[number % 2] for number in range(len(prompts))]
for name, places in (("round robin", in_turn), ("prefix affinity", by_hash)):
    print(f"{name:>15}: {experiments.first_visits(prompts, places):.0%} of {len(prompts)} prompts find their beginning (derived)")

# %% [markdown]
# **Predict**: how many times as fast is the median first token with prefix affinity as with round robin? (Both replicas
# share this machine, and two requests are in flight.)

# %% prediction="affinity_gain"
### BEGIN SOLUTION
#: affinity_gain = None  # times
affinity_gain = 1.3
### END SOLUTION

# %% tags=["measures"]
pair = experiments.replicas_alone(profile, small, replicas)
with skip_on_failure("balancing"):
    two, policies = pair.at_least(2), ("round_robin", "prefix_affinity")
    measured = [experiments.measure_policy(two, profile, policy, seed) for seed, policy in enumerate(policies, 11)]
    gain = measured[0].ttft_ms / measured[1].ttft_ms
    compare_prediction(affinity_gain, gain, what="median TTFT, round robin over affinity", unit="times")
    display(tables.balance_table(measured))
pair.stop()

# %% [markdown]
# **Read the table.** By how many percentage points does affinity raise the hit rate? Is that what you derived above? By what factor
# does the median TTFT fall, and why is that factor different? What does affinity cost?
#
# <details><summary>Our reading</summary>
#
# The hit rate follows from the prompts, their order and the rule, so you could derive how often a beginning is found before anything
# ran. The value of a hit depends on how long the beginning takes to compute. That is milliseconds for the tiny model, and seconds for 8
# billion parameters and 10,000 tokens.
#
# If round robin's TTFT is less than 1.1 times that of affinity, we call the gain little or nothing. Then computing a beginning again is
# cheap compared with the rest of a first token's time, or the replicas' loads were too uneven. The last column shows the second case.
# Affinity makes the shares uneven, because there are few groups. The bound keeps this from becoming a queue.
# </details>
#
# **A trap.** A chat service puts the same system prompt in front of every conversation. If the key is the first 512 characters of a
# prompt, it is the part in which all requests are *alike*:

# %%
for rule, keys in experiments.keys_of_chats(64).items():
    print(f"{rule}: 64 conversations with one system prompt have {keys} different keys (derived)")

# %% [markdown]
# With one key, all conversations want the same replica. The bound spreads them out, but by load and not by conversation, so their turns
# wander. In a simulation with four replicas and 16 requests in flight, 34 % of the turns stayed on their conversation's replica, where
# chance gives 25 %. So the gateway's key is a session that the client names (the header `x-session-id`, or OpenAI's field
# `prompt_cache_key`), and otherwise the system prompt *with the first user message*.
#
# ## 5. A fault day
#
# Engines die, hang, slow down, and claim to be well. Three defences work together: **active health checks** (ask every
# second), **passive ones** (count what fails), and **retries, as long as the client has received nothing**. After the first byte no
# retry is honest: a second answer would not go on where the first stopped.
#
# A **circuit breaker** is the passive part. Closed: requests flow. After `threshold` failures in a row it opens, and the backend is
# left alone. After `open_s` seconds one request may try (half open): if it succeeds the circuit closes, if not it opens anew.

# %% [markdown]
# Write `step`: the state after an event. Events are `"sent"` (a request goes out: if the circuit is open, it is the probe),
# `"success"`, `"failure"`, and `"cancelled"` (the client went away, which says nothing about the backend). Others raise
# `ValueError`. `Circuit` has `threshold`, `open_s`, `state`, `failures` (in a row) and `opened_at`. While it is open, results change
# nothing: they belong to requests that left before. When it opens, `failures` is 0 again and `opened_at` is now. A cancelled probe
# leaves it open, *with the old* `opened_at`.
#
# <details><summary>Hint</summary>
#
# Go event by event: unknown; sent; then "while open nothing"; then success, cancelled, failure. `replace(circuit, state="open")`.
# </details>

# %% exercise="step" title="Circuit breaker" minutes=20 difficulty=3 importance=5 points=5
def step(circuit: Circuit, event: str, now: float) -> Circuit:
    """The state after an event."""
    ### BEGIN SOLUTION
    if event not in ("sent", "success", "failure", "cancelled"):
        raise ValueError(event)
    if event == "sent":
        return replace(circuit, state="half_open") if circuit.state == "open" else circuit
    if circuit.state == "open":
        return circuit
    if event == "success":
        return replace(circuit, state="closed", failures=0)
    if event == "cancelled":
        return replace(circuit, state="open") if circuit.state == "half_open" else circuit
    failures = circuit.failures + 1
    if circuit.state == "half_open" or failures >= circuit.threshold:
        return replace(circuit, state="open", failures=0, opened_at=now)
    return replace(circuit, failures=failures)
    ### END SOLUTION

# %% check="step"
step = checks.step(step)

# %% [markdown]
# Now break things, on real engines under load. Between the gateway and the second engine is a small proxy of ours, which can
# be slow or lie. A lie means that its health check passes while its requests fail. Four lies are fast: HTTP 500, 404 (the engine
# serves another model name), 401 (it wants a key that nobody gave the gateway), and a 200 whose JSON holds an error. The fifth
# lie never answers. The third engine is frozen with SIGSTOP, so the kernel still accepts connections for it. The first is killed.
# Each fault begins when a third of the load is done.
#
# **Predict**: the first engine is killed while all users wait for its and the others' answers. How many *requests* fail, that is,
# end with an error? (Of as many as the table will show; a user whose stream had begun cannot be helped.)

# %% prediction="failed_by_kill"
### BEGIN SOLUTION
#: failed_by_kill = None  # requests
failed_by_kill = 2
### END SOLUTION

# %% tags=["measures"]
small = experiments.three_again(profile, small)
runs = []
with skip_on_failure("broken engines"), experiments.faulty_pool(small.at_least(2), profile) as (gateway, proxy):
    engines = small.running
    runs.append(experiments.run_with_fault(gateway, profile, "no fault"))
    for mode in ("slow", *LIES, "hangs"):
        runs.append(experiments.run_with_fault(gateway, profile, mode, *experiments.misbehave(proxy, mode)))
    if len(engines) > 2:
        runs.append(experiments.run_with_fault(gateway, profile, "frozen", *experiments.frozen(engines[2])))
    else:
        print("frozen: not run here, because it needs three engines, and two run")
    runs.append(experiments.run_with_fault(gateway, profile, "killed", engines[0].kill))
    failed = len(runs[-1].traces) - runs[-1].count("answered")
    compare_prediction(failed_by_kill, failed, what="requests that failed when an engine was killed")
if runs:
    display(tables.fault_table(runs))

# %% [markdown]
# Each request of these runs, by the moment at which it was sent:

# %%
if runs:
    plots.plot_fault_runs(runs)

# %% [markdown]
# *In the picture: one row per run; across, seconds since the first request; up, on a logarithmic axis, how long a request took
# until its answer was whole (dot) or an error ended it (square: an event in its stream; triangle: an error as its answer).
# The dashed line is the moment of the fault.*
#
# **Read the table and the picture.** In which run does a client see an error, and is it an error event or an error answer? Which run shows
# only in the p99? Which faults does the health check find? Which pool doesn't become whole again, and whose job is that?
#
# <details><summary>Our reading</summary>
#
# * *Slow*: nobody sees an error, and if anything shows the fault, it is the p99. Health checks find nothing, because the engine is well,
#   only late. Least outstanding sends it fewer requests, because its requests stay longer (*requests by engine*, the second of three).
#   Round robin would send it as many as before.
# * *Lying, no such model, wants a key, error in a 200*: the health check passes, so only failures reveal the fault. If clients see no
#   error, it is because each failed attempt was repeated on another engine (*repeated, by reason*), and three failures in a row open
#   the circuit. A gateway that takes a 404 or a 401 for the client's fault would do worse than a slow one: the broken engine answers
#   at once, so it is always the least busy, and *least outstanding* sends it most of the traffic. Ours compares: if another engine
#   answers the same request, the fault is the first one's.
# * *Hangs*: only time reveals it. Each request waits for its first token until `first_byte_s` is over, and goes elsewhere then. After
#   three such requests the circuit opens. From then on the gateway asks for one token itself, so no user waits for the probe.
# * *Frozen*: the kernel accepts connections, and no answer comes. A request that waits for its first byte is sent elsewhere as soon as the
#   health check fails. A stream that had begun ends with an error event after the silence that is printed above the table
#   (`idle_s`). If no stream had begun on that engine, nobody sees an error.
# * *Killed*: connections break at once. A stream that had begun ends with an error event, and all other requests are repeated. If you count
#   fewer errors than there were users, the others waited for another engine or for their first byte. The engine doesn't come back, so
#   the pool is "not within 10" seconds whole. Starting engines again is the job of systemd or Kubernetes.
# </details>
#
# Your state machine on the failures that a lying backend makes, one request a second:

# %%
state = Circuit(threshold=3, open_s=5.0)
for now in range(18):
    may = state.state == "closed" or (state.state == "open" and now - state.opened_at >= state.open_s)
    if may:
        state = step(state, "sent", now)
        state = step(state, "failure" if now < 11 else "success", now + 0.5)
    print(f"second {now:2}: {'request' if may else '-------'}  {state.state}")

# %% [markdown]
# ## 6. Back-pressure
#
# Forty requests at the same moment, for an engine that may have 4 in flight and a queue for 8. Somebody has to be told to come
# back, and *when*. The alternative is a queue without end: everybody waits longer than they are willing to, gives up, and the
# engine computes for nobody.
#
# **Predict**: how many of 40 get an answer?

# %% prediction="answered_of_40"
### BEGIN SOLUTION
#: answered_of_40 = None  # requests
answered_of_40 = 12
### END SOLUTION

# %% tags=["measures"]
metrics_text, page = "", ""
with skip_on_failure("the crowd"):
    narrow = models_of({experiments.MODEL: small.at_least(1)[:1]}, max_outstanding=4)
    with serve(narrow, queue={"size": 8, "wait_s": 30}, log_level="warning") as gateway:
        found, waits = experiments.crowd(gateway, 40, 3 * sizes.answer_tokens)
        metrics_text, page = gateway.metrics(), experiments.page_title(gateway)  # for section 8
    compare_prediction(answered_of_40, found[200], what="requests answered", unit="of 40")
    print(f"By status: {dict(found)}; Retry-After of the refused: {sorted(set(waits))} s (measured)")

# %% [markdown]
# **Read the numbers.** How many requests got an answer, and why that many? What happened to the others, and when should they come back?
#
# <details><summary>Our reading</summary>
#
# The 4 in flight and the 8 in the queue get an answer. If you count a few more, a first answer ended while others still arrived, and a
# place became free. The others get HTTP 429 at once. The gateway estimates `Retry-After` from the time that recent requests took and
# from the number that wait. OpenAI's client obeys it by itself.
# </details>
#
# A queue has a second question: *whose* request is next? In one queue for all, a key that sends a hundred requests makes
# everybody else wait. So the gateway has one queue for each key, and serves the queues by **deficit round robin**
# (Shreedhar, Varghese, 1995): in each round a key earns a *quantum* of tokens, and it is served while it can pay for its next
# request. Long requests aren't forbidden. They only cost more rounds.

# %% [markdown]
# Write `next_turn`. `ring` is a list of `Share(key, deficit)` in the order of their turns, `costs` has the cost of each key's next
# request. If the first of the ring can pay (its `deficit` is at least its cost), it is served: return its name, and a new ring in
# which it has paid and is *still first*. If it can't pay, it earns `quantum` and goes to the end, and the next is first. A key that
# isn't in `costs` has nothing to be served, so it goes to the end *without* earning. At least one key is in `costs`.
#
# <details><summary>Hint</summary>
#
# `first, *others = ring` splits the ring, and `replace(first, deficit=...)` makes a changed copy. Use a loop that ends with `return`.
# </details>

# %% exercise="next_turn" title="Turns for keys" minutes=12 difficulty=3 importance=3 points=4
def next_turn(ring: list[Share], costs: dict[str, float], quantum: float) -> tuple[str, list[Share]]:
    """The key whose request is served next, and the ring afterwards."""
    ### BEGIN SOLUTION
    waiting = list(ring)
    while True:
        first, *others = waiting
        cost = costs.get(first.key)
        if cost is not None and first.deficit >= cost:
            return first.key, [replace(first, deficit=first.deficit - cost), *others]
        earned = 0.0 if cost is None else quantum
        waiting = [*others, replace(first, deficit=first.deficit + earned)]
    ### END SOLUTION

# %% check="next_turn"
next_turn = checks.next_turn(next_turn)

# %% [markdown]
# Twelve turns of your function, with a key whose requests are short and one whose requests are four times as long:

# %%
shares, order = [Share("short"), Share("long")], []
for _ in range(12):
    key, shares = next_turn(shares, {"short": 250.0, "long": 1000.0}, 250.0)
    order.append(key)
print(" ".join(order))
print({key: order.count(key) * cost for key, cost in (("short", 250), ("long", 1000))}, "tokens (derived)")

# %% [markdown]
# Now the gateway. One key keeps forty requests waiting, and another sends one at a time. **Predict**: how many of the light key's
# eight requests get an answer?

# %% prediction="light_answered"
### BEGIN SOLUTION
#: light_answered = None  # requests, of 8
light_answered = 8
### END SOLUTION

# %% tags=["measures"]
with skip_on_failure("two keys"):
    shared = experiments.heavy_and_light(small.at_least(1)[0], profile, heavy=40, light=8)
    compare_prediction(light_answered, shared.light[200], what="requests of the light key answered", unit="of 8")
    print(f"Light key: {dict(shared.light)}, heavy key: {dict(shared.heavy)} by HTTP status (measured)")

# %% [markdown]
# ## 7. Leaving without cutting anybody off
#
# A new version is deployed: the old server gets SIGTERM. If it stops at once, every stream breaks. If it stops listening at once, the
# load balancer, which asks every few seconds, still sends requests to a closed door. So there is an order.

# %% [markdown]
# Write `phase`, which returns the phase `since_s` seconds after SIGTERM (`None`: there was none) with `in_flight` requests.
# `"serving"`: no SIGTERM. `"leaving"`: for `notice_s` seconds say "not ready", but serve, new requests too. Then `"done"` if nothing is in
# flight, `"finishing"` (no new ones, those in flight go on) while fewer than `limit_s` seconds have passed since SIGTERM, and
# `"cutting"` from then on.
#
# <details><summary>Hint</summary>
#
# `0.0` is false in Python, and not `None`. While leaving it does not matter whether anything is in flight.
# </details>

# %% exercise="phase" title="Drain" minutes=8 difficulty=2 importance=4 points=3
def phase(since_s: float | None, in_flight: int, notice_s: float, limit_s: float) -> str:
    """What a server does now: serving, leaving, finishing, cutting or done."""
    ### BEGIN SOLUTION
    if since_s is None:
        return "serving"
    if since_s < notice_s:
        return "leaving"
    if in_flight == 0:
        return "done"
    return "finishing" if since_s < limit_s else "cutting"
    ### END SOLUTION

# %% check="phase"
phase = checks.phase(phase)

# %% tags=["measures"]
drain = {"notice_s": 1.0, "limit_s": 20.0}
with skip_on_failure("draining"):
    narrow = models_of({experiments.MODEL: small.at_least(1)[:1]}, max_outstanding=4)
    gateway = start(narrow, drain=drain, log_level="warning")
    tokens = experiments.tokens_in(runs[0], seconds=4) if runs else 4 * sizes.answer_tokens  # about 4 s of streaming
    seen = experiments.drain_under_load(gateway, streams=3, tokens=tokens)
    gateway.stop()
    whole = [end for end in seen.finished if end is not None]
    last = f", the last {max(whole):.1f} s after SIGTERM" if whole else ""
    print(f"{len(whole)} of {len(seen.finished)} running streams ended whole{last}")
    print(f"The gateway's process ended after {seen.ended_s:.1f} s (measured)")
    display(tables.drain_table(seen, lambda since, in_flight: phase(since, in_flight, **drain)))

# %% [markdown]
# **Read the table.** In which phase do `/health/ready` and a new request get different answers, and why are both right? Was a stream cut
# off? When did the process end, and what did it wait for?
#
# <details><summary>Our reading</summary>
#
# For a second (`notice_s`) the gateway answers 503 to the load balancer and 200 to clients. Both are right, because the load balancer
# should stop sending requests, and a request that still arrives should be served. Then new connections are refused, and streams that had
# begun go on to their end.
#
# If all streams ended whole, the process ended shortly after the last of them. If one was cut, it was still running `limit_s` seconds
# after SIGTERM, so a deployment with longer answers needs a larger limit.
# </details>
#
# ## 8. Four numbers, and a page
#
# `/metrics` is what Prometheus reads. Of everything there, four numbers come first: **errors** (share of requests that
# ended badly), **TTFT** (its 95th percentile), **queue** (requests that wait), **up** (backends that answer). `docker/` has a Prometheus, its
# alert rules and a Grafana dashboard that show them: `docker compose -f docker/compose.yaml up`. Here are the numbers of the gateway of
# section 6 after its crowd:

# %%
lines = [line for line in metrics_text.splitlines() if not line.startswith("#")]
wanted = ("gateway_requests_total", "gateway_e2e_seconds_count", "gateway_queued", "gateway_backend_up", "gateway_tokens_total")
print(*[line for line in lines if line.startswith(wanted)], sep="\n")
print(f"\n{len(lines)} lines in all. At / there is a page, {page!r}: python -m utils.gateway --config gateway.yaml, then open it.")
small.stop()

# %% [markdown]
# The page at `/` needs no build step: choose a model and an engine, stream, stop, see TTFT and tokens/s. It talks to
# Ollama as to any other: a backend with `engine: ollama` and its address. (Ollama itself: not run here unless your machine has
# its container.)
#
# **Your answer**, in four to six sentences of plain text in the cell below (your instructor reads it): your own service of two
# replicas is to go live. Which of the numbers that you measured would you set limits by (queue, `idle_s`, `first_byte_s`, requests a
# minute), and to what? What would you have the health check ask, after what the lying engine did?

# %% [markdown] answer="going_live" points=2
# ### BEGIN SOLUTION
# One point: sets at least two limits from the learner's own measurements, for instance the queue from how many requests are served
# in the longest wait that a user accepts, `idle_s` well above the measured p99 between pieces, `first_byte_s` above the p99 of TTFT under
# load, with the reason for each.
#
# One point: says that a health check that only asks whether the process answers misses a lying engine; it should ask for
# something that needs the model (one token), and that passive checks (circuit breaker) are needed besides, since between two
# checks everything can fail.
# ### END SOLUTION

# %% [markdown]
# ## Before it goes live
#
# **How good is good enough?** First you need a *service level indicator* (SLI): the share of requests that ended well. Then you set an
# *objective* for it, for example 99.5 % over 30 days. The rest is an *error budget* of 0.5 %, and an alert asks how fast it burns.
# `docker/prometheus/alerts.yml` has such alerts, and [the run-book](../docs/runbook.md) has a section for each.
#
# The indicator is a query, and it is easy to get wrong. Ours counts the requests by their end: `gateway_requests_total` has the labels
# `model` and `outcome`. Change the query below until it is right for each kind of traffic. It should not count a request whose end is
# its caller's own doing (`client_error`, `rate_limited`), and it has to be 0, and not absent, if nobody gets an answer.

# %%
sli = """
sum by (model) (rate(gateway_requests_total{outcome="ok"}[5m]))
/ sum by (model) (rate(gateway_requests_total[5m]))
"""
display(judge_sli(sli))

# %% [markdown]
# <details><summary>Our query, and why</summary>
#
# ```text
# (sum by (model) (rate(gateway_requests_total{outcome="ok"}[5m])) or 0 * sum by (model) (rate(gateway_requests_total[5m])))
# / sum by (model) (rate(gateway_requests_total{outcome!~"client_error|rate_limited"}[5m]))
# ```
#
# The first line has an `or`, because a counter that never counted doesn't exist, so the share of a total outage would be missing
# instead of 0, and an alert on a missing value never fires. The second line leaves out what the callers did themselves. It
# *excludes* by name, so an outcome that a later version adds counts as ours until somebody decides otherwise.
# </details>
#
# **How many at once?** `max_outstanding` should be what one engine can do well, and lab 3.3.1 measured that: its *goodput* is the rate
# at which requests still meet their objectives. Little's law turns a rate into a number of places, because requests in flight are the
# rate times the time that each of them takes.

# %%
capacity = measured_capacity()
if capacity is None:
    print("No run with objectives in records/: do lab 3.3.1 on this machine, then run this cell again.")
else:
    print(f"{capacity.label}: {capacity.per_s:.2f} requests/s within the objectives, {capacity.seconds:.2f} s each (measured in lab 3.3.1)")
    print(f"max_outstanding = {capacity.places} for each such engine (derived)")

# %% [markdown]
# The rest is a list. Take it along.
#
# | | where |
# |---|---|
# | TLS ends in front (nginx, Caddy, a cloud's load balancer); the gateway listens on a private address | `host` |
# | engines listen on private addresses; nobody reaches them but the gateway | `url` of each backend |
# | keys are made for each caller, and can be taken back one by one | `new-key`, `keys` |
# | limits on body, answer, requests and tokens | `limits`, `keys` |
# | deadline, idle time and queue are set from measurements | `timeouts`, `queue` |
# | liveness asks whether to restart this process; readiness asks whether *this gateway* should get requests, and never asks the engines, because every gateway would see the same dead engine and leave | `/health/live`, `/health/ready` |
# | metrics, the OpenAPI document and commands are on a port that clients can't reach | `private` |
# | each key has a limit of parallel requests, and the metrics tell tokens and cost by key | `max_parallel`, `price` |
# | nginx or Caddy pass streams on piece by piece | `docker/proxy` |
# | Kubernetes has probes, a `preStop` and a grace period that fit the drain | [docs/kubernetes.md](../docs/kubernetes.md) |
# | SIGTERM comes early enough: grace period some seconds above `limit_s` | `drain` |
# | `/metrics` is scraped, alerts reach a person, somebody has seen one fire | `docker/` |
# | no prompt and no key in logs; a request id in each line | JSON logs |
# | somebody has killed an engine on purpose, on a quiet afternoon | section 5 |
#
# ## Summary
#
# | | the idea | where it was measured |
# |---|---|---|
# | events | complete, or not sent | section 1, an engine's own bytes |
# | TTFT | the first text, not the head and not a comment | section 2 |
# | token bucket | bursts, and a rate in the long run | section 3, the gateway beside your bucket |
# | affinity with a bound | caches are used, nobody is buried | section 4, two vLLM |
# | retry before the first byte | unseen, and honest | section 5, real engines |
# | back-pressure | 429 and when to come back | section 6 |
# | turns for keys | tokens are shared, not places in a queue | section 6, a heavy key next to a light one |
# | drain | not ready, then closed, then gone | section 7 |

# %% [markdown]
# ## Questions
#
# <details><summary>1. A client retries a request that timed out. The gateway had retried it too, three times. How many answers did engines compute, and what limits that?</summary>
#
# Up to four for each of the client's attempts. A deadline that travels with the request, cancelling what nobody waits for (the
# gateway closes the connection, engines stop), and few retries limit it; retries at every layer multiply.
# </details>
# <details><summary>2. Why does the circuit count failures in a row, and not a share?</summary>
#
# It needs no window and no minimum count, and a backend that is broken fails in a row. A backend that fails one request in three
# never opens it: for that a share over a window is the better rule.
# </details>
# <details><summary>3. Half of all prompts begin with the same system prompt. What does consistent hashing do without the bound?</summary>
#
# It sends half of all requests to one replica. With the bound what is too much goes on to the next on the ring, which then has
# the beginning in its cache as well.
# </details>
# <details><summary>4. Why is a stream not repeated on another engine after its first byte?</summary>
#
# The second engine may write something else: sampling, another batch, another version. The client would get two halves that do
# not belong together, and could not tell.
# </details>
# <details><summary>5. The gateway answers 429 to everybody though the engine is idle. What do you look at?</summary>
#
# `gateway_in_flight` and `gateway_queued` against `max_outstanding`; whether requests of clients that left are still counted; the key's
# buckets (`rate_limited` in `gateway_requests_total` is another outcome than `queue_full`).
# </details>
#
# ## Further experiments
#
# * Give the slow engine of section 5 the policy `round_robin`, and compare the p99.
# * Three replicas, `power_of_two` against `least_outstanding`: how far apart are their p99?
# * Put a gateway in front of two gateways. What does the health check of the outer one say while an inner one drains?
# * Measure the cost of the gateway: run `experiments.measure_policy` on one engine, and compare it with a `Client` of `utils.benchmark`
#   that asks the engine directly.
# * Open the page at `/` on your phone (`GATEWAY_HOST=0.0.0.0`, with a key), and stop an answer in the middle.
