# %% [markdown]
# # Lab 3.3.5: EAGLE-3
#
# A simultaneous interpreter does not wait for the end of the sentence. She watches the speaker's face and hands as
# well as the words, and so she often knows the next word. An interpreter behind a curtain, who hears the words
# alone, guesses worse. Medusa's heads (lab 3.3.4) look at the model's face once, and then guess several words at
# once. **EAGLE** watches, guesses one word, and goes on from its own guess: a small model of one layer, which reads
# what the large one thought (its hidden states) as well as what it said.
#
# You will be able to
#
# * say what hidden states add to tokens, and measure it;
# * build EAGLE-3's inputs: fuse low, middle and high hidden states, and pair each with the token *after* it;
# * map a small draft vocabulary to the target's, and refuse a map that does not fit;
# * train a draft as it will be used (**training-time test**), and see what happens without;
# * grow EAGLE-2's dynamic tree and cut it to the nodes that are worth verifying;
# * predict the speed-up of a chain from three measured numbers, and choose its length;
# * measure plain decoding, n-gram lookup, Medusa, EAGLE-1 and EAGLE-3 side by side, and prove that none of them
#   changes the answer;
# * serve the draft from vLLM, and find the load at which speculation stops paying.
#
# **Time**: about 2 hours. *Run All* is meant to take at most 5 minutes of them on a quiet CPU, more with a large
# model on a GPU.
#
# **It starts** vLLM three times, on free ports of 127.0.0.1, and stops all of them. It trains two small drafts, and
# reads trained ones from `models/heads`. **It writes** one JSON record per run into `records/`. Numbers are *measured*
# here, *cited* with their source, or *derived* by a formula that you see, and each is marked accordingly.
#
# The model is the course's tiny one in sections 1 to 6, on every machine: 24 layers, 9.6 million parameters. Its
# drafts were trained for this course on its own answers. A CPU can show the method, whether the output stays
# the same, and acceptance. The *time* saved depends on the cost of a step with several tokens, which differs
# between machines, so you measure that cost too.

# %%
import math

import numpy as np
from IPython.display import display

from utils.checks import compare_prediction
from utils.checks import lab_3_3_5 as checks
from utils.engines import skip_on_failure
from utils.engines.fleet import start_later
from utils.profiles import MODELS, load_profile

profile = load_profile()
sizes = profile.load.speculation
print(f"Profile {profile.name}: {profile.description}")

# %% [markdown]
# vLLM is needed in section 7, and takes a while to start. So let it begin now, while you work on other things: plain,
# with EAGLE-3, and with n-gram lookup. (Where engines run in containers, each starts when it is its turn.) In this
# notebook the target and its drafts run through the compiled step of lab 3.3.4, section 8. It computes in float32 and sums
# in one order, so a result doesn't depend on how many tokens are computed together. If it can't run here, the PyTorch loop
# runs: in float32 for everything that has to be *the same*, and in the profile's data type for everything that is *timed*.

# %%
import torch

from utils.labs.lab_3_3_5 import experiments, plots, tables
from utils.speculative import comparison, result_guards
from utils.speculative.compiled_step import use_compiled_step
from utils.speculative.dataset import load_tokenizer, tokenizer_of
from utils.labs.lab_3_3_5.hidden_state_probe import probe
from utils.speculative.pretrained import load_shipped
from utils.speculative.target import load_target
from utils.speculative.training import eagle_accuracy
from utils.speculative.ttt import attention_gap

starting = start_later(profile, experiments.vllm_variants(profile))

# %%
torch.set_num_threads(1)  # two threads on cores that others use wait for each other
device = "cuda" if torch.cuda.is_available() else "cpu"
target = load_target(str(MODELS / "tiny"), device=device)
print(use_compiled_step(target))
dtype = torch.float32 if target.compiled else getattr(torch, profile.dtype)
timed = target if dtype == target.dtype else load_target(str(MODELS / "tiny"), device=device, dtype=dtype)
tokenizer = tokenizer_of(target)
shipped, shipped_timed = load_shipped(target), load_shipped(timed)
print(f"Target: {target.shape}")
print(f"EAGLE-3's draft: hidden states {shipped.eagle3.shape.aux_layers}, {shipped.eagle3.shape.draft_vocab} tokens")

# %% [markdown]
# ## 1. The inputs of the draft
#
# A draft model that reads tokens alone has to understand the text anew, with one layer. But the target *has*
# understood it: for every token that it has processed there is a hidden state, from which its own head read the next
# token. **EAGLE-1** (Li et al. 2024, arXiv 2401.15077) gives the draft that last hidden state, the *feature*, and
# trains it to foretell the next one. **EAGLE-3** (Li et al. 2025, arXiv 2503.01840) drops this second aim, and reads
# three hidden states in place of one: a low, a middle and a high one.
#
# How much is in them? A **probe** is the simplest thing that could use them: one linear map, fitted in closed form,
# that guesses token i + 2 from the values known at position i. First the data: the target answers prompts, and the values that it
# computed on the way are kept (in float32). A fifth of the answers is for tests: neither the probe nor the small drafts
# of section 4 learn from them.
#
# **Predict**: the probe that reads token i + 1 alone is right so many times in a hundred; how many points more is the
# one that also reads the three hidden states of token i?

# %% prediction="probe_gain"
### BEGIN SOLUTION
#: probe_gain = None  # percentage points
probe_gain = 25
### END SOLUTION

# %% tags=["measures"]
learn, test = data = experiments.make_data(target, tokenizer, profile, shipped.eagle3.shape.aux_layers)
print(f"{len(learn)} answers to learn from, {len(test)} to test on")
probed = probe(target, learn, test)
alone, *_, fused = probed.values()
compare_prediction(probe_gain, 100 * (fused - alone), what="gain of three hidden states", unit="points")
tables.probe_table(probed)

# %% [markdown]
# **Read the table.** Which input is worth most? Do the low and the middle hidden state add something to the last one?
#
# <details><summary>Our reading</summary>
#
# If the inputs with hidden states are far ahead of the token alone, the target had already worked out more than it said.
# If the three states are ahead of the last one alone, the lower layers hold something that the last one no longer has. If
# an input isn't ahead of a smaller one, your sample is probably too small: more inputs give the probe more weights to
# fit, so it needs more answers. The quick load is too small for this.
# </details>
#
# **In words.** The token alone tells which tokens often come after it. The hidden state tells which token the target was about
# to write. The last one is shaped for the *next* token, which is known by now; the lower ones still hold what the
# later ones need. That is EAGLE-3's reason to fuse several. Together with giving up the aim of foretelling the next
# feature (section 4) it lets the draft go on getting better with more data, where EAGLE-2's stops (EAGLE-3, figure 1,
# cited).
#
# Which hidden states? Number 0 is the embedding, number k the output of layer k − 1 (as in transformers'
# `hidden_states[k]`, and vLLM's `eagle_aux_hidden_state_layer_ids`); EAGLE-3 takes number 2, the middle, and the last
# but three: of 24 layers 2, 12 and 21. They are laid side by side, low first, and one linear layer without bias, `fc`, brings them back to the width
# of one: g = fc([low; middle; high]).

# %% [markdown]
# Write `fuse`. `hidden_states` is an array [layers + 1, tokens, hidden], `aux_layers` names the layers to use, in
# order, and `fc` is the layer's weight as PyTorch stores it: [outputs, inputs]. Return [tokens, outputs].
#
# <details><summary>Hint 1</summary>
#
# `np.concatenate([...], axis=-1)` lays arrays [tokens, hidden] side by side.
# </details>
# <details><summary>Hint 2</summary>
#
# A linear layer computes x @ W.T.
# </details>

# %% exercise="fuse" title="Low, middle, high" minutes=10 difficulty=2 importance=4 points=3
def fuse(hidden_states: np.ndarray, aux_layers: list[int], fc: np.ndarray) -> np.ndarray:
    """Fused features [tokens, outputs] of some of the hidden states [layers + 1, tokens, hidden]."""
    ### BEGIN SOLUTION
    side_by_side = np.concatenate([hidden_states[k] for k in aux_layers], axis=-1)
    return side_by_side @ fc.T
    ### END SOLUTION

# %% check="fuse"
fuse = checks.fuse(fuse)

# %% [markdown]
# Now which token goes with which feature? When token i + 1 has been sampled, the target has *not* processed it:
# there is its embedding, and the feature of token i. So position i reads (feature i, token i + 1), one step ahead
# of itself, and guesses token i + 2. The token matters: the feature knows what the target was inclined to
# say, the token what it did say (the uncertainty of sampling, as EAGLE-1's paper calls it).

# %% [markdown]
# Write `shift`: for the tokens of a sequence and the features of all of them but the newest, a list of triples
# (feature i, token i + 1, token i + 2). The last triple's guess is not known yet: `None`.
#
# <details><summary>Hint</summary>
#
# There are as many triples as features, one less than tokens. `tokens[i + 2]` does not exist for the last.
# </details>

# %% exercise="shift" title="One step ahead" minutes=8 difficulty=2 importance=4 points=3
def shift(features: list, tokens: list[int]) -> list[tuple]:
    """Triples (feature i, token i + 1, token i + 2 or None) of a sequence."""
    ### BEGIN SOLUTION
    wanted = [*tokens[2:], None]
    return list(zip(features, tokens[1:], wanted, strict=True)) if features else []
    ### END SOLUTION

# %% check="shift"
shift = checks.shift(shift)

# %% [markdown]
# This cell runs your two functions on a real text. It compares the fused features of a test prompt with those of the course's
# module, and shows the draft's inputs at its last three positions.

# %%
ids = test[0].ids[: test[0].prompt].tolist()
states, aux = experiments.hidden_states(target, ids[:-1]), list(shipped.eagle3.shape.aux_layers)
mixed = fuse(states.numpy(), aux, shipped.eagle3.fc.weight.float().cpu().numpy())
module_fused = shipped.eagle3.fuse(torch.cat([states[k] for k in aux], -1).to(device)).cpu().numpy()
print(f"states {states.shape}, fused {mixed.shape}: at most {np.abs(mixed - module_fused).max():.1e} from the module's (measured)")
for i, (_, token, wanted) in list(enumerate(shift(list(mixed), ids)))[-3:]:
    behind = "the first token of the answer" if wanted is None else repr(tokenizer.decode([wanted]))
    print(f"feature of {tokenizer.decode([ids[i]])!r}, token {tokenizer.decode([token])!r}: guess {behind}")

# %% [markdown]
# ## 2. A small vocabulary
#
# Most of a one-layer draft's work is its last product, hidden state times vocabulary. A target of 128,000 tokens uses
# few of them often, so EAGLE-3's draft guesses among the frequent ones only: 32,000 of 128,256 in the published head
# for Llama-3.1-8B. A token that is not among them is simply never guessed; the target writes it anyway. Checkpoints
# store the map as **offsets**, `d2t`: target id = draft id + d2t[draft id].

# %% [markdown]
# Write `to_offsets`: the target's ids that are kept come in any order; in ascending order they are draft ids
# 0, 1, 2, ... Return the offset of each draft id.
#
# <details><summary>Hint</summary>
#
# `enumerate(sorted(kept))`.
# </details>

# %% exercise="to_offsets" title="The map as offsets" minutes=5 difficulty=1 importance=2 points=2
def to_offsets(kept: list[int]) -> list[int]:
    """Offsets d2t of a draft vocabulary made of these target ids."""
    ### BEGIN SOLUTION
    return [token - draft for draft, token in enumerate(sorted(kept))]
    ### END SOLUTION

# %% check="to_offsets"
to_offsets = checks.to_offsets(to_offsets)

# %% [markdown]
# Write `to_target`: the target ids of some draft ids. Heads and target can come from different places, so refuse
# with a `ValueError` a draft id that is not in the draft vocabulary (0 to `len(offsets) - 1`), and one that leads
# to no token of the target (0 to `vocab - 1`). Silently taking another token would change nothing in the *answer*,
# which the target verifies; it would only make every guess wrong, and you would look for the reason for days.
#
# <details><summary>Hint</summary>
#
# Python's lists take negative positions: compare with 0 yourself.
# </details>

# %% exercise="to_target" title="Back to the target, and no further" minutes=8 difficulty=2 importance=3 points=3
def to_target(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    """Target ids of draft ids; ValueError for one outside either vocabulary."""
    ### BEGIN SOLUTION
    tokens = []
    for draft in draft_ids:
        if not 0 <= draft < len(offsets):
            raise ValueError(f"draft id {draft}: the draft knows 0 to {len(offsets) - 1}")
        token = draft + offsets[draft]
        if not 0 <= token < vocab:
            raise ValueError(f"draft id {draft} leads to token {token}: the target knows 0 to {vocab - 1}")
        tokens.append(token)
    return tokens
    ### END SOLUTION

# %% check="to_target"
to_target = checks.to_target(to_target)

# %% [markdown]
# Your two functions on the shipped draft: there and back, and how much of the answers it could guess at all.

# %%
d2t = shipped.eagle3.d2t.tolist()
offsets = to_offsets(d2t)
assert to_target(list(range(len(offsets))), offsets, target.shape.vocab) == d2t
known, asked = set(d2t), [token for s in test for token in s.ids[s.prompt :].tolist()]
covered = sum(token in known for token in asked) / len(asked)
print(f"{len(d2t)} of {target.shape.vocab} tokens can be drafted: {covered:.1%} of the test answers' (measured)")
try:
    to_target([len(offsets)], offsets, target.shape.vocab)
except ValueError as error:
    print("Refused:", error)

# %% [markdown]
# ## 3. Going on from a guess
#
# The first guess of a draft has firm ground, a feature of the target. The second doesn't, because the target has not
# processed the first guess, so there is no feature for it. EAGLE puts **the draft's own output** in its place, and
# goes on. Each guess rests on one that was made from less:
#
#     guess 1   reads  fused feature g of the newest token known,   embedding of the newest token
#     guess 2   reads  the draft's output a at guess 1,             embedding of guess 1
#     guess 3   reads  the draft's output a at guess 2,             embedding of guess 2
#
# A draft that was only ever trained on true features meets its own output for the first time when it is used.
# **Training-time test** shows it earlier: in training the draft drafts on, several steps from *every* position at once,
# and each step's loss counts.
#
# That needs an unusual attention mask. Step s has one query per position. Position i's past is real up to token i + 1:
# the keys of step 0, up to i, causally. After that come its own guesses: of steps 1 to s the keys with the same
# number i, the **diagonal**, and no others. Key j of step 1 belongs to a continuation that began at j: another world.

# %% [markdown]
# Write `ttt_mask`: the mask of step `step` as a list of `rows` lists, `True` where a key is seen. The keys of steps
# 0, 1, ..., `step` lie side by side, `rows` of each.
#
# <details><summary>Hint 1</summary>
#
# `ttt_mask(2, 1)` is `[[True, False, True, False], [True, True, False, True]]`.
# </details>
# <details><summary>Hint 2</summary>
#
# For each row, go over the steps, and for each step over its keys: `key <= row` in step 0, `key == row` later.
# </details>

# %% exercise="ttt_mask" title="The mask of training-time test" minutes=15 difficulty=3 importance=4 points=4
def ttt_mask(rows: int, step: int) -> list[list[bool]]:
    """Which keys of steps 0 to `step`, side by side, each of `rows` queries sees."""
    ### BEGIN SOLUTION
    mask = []
    for row in range(rows):
        causal = [key <= row for key in range(rows)]
        diagonal = [key == row for key in range(rows)]
        mask.append(causal + step * diagonal)
    return mask
    ### END SOLUTION

# %% check="ttt_mask"
ttt_mask = checks.ttt_mask(ttt_mask)

# %%
gap = max(attention_gap(ttt_mask, rows=12, step=step) for step in range(4))
print(f"Attention under your mask against the one the training uses, 4 steps: at most {gap:.1e} apart (measured)")
plots.plot_mask(ttt_mask(5, 2))

# %% [markdown]
# *In the picture: five queries, and the keys of three steps side by side. A blue triangle for step 0; for each later
# step an orange diagonal.*
#
# ## 4. Training-time test, on and off
#
# Two small drafts, trained on the answers of section 1, with the same data, the same number of steps and the same
# initial weights: one **without** training-time test (1 step), one **with** (3 steps). Then each drafts on from every
# position of the test answers, four guesses long. A minute of training makes no good draft; look at the *slope*. The table also
# has the shipped one, which was trained longer on more data.
#
# **Predict**: without training-time test, how many points lower is the fourth guess than the first?

# %% prediction="fall_without"
### BEGIN SOLUTION
#: fall_without = None  # percentage points
fall_without = 30
### END SOLUTION

# %% tags=["measures"]
without = experiments.train_small(target, data, profile, unrolled=1, looked_at=4)
with_test = experiments.train_small(target, data, profile, unrolled=3, looked_at=4)
by_guess = {
    "small, without training-time test": without.accuracy,
    "small, with (3 steps)": with_test.accuracy,
    "shipped": eagle_accuracy(target, shipped.eagle3, test, 4),
}
fall = 100 * (without.accuracy[0] - without.accuracy[3])
compare_prediction(fall_without, fall, what="fall from the first to the fourth guess, without", unit="points")
display(tables.guess_table(by_guess))
plots.plot_steps(by_guess)

# %% [markdown]
# *In the picture: share of right guesses (with the true tokens in front) against the number of the guess. Without
# training-time test the line breaks off after the first guess. With it the line starts lower, since the same steps had
# three things to teach, and holds as far as was trained: three guesses. The shipped draft, longer trained with four
# steps, lies above both and is nearly level.*
#
# **Read the table.** Call a line level if it changes by less than 10 points from the first to the last guess. Which of the
# three drafts is level? Which small draft has the better *first* guess, and which would you use for a chain of three?
#
# <details><summary>Our reading</summary>
#
# If the draft without training-time test falls by much more than 10 points, this is the effect that EAGLE-3's paper
# describes: from its second guess on it reads its own output, which training never showed. If the small draft with the
# test has a worse first guess, it had to learn three tasks in the same number of steps. For a chain of three, multiply
# the shares of guesses 1 to 3 for each draft. The larger product is the better draft, even if its first guess is worse.
# If both small drafts are bad from the first guess on, or fall alike, the training was too short, as with the quick load.
# Train longer before you conclude anything.
# </details>
#
# **In words.** Without training-time test the second guess reads something that training never showed. Acceptance
# is a *product*: a chain of three is right only if all three are, so the slope costs more than it looks. With a true
# token after each guess, as here, every later guess is counted as if those before had been right.
#
# EAGLE-1 solves the same problem differently: its draft has to *reproduce* the target's next hidden state (smooth L1
# loss), so that its own output may stand for one. That ties the draft to the exact form of a hidden state. EAGLE-3 gives
# that aim up, and lets training-time test do its work.
#
# ## 5. The dynamic tree
#
# A chain bets everything on the first guess. A tree keeps several. Medusa's tree is the same for every text;
# **EAGLE-2** (Li et al. 2024, arXiv 2406.16858) noticed that the draft *knows* how sure it is: its probabilities are
# close to the acceptance rates. So the tree is grown anew each time. **Expand**: of each level the most
# probable nodes get children. **Re-rank**: of all nodes the N most probable are kept, whatever their level.
# Probable means: the whole path, from the root.

# %% [markdown]
# Write `path_scores`, which returns the logarithm of the probability of each node's path. `parents` gives each node's parent (-1 for
# the root, node 0; a parent comes before its children), `probabilities` the draft's probability of each node *given its
# parent*. The root is known: 0.
#
# <details><summary>Hint</summary>
#
# The probability of a path is a product, its logarithm a sum: the parent's score plus `math.log(...)`.
# </details>

# %% exercise="path_scores" title="Joint confidence" minutes=8 difficulty=2 importance=3 points=2
def path_scores(parents: list[int], probabilities: list[float]) -> list[float]:
    """Log-probability of the path from the root to each node."""
    ### BEGIN SOLUTION
    scores = [0.0]
    for parent, probability in zip(parents[1:], probabilities[1:], strict=True):
        scores.append(scores[parent] + math.log(probability))
    return scores
    ### END SOLUTION

# %% check="path_scores"
path_scores = checks.path_scores(path_scores)

# %% [markdown]
# Write `rerank`: the root and the `nodes` other nodes with the highest scores, in ascending order of the node. Of
# equals the lower number. Why is that a tree, with no node whose parent is missing? A path is never more
# probable than its beginning, and where they are equal the parent has the lower number.
#
# <details><summary>Hint</summary>
#
# Sort the nodes 1, 2, ... by `(-scores[node], node)`, take the first ones, sort those.
# </details>

# %% exercise="rerank" title="Keep what is worth verifying" minutes=10 difficulty=3 importance=3 points=3
def rerank(parents: list[int], scores: list[float], nodes: int) -> list[int]:
    """Kept nodes of an expanded tree, ascending, the root first."""
    ### BEGIN SOLUTION
    order = sorted(range(1, len(parents)), key=lambda node: (-scores[node], node))
    return [0, *sorted(order[:nodes])]
    ### END SOLUTION

# %% check="rerank"
rerank = checks.rerank(rerank)

# %%
known_prompts, unlike_prompts = experiments.held_out_prompts(target, tokenizer, profile)
tree = experiments.expand(target, shipped.eagle3, known_prompts[-1].ids, depth=4, width=3)
kept = rerank(tree.parents, path_scores(tree.parents, tree.probabilities), nodes=8)
print(f"{len(tree.parents) - 1} nodes expanded, {len(kept) - 1} kept, {len(tree.accepted(kept)) - 1} accepted")
plots.plot_expansion(tree, kept, lambda token: tokenizer.decode([token]))

# %% [markdown]
# *In the picture: the root at the left is the newest token known. Each node shows a guess, and how probable the draft
# finds it after its parent. Grey was expanded and dropped, blue is kept for verification, and green (bold) is the text that the
# target then wrote. The place was chosen where the draft hesitates; where it is sure, the tree is a chain.*
#
# ## 6. Side by side
#
# First the promise. In float32, in batches of 16, is every answer the one that plain decoding gives, token for token?

# %% tags=["measures"]
names = ("EAGLE-1, chain of 3", "EAGLE-3, chain of 3", "EAGLE-3, dynamic tree")
same = experiments.check_same(target, {n: experiments.drafters(shipped)[n] for n in names}, tokenizer, profile)
display(tables.same_table(same))
result_guards.warn_not_lossless({name: equal / count for name, (equal, count) in same.items()})

# %% [markdown]
# Every row has to show 100 %. If one doesn't, the method isn't lossless, and its speed doesn't count.
#
# Now the time. All methods answer the same held-out prompts, whose plain answers do not run in circles (a loop
# is easy to guess for anybody): code, lists, data and questions, the kinds that target and heads were trained on.
# Each prompt is answered by every method before the next one comes, one at a time, and all of it is repeated.
# One thread, greedy, plain decoding by the same code, which lab 3.3.4 compares with llama.cpp and others. **n-gram
# lookup** proposes what followed the last few tokens the last time they occurred: no training, no cost. A draft has to beat
# it. The **adaptive chain** drafts up to six tokens, and stops when the draft finds its whole chain less than 30 % probable.
#
# **Predict**: how many times as fast as plain decoding is EAGLE-3 with a chain of 3?

# %% prediction="eagle3_speedup"
### BEGIN SOLUTION
#: eagle3_speedup = None  # a factor; 1 is no gain
eagle3_speedup = 1.5
### END SOLUTION

# %% tags=["measures"]
fleet = starting.result()  # engines that still start would disturb the clock
costs = comparison.step_costs(timed, range(1, 10), repeats=20)
drafters, limit = experiments.drafters(shipped_timed), experiments.limit_of(profile)
prompts = experiments.fit_prompts(known_prompts, costs[1], profile)
print(f"{len(prompts)} of {len(known_prompts)} loop-free prompts: as many as there is time for (T(1) decides)")
results = comparison.compare(
    timed,
    drafters,
    prompts,
    label="EAGLE-3 side by side, known kinds",
    max_new_tokens=limit,
    repeats=sizes.repeats,
    profile=profile,
)
chain = results["EAGLE-3, chain of 3"]
compare_prediction(eagle3_speedup, chain.speedup, what="speed-up of EAGLE-3, chain of 3", unit="times")
display(comparison.result_table(results))

# %% tags=["measures"]
unlike = comparison.compare(
    timed,
    drafters,
    [p.ids for p in unlike_prompts][: len(prompts) // 2],
    label="EAGLE-3 side by side, unlike text",
    max_new_tokens=sizes.answer_tokens // 2,
    repeats=1,
    profile=profile,
)
display(comparison.result_table(unlike))
display(plots.plot_results(results, unlike))

# %% [markdown]
# *In the picture: left, speed against plain decoding (black whiskers: slowest and fastest repeat), right, tokens per
# verification; blue for the kinds that the heads know, orange for prose, which they do not.*
#
# The course set itself targets for EAGLE-3: 2.5 times plain decoding, 3.0 tokens per verification, and ahead of n-gram
# lookup. The first table compares them with your measurements. The second one shows the cost of a cycle of each method,
# in plain steps: *speed-up, derived* is the acceptance length divided by the cost of a verification and a draft. Its last
# two columns tell how far a method is from 2.5: the acceptance length that it would need at this cost, and the cost of a
# cycle that it could afford at this acceptance length.

# %%
drafting = {name: comparison.draft_cost(o) for name, o in results.items() if name != "plain"}
display(tables.targets_table(results), tables.cost_table(results, costs, drafting))

# %% [markdown]
# **Read the tables.** Which targets did your machine reach? Which method accepts most, and is it the fastest? If a target
# is missed, say whether verification, drafting or acceptance is to blame.
#
# <details><summary>Our reading</summary>
#
# * If the speed-up is missed, compare three numbers in the row of the fastest EAGLE-3 method. With verification and drafts
#   for free, its speed-up would be its acceptance length. The two costs divide it. If their sum is well above 1, the
#   machine or the program is to blame, and the larger of the two tells you where.
# * If the acceptance length is missed, the draft is to blame. Better data and longer training raise it, but a faster
#   machine doesn't.
# * If n-gram lookup is faster than EAGLE-3, the answers repeat their prompts. Lookup costs nothing, so each token that it
#   gets right is pure gain.
# * If the derived and the measured speed-up differ by much, the cycle costs something that the table leaves out, for
#   example moving keys and values, or the machine was busy during one of the measurements.
# </details>
#
# **In words.** A cycle costs one verification and the drafts before it. On a GPU with a large model, a step is paid for
# reading the weights, and verifying eight tokens costs hardly more than one. On a CPU it depends on the program as well:
# the compiled step reads the weights once for all tokens, so two or three tokens cost little more than one, and from
# five or six on the arithmetic counts. Drafts cost too. So the method that is accepted most need not be fastest. Reading the two columns apart is the point of this table: acceptance is a property of draft and
# text, the cost a property of the machine. And look at the prose: a draft that knows little of a text costs as much
# as one that knows it well.
#
# That can be computed before it is measured. If each guess is right with probability a, whatever came before, then a
# chain of k yields on average
#
#     E = 1 + a + a² + ... + aᵏ = (1 - aᵏ⁺¹) / (1 - a)
#
# tokens: the i-th guess counts only if all before it were right, and the target adds its own token in any case
# (Leviathan et al. 2023, arXiv 2211.17192, equation 1). The cycle costs k drafts and one verification.

# %% [markdown]
# Write `expected_speedup`: E over the cost of a cycle. `draft_cost` is the cost of one guess, `verify_cost` that of
# verifying the chain, both in plain steps. `acceptance` may be 1.
#
# <details><summary>Hint</summary>
#
# The sum needs no division by 1 − a: `sum(acceptance**i for i in range(k + 1))`.
# </details>

# %% exercise="expected_speedup" title="What a chain is worth" minutes=10 difficulty=2 importance=5 points=3
def expected_speedup(acceptance: float, k: int, draft_cost: float, verify_cost: float) -> float:
    """Expected speed-up over plain decoding of a chain of k guesses."""
    ### BEGIN SOLUTION
    tokens = sum(acceptance**i for i in range(k + 1))
    return tokens / (k * draft_cost + verify_cost)
    ### END SOLUTION

# %% check="expected_speedup"
expected_speedup = checks.expected_speedup(expected_speedup)

# %% [markdown]
# The three numbers come from the runs above: a from the guesses that were looked at, the cost of a guess from the time
# spent drafting, the cost of a verification from forward passes over 1 to 9 tokens. The best k is the one with the
# highest value.

# %%
a = experiments.acceptance_rate(results["EAGLE-3, chain of 4"].generations)
guess = drafting["EAGLE-3, chain of 4"] / 4 / costs[1]
curve = {k: expected_speedup(a, k, guess, costs[k + 1] / costs[1]) for k in range(1, 9)}
best = max(curve, key=curve.get)
print(f"a = {a:.2f}, a guess costs {guess:.3f} T(1) (measured)")
print("T(n) / T(1):", {n: round(cost / costs[1], 2) for n, cost in costs.items()}, "(measured)")
print(f"Best k: {best}, {curve[best]:.2f} times plain decoding (derived)")
measured = {k: results[f"EAGLE-3, chain of {k}"].speedup for k in experiments.CHAINS}
plots.plot_chains(curve, measured)

# %% [markdown]
# *In the picture: your formula as a red curve over k, and the three measured chains as blue points. The curve rises
# while another guess brings more than it costs, and falls after that.*
#
# **In words.** The formula takes every guess as equally likely to be right, independent of text and position. Real
# acceptance comes in runs: a table is easy for ten tokens, then a name comes. And the answer ends somewhere, often in the
# middle of a chain. A third reason concerns the chain of 6 alone: the shipped draft was trained with **four** steps of
# training-time test, so its fifth and sixth guess read something that training never showed. That is section 4 again, and
# the chain of 6 lies below the curve for it. Public recipes train seven steps (SpecForge's, read in its source). So use the
# curve's *maximum* for chains up to the trained length.
#
# ## 7. The same draft in vLLM
#
# The draft lies in `models/heads/eagle3` in the layout that vLLM loads: `config.json` and
# `model.safetensors` with `fc`, `midlayer.*`, `lm_head`, `d2t`, `t2d`. One argument switches it on:
#
#     vllm serve MODEL --speculative-config '{"method": "eagle3", "model": "models/heads/eagle3", "num_speculative_tokens": 3}'
#
# vLLM drafts a chain. It counts drafts, drafted and accepted tokens (`vllm:spec_decode_*`). Do its
# counters agree with our own loop on the same prompts? And is its answer plain vLLM's? One counter,
# `vllm:spec_decode_num_accepted_tokens_per_pos_total`, also tells how often the first, second and third guess was accepted.

# %% tags=["measures"]
ready = [name for name in fleet.variants if fleet.has(name)]
print("Running, or starting when it is their turn:", ", ".join(ready) or "none")
own_model = str(MODELS / "tiny") == profile.models["vllm"]
serving = tokenizer if own_model else load_tokenizer(profile.models["vllm"])
asked = prompts if own_model else experiments.served_prompts(serving, profile)
found = fleet.each(
    lambda name, engine, turn: comparison.measure_served(
        engine, profile, asked, f"vLLM, {name}, one at a time", max_tokens=limit
    ),
    turns=2,
)
served = {name: turns[-1] for name, turns in found.items()}
if "plain" in served:
    display(tables.served_table(served))
if "EAGLE-3" in served and own_model:
    display(tables.agreement_table(chain, served["EAGLE-3"]))
    result_guards.warn_disagreement(served["EAGLE-3"].acceptance_length, chain.acceptance_length)
    own = comparison.accepted_by_position(chain.generations, 3)
    display(tables.position_table({"our own loop": own, "vLLM's counter": served["EAGLE-3"].by_position}))
elif "EAGLE-3" in served:
    print("Our own loop on the served model: not run here, because two copies of it do not fit into the memory.")

# %% [markdown]
# **Read the tables.** Is vLLM faster with EAGLE-3 than without, and than with n-gram lookup? Do all answers equal plain
# vLLM's? Do both programs agree on the acceptance length within 10 %?
#
# <details><summary>Our reading</summary>
#
# * If EAGLE-3 gains more in vLLM than in our own loop, vLLM's step has costs that don't grow with the tokens (scheduler,
#   HTTP, sampling), and speculation spreads them over more tokens.
# * If n-gram lookup is faster although it accepts less, its free drafts are worth more here than the better guesses of
#   EAGLE-3, whose drafts take time.
# * If some answers differ, the reason is rounding. A product of several rows is rounded differently from that of one row,
#   and if two tokens have nearly the same probability, the other one may come first. In 16-bit types this happens more
#   often than in float32.
# * The acceptance lengths should agree within 10 %, because draft, target and text are the same. If they don't, compare
#   the auxiliary layers first (see question 1 below).
# </details>
#
# **The crossover.** Speculation buys time with arithmetic. With one request in flight arithmetic lies idle. With
# many, the engine's batch uses it already, and every guess that is thrown away was work for nobody. And at a higher
# **temperature** the target draws its tokens: there is no single next token, and a draft's best guess is right less often.
#
# **Predict**: at the highest concurrency, temperature 0, how many times plain is vLLM's throughput with EAGLE-3?

# %% prediction="ratio_at_most"
### BEGIN SOLUTION
#: ratio_at_most = None  # a factor; below 1 it no longer pays
ratio_at_most = 0.9
### END SOLUTION

# %% tags=["measures"]
temperatures = (0.0,) if profile.device == "cpu" else (0.0, 1.0)
levels = experiments.crossover(fleet, profile, serving, ("plain", "EAGLE-3"), temperatures)
if len(temperatures) == 1:
    print("Throughput at temperature 1: not run here, because vLLM's sampling can't be trusted on a CPU; see below.")
if len(levels) == 2:
    highest = profile.load.levels[-1]
    ratio = tables.ratios(levels, 0.0, "EAGLE-3")[highest]
    compare_prediction(ratio_at_most, ratio, what=f"EAGLE-3 over plain, {highest} in flight", unit="times")
    display(tables.crossover_table(levels), plots.plot_crossover(levels))
else:
    print("Crossover: not run here, it needs plain vLLM and vLLM with EAGLE-3; see above for what is missing.")

# %% [markdown]
# *In the picture: throughput with EAGLE-3 over throughput without, against the requests in flight, a line per
# temperature. Where a line falls below the grey one at 1, speculation costs more than it brings.*
#
# **Read the table.** From how many requests in flight on does EAGLE-3 no longer pay? Does the acceptance length change with
# the level, or only the ratio?
#
# <details><summary>Our reading</summary>
#
# The crossover is the first level whose ratio is below 1. If no ratio is below 1, your machine still has idle arithmetic
# at the highest level, and the crossover is further out. If every ratio is below 1, plain decoding leaves nothing idle
# even with one request, so verification costs more than the accepted tokens bring. The acceptance length stays about
# the same at all levels, because it belongs to draft and text. Therefore a falling ratio is due to the cost of a step. If
# the ratios go up and down without order, other work disturbed the runs, so repeat them on a quiet machine.
# </details>
#
# Temperature, in our own loop first, whose sampling is exact (lab 3.3.4 tests that): how many guesses are accepted? Then
# the same in vLLM, on the same prompts. Two programs that sample from the same distribution accept about as much.

# %% tags=["measures"]
accepted = experiments.by_temperature(target, shipped.eagle3, prompts, profile)
display(tables.temperature_table(accepted))
if own_model:
    with skip_on_failure("vLLM with EAGLE-3 at temperature 1"), fleet.one("EAGLE-3") as engine:
        drawn = comparison.measure_served(
            engine, profile, asked[:4], "vLLM, EAGLE-3, temperature 1", max_tokens=limit, temperature=1.0
        )
        print(f"vLLM, temperature 1: acceptance length {drawn.acceptance_length:.2f}; our own loop: {accepted[1.0]:.2f} (measured)")
        tables.warn_other_sampling(drawn.acceptance_length, accepted[1.0])
fleet.stop()

# %% [markdown]
# **Read the table.** How much of the acceptance is lost from temperature 0 to 1? Does vLLM accept as much at temperature 1
# as our own loop?
#
# <details><summary>Our reading</summary>
#
# A higher temperature flattens the target's distribution, so its draws agree less often with the draft's best guess. If
# your table hardly falls, the target is sure of its answers. Two programs that sample exactly accept about as much. If
# vLLM accepts fewer than half of the guesses that our loop accepts, temperature can't be the reason.
#
# On a CPU we know the reason. In the CPU build of vLLM 0.32.0, the temperatures of the drafted tokens are written into a
# copy that is thrown away (`_expand_kernel_impl` in `vllm/utils/cpu_triton_utils.py`, if the numbers aren't integers). The
# logits are then divided by the values that happened to be in memory, so the answers are no longer the target's. Don't
# sample with speculation there. The crossover above leaves out temperature 1 on a CPU for the same reason.
# </details>
#
# **In words.** The gain shrinks with the number of requests, and with temperature the acceptance falls, the more the
# less sure the target is: this one, trained on tasks with one right answer, is often sure. An acceptance length that
# two programs do not share is worth a look into their sources: vLLM says nothing when guesses are refused, or when
# the answers are no longer the target's.
#
# A GPU with a large model has far more idle arithmetic than two CPU cores, so its crossover lies at higher concurrency,
# but it has one: for SGLang, throughput with EAGLE-3 was reported below throughput without, with 20 requests in flight
# on one A6000 ([sglang issue 5274](https://github.com/sgl-project/sglang/issues/5274)); EAGLE-3's paper (arXiv 2503.01840)
# still measured +38 % throughput at batch 64 (SGLang, one H100, cited). For that reason vLLM 0.32 takes
# `num_speculative_tokens_per_batch_size` in its speculative config: how many tokens to draft at which batch size, as
# `[[1, 8, 3], [9, 64, 0]]`. Measure first where your limit is.
#
# **SGLang** reads the same layout, and drafts trees as in section 5 (`--speculative-eagle-topk` is the width,
# `--speculative-num-steps` the depth, `--speculative-num-draft-tokens` the nodes verified, the root among them). But it
# counts layers otherwise: SGLang 0.5.23 adds 1 to every id of `eagle_aux_hidden_state_layer_ids`
# (`set_eagle3_layers_to_capture` in `sglang/srt/models/qwen3.py`;
# [pull request 25454](https://github.com/sgl-project/sglang/pull/25454) describes both conventions). From the folder above
# it would fuse states 3, 13 and 22, say nothing, and accept less. So it gets a copy, with ids one lower:
#
#     from pathlib import Path
#     from utils.speculative.checkpoints import save_heads
#     save_heads(shipped.eagle3, target, Path("eagle3-sglang"), engine="sglang")
#
#     python3 -m sglang.launch_server --model-path MODEL --speculative-algorithm EAGLE3 \
#       --speculative-draft-model-path eagle3-sglang --speculative-num-steps 3 --speculative-eagle-topk 1 \
#       --speculative-num-draft-tokens 4
#
# For a published draft, find out which of the two its ids mean: the acceptance length tells.
#
# **TensorRT-LLM** drafts a chain with EAGLE-3 unless its file sets `use_dynamic_tree: true` in `speculative_config`. Then
# it grows the tree of section 5 (lab 3.3.6 writes such files).
#
# Where SGLang runs without its own kernels, as on this course's `cpu` profile, it cannot: building and verifying a tree
# are kernels of its own. This is its message:

# %% tags=["measures"]
print(experiments.try_sglang(profile))

# %% [markdown]
# **Your answer**, in three or four sentences of plain text in the cell below (your instructor reads it). A service
# answers requests at temperature 0, one to four in flight at night and sixty-four at noon. When would you switch
# EAGLE-3 on, and from which of *your* measured numbers do you conclude that? Which number would you measure again on
# the service's own machine before you decide?

# %% [markdown] answer="when_to_speculate" points=2
# ### BEGIN SOLUTION
# One point: a conclusion from the learner's own table: the ratio at low and at high concurrency, with
# numbers (or that the engine was not run here, and why). On at night if the ratio there is above 1,
# off at noon if it is below 1, or the level between at which it changes.
#
# One point: what has to be measured again, and why: the ratio by concurrency, or T(n)/T(1), since the cost of a step
# over several tokens belongs to the machine; acceptance on the service's own prompts, since it belongs to draft and
# text.
# ### END SOLUTION

# %% [markdown]
# ## 8. Which drafter in 2026?
#
# Four questions sort the drafters that engines offer today. Does it need training? Does it read the target's hidden
# states? Does it draft one token after the other, or all at once? Which engine offers it? The names in the table are those
# of the engines' own options (read in the sources of vLLM 0.32, SGLang 0.5.23 and llama.cpp). TensorRT-LLM's are from
# NVIDIA's schema of 1.4.0rc0, because NVIDIA publishes none for 1.3.0rc28, which this course starts.
#
# | drafter | training? | hidden states? | one by one? | offered by |
# |---|---|---|---|---|
# | n-gram lookup | no | no | all at once | vLLM `ngram`, SGLang `NGRAM`, TensorRT-LLM `NGram`, llama.cpp `ngram-simple` |
# | suffix decoding | no | no | all at once | vLLM `suffix` (needs `arctic-inference`), TensorRT-LLM `SA` |
# | draft model | a model of its own | no | one by one | vLLM `draft_model`, SGLang `STANDALONE`, TensorRT-LLM `Draft_Target`, llama.cpp `draft-simple`, Ollama |
# | Medusa | heads | the last one | all at once | vLLM `medusa` (chains only) |
# | EAGLE-3 | one layer | three of them | one by one | vLLM `eagle3`, SGLang `EAGLE3`, TensorRT-LLM `Eagle3`, llama.cpp `draft-eagle3` |
# | MTP | with the target itself | the last one | one by one | vLLM `mtp`, SGLang `NEXTN`, TensorRT-LLM `MTP`, llama.cpp `draft-mtp` |
# | P-EAGLE | one layer | three of them | all at once | vLLM (`parallel_drafting`) |
# | DFlash, DSpark | a few layers | several | all at once | vLLM `dflash`, `dspark`, SGLang `DFLASH`, `DSPARK`, TensorRT-LLM `DFlash` |
#
# * **MTP** (multi-token prediction) is EAGLE's idea inside the checkpoint. DeepSeek-V3, Qwen3-Next, GLM and others were
#   trained with an extra layer that reads the last hidden state and the next token's embedding, and guesses the token after
#   that. It comes with the weights, so you train nothing, but a model without it can't have it.
# * **Suffix decoding** is n-gram lookup with a memory. It keeps a suffix tree of this prompt *and of earlier answers*,
#   looks for the longest match, and drafts as long a continuation as its counts make probable. Agents that repeat
#   themselves gain most. It is a control next to n-gram lookup, because it needs no training either.
# * **A draft model** reads tokens alone, so it has to understand the text anew. Section 1 measured how much that loses
#   against hidden states. The draft model must share the target's tokenizer.
# * **P-EAGLE** and the other parallel drafters guess all tokens in one pass. k passes of a small draft cost an engine k
#   times its fixed work, and one pass costs it once. DFlash and DSpark need a drafter that was trained for exactly this
#   target, as EAGLE-3 does.
#
# An engine's cost can also be measured without any draft's quality. vLLM accepts guesses at a rate that you choose
# (`"rejection_sample_method": "synthetic", "synthetic_acceptance_length": 2.5` in the speculative config). The text is
# worthless then, but the clock tells you from which acceptance length on speculation pays at each load. That is the
# crossover of section 7, free of this draft's quality.
#
# We don't run it here, because vLLM 0.32.0 can't do it on a CPU. There, C++ functions replace the Triton kernels of the
# rejection sampler, and they don't implement synthetic acceptance. So the engine stops with "Synthetic acceptance not
# supported with CPU sampling" (`_rejection_greedy_sample_kernel_impl` in `vllm/utils/cpu_triton_utils.py`). If you try it
# on a GPU, start the engine once for each acceptance length.
#
# ## 9. An 8B model
#
# On a DGX Spark or another NVIDIA GPU section 7 has just served Qwen3-8B with a **published** EAGLE-3 draft,
# `Tengyunw/qwen3_8b_eagle3`: the same code, other names in the profile. Its model card reports 187 tok/s without and 365
# tok/s with it, 1.95 times (SGLang, one H200, batch 1; cited). Your formula tells what to expect elsewhere. Reading
# the weights bounds a step from below, so T(4)/T(1) is near 1 and acceptance decides. Plain decoding reads all weights of
# Qwen3-8B for a token, except the embedding matrix, of which it reads one row.
#
# Bound on decoding Qwen3-8B in bfloat16 on a DGX Spark (derived from the model's sizes and the memory bandwidth):
#
# | quantity | value |
# |---|---|
# | all weights | 8.191 billion |
# | embedding matrix, 151,936 rows of 4,096 | 0.622 billion |
# | bytes read per token, 2 for each other weight | 15.1 GB |
# | memory bandwidth | 273 GB/s |
# | plain decoding, at most | 18 tok/s |
# | with an acceptance length of 2.2 and free drafts, at most | 40 tok/s |
#
# Published **Medusa** heads for Qwen3-8B we found none, and vLLM alone still serves Medusa: that comparison
# stays with the tiny model.

# %% tags=["measures"]
if own_model:
    print(
        f"8B model: not run here. Profile {profile.name!r} serves the tiny model; Qwen3-8B needs an NVIDIA GPU "
        "with docker (16.4 GB of weights in bfloat16), where this notebook runs it in section 7."
    )
elif len(served) > 1:
    display(tables.served_table(served))
else:
    print("8B model: not run here, see section 7 for what is missing.")

# %% [markdown]
# If the 8B model ran, compare its row of EAGLE-3 with the 1.95 times of the model card.
#
# <details><summary>Our reading</summary>
#
# If your factor is smaller, compare the acceptance length first: the card's prompts aren't yours. If the acceptance is
# alike, the cost of a verification is larger on your GPU, or the engine spends more time on drafts.
# </details>
#
# ## Summary
#
# | | the idea | where it was measured |
# |---|---|---|
# | features | the target's hidden states say more than its tokens | section 1, the probe |
# | fusion | low, middle and high, side by side, through one layer | section 1 |
# | draft vocabulary | frequent tokens only, offsets back to the target's | section 2, share covered |
# | training-time test | train on the draft's own output, as it is used | section 4, the slope |
# | dynamic tree | expand and re-rank by joint probability | section 5, one tree drawn |
# | lossless | the answer is plain decoding's, token for token | section 6 |
# | speed-up | acceptance over the cost of a cycle | section 6, both apart |
# | crossover | idle arithmetic is what speculation uses | section 7 |
#
# Runs of an engine are recorded in `records/` (`load_all()` of `utils.benchmark` reads them), our own loop's in
# `records/speculative/`, one JSON file per comparison.

# %% [markdown]
# ## Questions
#
# <details><summary>1. A colleague serves EAGLE-3 with the wrong auxiliary layers. Which error does he see?</summary>
#
# None. The answers are right, since the target verifies, and the acceptance length can look plausible. Neighbouring states
# are alike, so a mistake of one layer costs a part of the gain and looks like a weak draft. Compare the acceptance length
# with a known one, always.
#
# Acceptance length of the shipped draft by the hidden states that it reads (measured on 2026-11-26 with our own loop on
# two x86-64 cores; a chain of 3, 16 held-out prompts):
#
# | hidden states | acceptance length |
# |---|---|
# | 2, 12 and 21, on which it was trained | 2.87 |
# | 3, 13 and 22 | 2.26 |
# | 5, 9 and 17 | 2.45 |
# | 0, 6 and 12 | 1.67 |
# | 22, 23 and 24 | 1.37 |
# </details>
# <details><summary>2. Why does position i read token i + 1, and not token i?</summary>
#
# Feature i was computed *from* token i: it holds it already. It cannot hold the token that was sampled after it.
# </details>
# <details><summary>3. The draft gives its first guess 0.9 and the second 0.9. How probable is the pair, and why does the tree
# keep a sibling of probability 0.1 all the same?</summary>
#
# 0.81. Whether the sibling is kept depends on N: its path has probability 0.1, and competes with nodes deeper in the
# chain, 0.73, 0.66, ..., of which there are as many as the depth allows.
# </details>
# <details><summary>4. Acceptance rose from 2.4 to 2.8 with a tree, and the clock got slower. How?</summary>
#
# The tree verifies more nodes and needs wider draft steps. Where T(9)/T(1) is well above T(4)/T(1), that costs more than
# 0.4 tokens bring.
# </details>
# <details><summary>5. Is speculative output at temperature 1 the same as plain output with the same seed?</summary>
#
# No, and it need not be: the *distribution* is the same (lab 3.3.4 tests that), the draws are not.
# </details>
#
# ## Further experiments
#
# * Train the small draft on twice the data, or with 5 steps of training-time test (`experiments.train_small(..., unrolled=5)`).
#   What moves the line more?
# * Give `experiments.expand` a prompt of `unlike_prompts`. How do probabilities and the accepted path change?
# * `EagleDrafter(..., threshold=0.3)` ends a chain where the draft is unsure. How do acceptance and the
#   time change?
# * If EAGLE-3 paid at every level of section 7: give `experiments.crossover` higher ones
#   (`dataclasses.replace(profile, load=dataclasses.replace(profile.load, levels=(32, 64)))`).
# * Start vLLM with `num_speculative_tokens` 1 and 5. Does your formula name the better one?
# * Lab 3.3.6 serves with TensorRT-LLM, which has EAGLE-3 as well.
