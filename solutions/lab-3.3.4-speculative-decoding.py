# %% [markdown]
# # Lab 3.3.4: speculative decoding with Medusa
#
# A master who reads a page at a glance is given a page to write, one word at a time. So an apprentice writes ahead: four
# words on a slip. The master reads the slip in one glance, keeps the words that the master would have written, and adds one
# word of the master's own after them. The text is the master's to the last letter; only the glances are fewer.
#
# Decoding reads all weights of a model to produce one token. Reading them for five tokens at once costs less than five
# times as much, often hardly more than once: that is the room which **speculative decoding** uses. It always has three
# parts: something that **drafts**, one forward pass that **verifies**, and a rule that decides which guesses to **keep**.
#
# You will be able to
#
# * write the verification, for chains and for trees, and show that the output does not change;
# * draw a draft tree, its mask and its positions, and say why both are needed;
# * write the forward pass of a Medusa head, train heads, and read their accuracy;
# * tell exact speculative sampling from typical acceptance, with a test that can fail;
# * predict a speed-up from acceptance and step cost, find the best tree by measurement, and explain the difference;
# * serve the same heads from vLLM, and compare its counters with your own.
#
# **Time**: about 2 hours. *Run All* is meant to take at most 5 minutes of them on a quiet CPU, more with a large
# model on a GPU.
#
# **It starts** vLLM three times and llama.cpp once, in the background, on free ports of 127.0.0.1, and stops them. (Where
# engines run in containers, one at a time.) **It writes** one JSON record per measured run into `records/`. Numbers are *measured* here,
# *cited* with their source, or *derived* by a formula that you see, and each is marked accordingly.
#
# Sections 1 to 8 run in this notebook, on the tiny model of this course and on heads trained for it
# (`models/heads`), on any machine. Each step of the model runs through a piece of C++ that is compiled here at its first
# use, or through PyTorch if there is no compiler. Section 9 runs vLLM.

# %%
import numpy as np
from IPython.display import display

from utils.checks import compare_prediction
from utils.checks import lab_3_3_4 as checks
from utils.profiles import MODELS, load_profile

profile = load_profile()
sizes = profile.load.speculation
print(f"Profile {profile.name}: {profile.description}")

# %%
import torch

from utils.engines.fleet import start_later
from utils.speculative import lossless, training
from utils.speculative import comparison, result_guards
from utils.labs.lab_3_3_4 import experiments, plots, tables
from utils.speculative.compiled_step import use_compiled_step
from utils.speculative.dataset import (
    TRAINED, UNLIKE, held_out, prompts_of, record_all, self_generated, tokenizer_of, training_prompts,
)
from utils.speculative.drafters import MedusaDrafter, NGramDrafter, PlainDrafter
from utils.speculative.generate import acceptance_length
from utils.speculative.pretrained import calibration, load_medusa
from utils.speculative.target import load_target
from utils.speculative.tree import DraftTree, best_choices
from utils.speculative.verify import SpeculativeSampling, Typical

engines = start_later(profile, experiments.engine_variants(profile))  # for sections 8 and 9, meanwhile
torch.set_num_threads(1)  # the engines start on the other core; and two threads on shared cores wait for each other
device = "cuda" if torch.cuda.is_available() else "cpu"
target = load_target(str(MODELS / "tiny"), device=device)  # in float32, where equal means equal
tokenizer = tokenizer_of(target)
heads, accuracy = load_medusa(target), calibration()
print(use_compiled_step(target))
print(f"Target: {target.shape.layers} layers, {target.shape.vocab} tokens, on {device}; {heads.count} Medusa heads")

# %% [markdown]
# ## 1. Draft and verify
#
# The cheapest apprentice copies. It looks for the last few tokens further up in the text, and proposes the tokens that
# followed them then. That is **n-gram lookup** (*prompt lookup* in some engines). It costs nothing and needs no training, so it is
# the control for everything that follows. Here it is, in full:

# %%
def lookup(text: list[int], longest: int = 4, shortest: int = 2, guesses: int = 4) -> list[int]:
    """What followed the last few tokens when they last occurred; nothing, if they never did."""
    for size in range(longest, shortest - 1, -1):
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == text[-size:]:
                return text[start + size : start + size + guesses]
    return []


print(lookup([7, 1, 2, 3, 4, 5, 9, 1, 2]), lookup([1, 2, 3, 4]))

# %% [markdown]
# Now one forward pass over the text *and* the guesses. At every token the target gives the one that it would write next, its
# **best** token there. So all guesses are checked at once. The nodes of a draft are numbered: node 0, the **root**, is the
# last token of the text; every other node is a guess at what follows its *parent*. For a chain of three guesses the
# parents are `[-1, 0, 1, 2]`; with two guesses for the same place, a *tree*, they could be `[-1, 0, 0, 1]`.

# %% [markdown]
# Write `accept_greedy`, which returns the accepted nodes in order, the root first. `parents[n]` is the parent of node n (-1 for
# the root), `tokens[n]` the token that node n holds, and `best[n]` the target's most probable token after node n.
# Start at the root, go to the child that holds the target's token, and stop if there is none. A node's children hold
# different tokens, and a parent has a smaller number than its children.
#
# <details><summary>Hint 1</summary>
#
# Keep the node accepted last. Among all nodes whose parent it is, look for one whose token equals `best[node]`.
# </details>
# <details><summary>Hint 2</summary>
#
# `[n for n in range(1, len(parents)) if parents[n] == node and tokens[n] == best[node]]` has one element or none.
# </details>

# %% exercise="accept_greedy" title="What the target keeps" minutes=15 difficulty=3 importance=5 points=4
def accept_greedy(parents: list[int], tokens: list[int], best: list[int]) -> list[int]:
    """Accepted nodes, the root first."""
    ### BEGIN SOLUTION
    path = [0]
    while True:
        node = path[-1]
        matching = [n for n in range(1, len(parents)) if parents[n] == node and tokens[n] == best[node]]
        if not matching:
            return path
        path.append(matching[0])
    ### END SOLUTION

# %% check="accept_greedy"
accept_greedy = checks.accept_greedy(accept_greedy)

# %% [markdown]
# The whole of speculative decoding, with your function in the middle. No KV cache yet: slow, and plain to read.

# %%
def draft_and_verify(prompt: list[int], draft, count: int) -> tuple[list[int], int]:
    """Writes `count` tokens; returns them, and the forward passes that they took."""
    text, passes = list(prompt), 0
    while len(text) < len(prompt) + count:
        guesses = draft(text)
        best = experiments.best_next(target, text + guesses)[len(text) - 1 :]  # one forward pass
        parents = list(range(-1, len(guesses)))
        accepted = accept_greedy(parents, [text[-1], *guesses], best)
        text += [guesses[node - 1] for node in accepted[1:]] + [best[accepted[-1]]]
        passes += 1
    return text[len(prompt) : len(prompt) + count], passes


question = held_out(tokenizer, "list", 8, seed=3)[-1]
plain, passes = draft_and_verify(question.ids, lambda text: [], 15)
copied, fewer = draft_and_verify(question.ids, lookup, 15)
print(f"{passes} forward passes without guesses, {fewer} with lookup; same tokens: {plain == copied}")
print(tokenizer.decode(question.ids + plain))

# %% [markdown]
# A wrong guess costs a little time and nothing else: the target's own token takes its place. Two things follow. The output
# is the target's, *no matter which drafter guesses*. And a step always gives at least one token.
#
# ## 2. Trees, masks, positions
#
# One guess for the next token is right or wrong. With two guesses for the same place, either may be right. So a draft
# becomes a **tree**: guesses that exclude each other are side by side below the same parent. All of them go through the
# target in *one* forward pass, and they must not disturb each other. Two things see to that:
#
# * the **mask**: a node attends to the text so far, to its ancestors and to itself; never to a sibling, which belongs to
#   another future;
# * the **positions**: siblings are at the *same* place of the text, no matter how the nodes are numbered.

# %% [markdown]
# Write `tree_mask`: a list of rows, one per node; `mask[i][j]` is `True` if node i sees node j, that is, if j is i itself or
# one of its ancestors. (The text in front of the tree is seen by all; it is not part of this.)
#
# <details><summary>Hint 1</summary>
#
# For each node go up: itself, its parent, its parent's parent, until the root, whose parent is -1.
# </details>
# <details><summary>Hint 2</summary>
#
# A child sees what its parent sees, and itself. Parents come first, so the parent's row is finished already: copy it.
# </details>

# %% exercise="tree_mask" title="Who sees whom" minutes=12 difficulty=3 importance=4 points=4
def tree_mask(parents: list[int]) -> list[list[bool]]:
    """mask[i][j]: whether node i sees node j."""
    ### BEGIN SOLUTION
    mask = []
    for node, parent in enumerate(parents):
        row = [False] * len(parents) if parent < 0 else list(mask[parent])
        row[node] = True
        mask.append(row)
    return mask
    ### END SOLUTION

# %% check="tree_mask"
tree_mask = checks.tree_mask(tree_mask)

# %% [markdown]
# Write `position_ids`, which returns the position of every node if the KV cache holds `length` tokens (positions 0 to
# `length - 1`). The root comes right after them, and every other node one position after its parent.
#
# <details><summary>Hint</summary>
#
# Go through the parents in order; the position of a parent is known when its child's turn comes.
# </details>

# %% exercise="position_ids" title="Where a guess stands" minutes=6 difficulty=2 importance=3 points=2
def position_ids(parents: list[int], length: int) -> list[int]:
    """Position of each node behind `length` cached tokens."""
    ### BEGIN SOLUTION
    positions = [length]
    for parent in parents[1:]:
        positions.append(positions[parent] + 1)
    return positions
    ### END SOLUTION

# %% check="position_ids"
position_ids = checks.position_ids(position_ids)

# %% [markdown]
# Medusa writes a tree as **choices**, paths of ranks: `(0,)` is the best guess of head 0, `(1,)` its second-best, `(0, 2)` the
# third-best guess of head 1 after head 0's best. Here is the tree of eight choices that pays most for the heads of
# this course. (How it was chosen comes in section 8.)

# %%
choices = best_choices(accuracy, 8)
drafter = MedusaDrafter(heads, choices)
parents = list(drafter.tree.parents)
labels = ["root"] + [str(path) for path in drafter.tree.choices]
print("positions behind 10 cached tokens:", position_ids(parents, 10))
plots.plot_tree(parents, tree_mask(parents), [f"{n}: {label}" for n, label in enumerate(labels)])

# %% [markdown]
# *In the picture: left, the tree from its root on, one column per position. Right, the mask, a row per node: the diagonal
# is blue, the first column too (all see the root), and a deeper node's row has a blue square for each of its ancestors.
# In plain attention the whole lower triangle would be blue.*
#
# Does it matter? The same nodes through the target: in one pass under your mask and positions, and each path by itself.
# Then with the triangle of plain attention in place of your mask, and with running numbers in place of your positions.

# %%
def triangle(parents):
    return [[j <= i for j in range(len(parents))] for i in range(len(parents))]


def counted(parents, length):
    return [length + i for i in range(len(parents))]


text = question.ids
guesses = text[1 : len(parents)]  # any tokens will do to compare logits
for name, mask, positions in (
    ("your mask, your positions", tree_mask, position_ids),
    ("plain attention, your positions", triangle, position_ids),
    ("your mask, running numbers", tree_mask, counted),
):
    tree = experiments.own_tree(DraftTree(parents), mask, positions)
    error = experiments.tree_error(target, text, tree, [text[-1], *guesses])
    print(f"{name:>32}: logits differ by at most {error:.1e}")

# %% [markdown]
# With your mask the difference is rounding; with the others the target judges texts that nobody proposed.
#
# ## 3. Medusa's heads
#
# Who drafts better than a copyist? The target itself knows more than its next token. **Medusa** (arXiv 2401.10774) puts K
# small heads on the target's last hidden state h, the vector that the language-model head reads. The LM head guesses the
# next token; Medusa's head 0 guesses the one after that, head 1 the next one, and so on. Head k is one residual block and an LM
# head of its own:
#
#     logits_k = LM_k · (h + SiLU(W_k h + b_k)),      SiLU(x) = x / (1 + exp(-x))
#
# It sees h and nothing else. In particular, head 1 does not know what head 0 guessed: each guesses by itself. That makes
# drafting cheap, and it is Medusa's limit; EAGLE (lab 3.3.5) lifts it.

# %% [markdown]
# Write `head_logits`: the logits of one head for n hidden states. All are NumPy arrays: `hidden` [n, size], `weight` [size,
# size] and `lm_head` [vocabulary, size], both *[out, in]* as in `torch.nn.Linear`, and `bias` [size]. Return [n, vocabulary].
#
# <details><summary>Hint</summary>
#
# For states in rows, W h + b is `hidden @ weight.T + bias`. Then SiLU of that, added to `hidden`, then the LM head likewise.
# </details>

# %% exercise="head_logits" title="One head, forward" minutes=10 difficulty=2 importance=3 points=3
def head_logits(hidden: np.ndarray, weight: np.ndarray, bias: np.ndarray, lm_head: np.ndarray) -> np.ndarray:
    """Logits of one Medusa head, [n, vocabulary]."""
    ### BEGIN SOLUTION
    inner = hidden @ weight.T + bias
    return (hidden + inner / (1 + np.exp(-inner))) @ lm_head.T
    ### END SOLUTION

# %% check="head_logits"
head_logits = checks.head_logits(head_logits)

# %% [markdown]
# This cell compares your function with the course's own module, on the weights that ship with the course. It also shows the
# guesses of the four heads at the end of a prompt, before a word of the answer is written:

# %%
states = experiments.states_of(target, question.ids)[-1:]
module_logits = heads(states).cpu().numpy()[:, 0]
for k in range(heads.count):
    weight, bias = heads.blocks[0, k].T.cpu().numpy(), heads.biases[0, k, 0].cpu().numpy()
    own = head_logits(states.cpu().numpy(), weight, bias, heads.lm_heads[k].T.cpu().numpy())[0]
    top = [tokenizer.decode([token]) for token in np.argsort(-own)[:3]]
    print(f"head {k}: {top}, differs from the module by at most {np.abs(own - module_logits[k]).max():.1e}")
print("what comes:", [tokenizer.decode([token]) for token in plain[: heads.count + 1]], "(the first is the LM head's own)")

# %% [markdown]
# ## 4. The loop, and whether anything changed
#
# From here on with a KV cache, batches, and time measured: `utils.speculative.generate`. Plain decoding is the same loop
# with drafts of no guesses, so later ratios compare methods and not implementations. Your `accept_greedy` decides what is
# kept; your mask and positions are in the trees.
#
# **Predict**: the acceptance length of the tree of 16 choices: how many tokens does a step give on average, the target's
# own included?

# %% prediction="tree_16_length"
### BEGIN SOLUTION
#: tree_16_length = None  # 1 is plain decoding; a tree of depth 4 gives at most 5
tree_16_length = 2.5
### END SOLUTION

# %% tags=["measures"]
def medusa(nodes=None):
    """The shipped heads over a chain, or over the best tree of so many nodes, with your mask and positions."""
    drafter = MedusaDrafter(heads, nodes and best_choices(accuracy, nodes))
    experiments.own_tree(drafter.tree, tree_mask, position_ids)
    return drafter


limit = sizes.answer_tokens // 3  # longest answer: many prompts tell more than long answers
asked = prompts_of(tokenizer, -(-sizes.same // len(TRAINED)))
methods = {"n-gram": NGramDrafter(4), "Medusa, chain of 4": medusa(), "Medusa, 8": medusa(8), "Medusa, 16": medusa(16)}
answers = experiments.answer_all(target, methods, asked, limit, experiments.OwnRule(accept_greedy))
length = acceptance_length(answers["Medusa, 16"])
compare_prediction(tree_16_length, length, what="acceptance length, tree of 16", unit="tokens a step")
display(tables.same_table(answers))
result_guards.warn_not_lossless({name: comparison.same_share(answers["plain"], own) for name, own in answers.items()})

# %% [markdown]
# **Read the table.** Is every answer of every method plain decoding's? Which method needs the fewest verifications, and
# how does that number belong to the tokens and to the acceptance length?
#
# <details><summary>Our reading</summary>
#
# Every row has to show 100 %, because in float32 we expect the same tokens. If a row shows less, the verification, the
# mask or the positions are wrong, and *first difference* tells you where to look. The largest tree usually needs the
# fewest verifications, because it holds more alternatives for each place. The acceptance length is the tokens that
# verifications gave, divided by the number of verifications. The first token of each answer comes from the prefill, so
# it isn't among them.
# </details>
#
# **In words.** In float32 "the same" is tested token for token, on held-out prompts that neither the model nor the heads were
# trained on, in batches of up to 16 (which get smaller as answers end).
#
# **Batch invariance.** Is "the same tokens" a proof, or luck? Adding floating-point numbers in another order rounds
# differently. A library chooses its order by the number of rows, because another order is faster for another size. So the
# logits of a token may depend on how many tokens are computed with it, and if two tokens are nearly as probable, another
# one wins. In bfloat16 that happens often, and it isn't a fault of speculation, because another batch size does the same.
# The compiled step is **batch-invariant**: it sums every number in one order, for any number of rows. Then a chain gives
# bit for bit the logits of one token at a time, and "lossless" is exact. Here are both forms of the step:

# %%
compiled, identical = target.compiled, {}
for name, step in {"compiled step": compiled, "PyTorch loop": None}.items():
    target.compiled = step
    if step or name == "PyTorch loop":
        identical[name] = experiments.bit_identical(target, question.ids[:40], range(2, 10))
target.compiled = compiled
tables.identical_table(identical)

# %% [markdown]
# **Read the table.** A column is the length of a chain. For which lengths has each step exactly the logits of one token at
# a time? What would follow for a test of losslessness that compares logits and not tokens?
#
# <details><summary>Our reading</summary>
#
# If the compiled step shows *yes* everywhere, a test may ask for equal bits. If the PyTorch loop shows NO, its tokens can
# be equal all the same, because a difference in the seventh digit seldom changes which token is best. But "seldom" isn't
# "never", so with that loop a test can only compare tokens, and may fail by chance on a very long text.
# </details>
#
# ## 5. Sampling: exact, and not
#
# At temperature 0 there is one right token. With sampling there is a *distribution* p, and that distribution must not change. Say a
# drafter draws its guess x from its own distribution q. **Speculative sampling** (Leviathan 2023) accepts x with probability
# min(1, p(x)/q(x)). If it is rejected, the token is drawn from the part of p that q has left uncovered, the **residual**:
# max(0, p - q), scaled to sum 1. Both together give exactly p.

# %% [markdown]
# Write `residual`. `p` and `q` are NumPy arrays of probabilities, sum 1. Where nothing is left (p = q), return `p`.
#
# <details><summary>Hint</summary>
#
# `np.maximum(p - q, 0)`, divided by its sum if that is above 0.
# </details>

# %% exercise="residual" title="What is left after a rejection" minutes=8 difficulty=2 importance=5 points=3
def residual(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """max(0, p - q), scaled to sum 1."""
    ### BEGIN SOLUTION
    left = np.maximum(p - q, 0)
    total = left.sum()
    return left / total if total > 0 else p
    ### END SOLUTION

# %% check="residual"
residual = checks.residual(residual)

# %% [markdown]
# Medusa's paper offers another rule, **typical acceptance**: at high temperatures, why be exact? A guess x is accepted if it
# is *likely enough*: p(x) > min(ε, α · exp(-H)), where H = -Σ p log p is the entropy of p (natural logarithm). If the target is
# sure, H is near 0 and ε decides; if it is unsure, exp(-H) is small and even an improbable token passes. (The paper
# writes δ for α, takes √ε for it, and tries several ε; 0.09 and 0.3 are the defaults of its code's `medusa_generate`.)

# %% [markdown]
# Write `typical_accepts`: whether `token` is accepted where the target's distribution is `p`, a NumPy array. A token of
# probability 0 adds nothing to H.
#
# <details><summary>Hint</summary>
#
# Take `positive = p[p > 0]` for the entropy, so that no logarithm of 0 is asked for. Return a `bool`.
# </details>

# %% exercise="typical_accepts" title="Likely enough" minutes=8 difficulty=2 importance=2 points=2
def typical_accepts(p: np.ndarray, token: int, epsilon: float, alpha: float) -> bool:
    """Whether typical acceptance takes the token."""
    ### BEGIN SOLUTION
    positive = p[p > 0]
    entropy = -(positive * np.log(positive)).sum()
    return bool(p[token] > min(epsilon, alpha * np.exp(-entropy)))
    ### END SOLUTION

# %% check="typical_accepts"
typical_accepts = checks.typical_accepts(typical_accepts)

# %% [markdown]
# How do you test a *distribution*? Draw often, count, and ask how probable counts so far off would be if they came from p:
# a **chi-square test**. A p-value below 0.001 says: this is another distribution. And a test is worth something only if
# what is wrong fails it, so a wrong rule is among those below: it accepts as it should, but after a rejection it draws
# from p again, and not from the residual. It looks harmless.
#
# Logits are the tiny model's own, at a place in a text where it is least sure, cut down to its six most probable tokens
# so that each is drawn often. q comes from Medusa's head 0, which guesses another position, so p and q differ.
#
# **Predict**: how many draws does the test need to find that wrong rule out (100, 200, 400, ... are tried)?

# %% prediction="wrong_draws"
### BEGIN SOLUTION
#: wrong_draws = None  # draws until the p-value is below 0.001
wrong_draws = 1000
### END SOLUTION

# %% tags=["measures"]
unsure = held_out(tokenizer, "prose", 1)[0].ids
language = lossless.small_language(target, unsure, 6)
p = torch.softmax(language.first, -1).double().numpy()
q = torch.softmax(heads(experiments.states_of(target, unsure)[-1:])[0, 0, language.tokens].cpu(), -1).double().numpy()
p, q = p / p.sum(), q / q.sum()
counts = {
    "plain sampling": lossless.draw_sampled(p, p, residual, 200_000),
    "speculative sampling, your residual": lossless.draw_sampled(p, q, residual, 200_000),
    "wrong rule: from p again": lossless.draw_sampled(p, q, lambda p, q: p, 200_000),
    "typical acceptance, yours": lossless.draw_accepted(p, q, lambda p, x: typical_accepts(p, x, 0.09, 0.3), 200_000),
}
tests = {name: lossless.chi_square(found, p) for name, found in counts.items()}
pairs = {"pairs of tokens, tree, speculative sampling": SpeculativeSampling(), "pairs, tree, typical": Typical()}
for name, rule in pairs.items():
    tests[name] = lossless.chi_square(lossless.count_pairs(rule, language, 40 * sizes.same), language.pairs)
needed = lossless.draws_to_refuse(p, q, lambda p, q: p)
compare_prediction(wrong_draws, needed, what="draws that find the wrong rule out", unit="draws")
lossless_rules = ("plain sampling", "speculative sampling, your residual", "pairs of tokens, tree, speculative sampling")
tables.warn_against_theory(tests, lossless_rules)
display(tables.chi_table(tests, lossless_rules), tables.draws_table(p, q, counts))

# %% [markdown]
# **Read the tables.** In the first, a rule keeps the target's distribution if its p-value is at least 0.001. Which rules
# keep it, and does theory agree? In the second, *distance* is total variation: half the sum of the absolute differences,
# 0 for equal distributions, 1 if nothing is in common. Is typical acceptance nearer to p or to q, and why? Why does the
# test need more than a handful of draws to find the wrong rule?
#
# <details><summary>Our reading</summary>
#
# * The three exact rules keep the distribution, and the wrong rule and both typical rules change it. A right rule fails
#   by chance in one test of a thousand. So if an exact rule shows NO, run the cell again, and look for a fault only if it
#   fails again.
# * If typical acceptance is nearer to q, the target is unsure at this place: its entropy is high, so the threshold is
#   low, nearly every guess passes, and the drafter decides. If it is nearer to p, the target is surer here, so fewer of
#   the drafter's guesses pass and the target's own best token takes their place.
# * The wrong rule draws from p after a rejection, so it gives too much of the tokens that q already covers. If p and q
#   are close, rejections are rare and the difference is small. A small difference takes many draws to show, and that is
#   why a passed test of a few draws proves little.
# </details>
#
# **In words.** The two rows *pairs* go through the course's own verification, `utils.speculative.verify`: a tree with two
# guesses for the first token and one after each. They are tried in turn, each against the part of p that the one before has left.
# Their result is tested two tokens deep. *Typical acceptance* lets the drafter decide among all tokens that are likely
# enough, and never writes another one. Where the target is unsure, nearly every guess is likely enough, so what comes out
# is the *drafter's* distribution; where it is sure, rare tokens vanish. The text may read as well. It is not the target's
# distribution, so typical acceptance has no place under the name "lossless", nor in a comparison of speeds with a rule
# that is exact.
#
# ## 6. Training heads
#
# **Medusa-1** leaves the target as it is. The data is text that the *target* writes: heads are to guess what it will say, not
# what is right. The hidden states are kept while it writes, so training is nothing but K small classifiers on stored
# vectors: cross-entropy of head k against the token k + 2 positions on, with weight 0.8^k. (Medusa-2 trains the target
# along with its heads. Then the target is another one, and whatever was equal before no longer is.)
#
# Here are heads of your own, on a small sample, to see loss and accuracy move. **Predict**: how often will *your* head 0
# be right on held-out prompts, in percent?

# %% prediction="own_head_0"
### BEGIN SOLUTION
#: own_head_0 = None  # percent
own_head_0 = 35
### END SOLUTION

# %% tags=["measures"]
learn = training_prompts(tokenizer, sizes.training_prompts, seed=1)
written = self_generated(
    target, [p.ids for p in learn], [p.answer for p in learn], (target.shape.layers,), max_new_tokens=sizes.answer_tokens
)
config = training.TrainingConfig(steps=sizes.training_steps, rate=1e-2, rows=256)
own_heads, log = training.train_medusa(target, written, config)
tried = record_all(
    target, prompts_of(tokenizer, sizes.prompts, seed=5), (target.shape.layers,), max_new_tokens=limit
)
accuracies = {
    name: [ranks[0] for ranks in training.medusa_accuracy(trained, tried)]
    for name, trained in {"yours": own_heads, "shipped": heads}.items()
}
compare_prediction(own_head_0, 100 * accuracies["yours"][0], what="your head 0, best guess right", unit="%")
display(tables.heads_table(accuracies, {"yours": len(written), "shipped": experiments.SHIPPED_PROMPTS}))
display(plots.plot_training({"yours": log}), plots.plot_accuracy(accuracies))

# %% [markdown]
# *In the pictures: the loss falls, steeply at first. Next to it is the accuracy of the four heads on the training data, one line
# each. Below, accuracy on held-out prompts: your heads' line lies below the shipped heads' line, and both fall from
# head 0 to head 3.*
#
# **Read the table.** How much of the shipped heads' accuracy do yours reach, and with how much of their data? Which head
# has most left to gain?
#
# <details><summary>Our reading</summary>
#
# Both sets have the same size, the same target and the same code. If your heads are behind, they lack only data and
# steps. Compare the shares: yours reach more of the accuracy than they have of the data, because frequent continuations
# are learned first and each further answer teaches less. If your head 0 isn't behind, more data wouldn't have helped on
# these prompts, or the sample is too small to tell. The head with the largest gap has most to gain, but a few prompts
# leave each share uncertain by several points, so trust only large differences.
# </details>
#
# **In words.** A head starts as a copy of the target's LM head and a block that adds nothing, so it first has to unlearn
# the *next* token. The further ahead, the harder: the hidden state knows what comes next and only hints at what comes then.
# `python -m tools.tinymodel.heads data train` makes the shipped heads; it is the same code with more of everything.
#
# ## 7. Which text is easy?
#
# An acceptance length without its text says little. These are the chains of section 4, taken apart by kind of text, and a
# kind that the heads were *not* trained on: prose. The table has two controls. **N-gram lookup** on the same
# prompts is the drafter that costs nothing. **Repeated 8-grams** matter because a model that goes round in circles accepts
# everything. So prompts with a loop in the plain answer are left out, and the remaining repetition is printed.
#
# **Predict**: on prose, how many tokens does a step of Medusa's chain give?

# %% prediction="prose_length"
### BEGIN SOLUTION
#: prose_length = None  # tokens a step
prose_length = 1.4
### END SOLUTION

# %% tags=["measures"]
prose = held_out(tokenizer, UNLIKE, len(asked) // len(TRAINED), seed=4)
rule = experiments.OwnRule(accept_greedy)
on_prose = experiments.answer_all(target, {name: methods[name] for name in list(methods)[:2]}, prose, limit, rule)
kinds = experiments.by_kind([*asked, *prose], {name: answers[name] + on_prose[name] for name in on_prose})
compare_prediction(prose_length, kinds["prose"].medusa, what="acceptance length on prose", unit="tokens a step")
display(tables.kinds_table(kinds))
plots.plot_accuracy({name: kind.by_head for name, kind in kinds.items()}, what="guess accepted (% of steps)")

# %% [markdown]
# *In the picture: a line per kind of text from head 0 to head 3, all falling: a guess is accepted only if all before it
# were. Prose lies lowest, or near it.*
#
# **Read the table.** In which kind of text does Medusa's chain accept most, and in which least? Is n-gram lookup as good
# anywhere? What do the heads lose on prose, and how many prompts were left out because of a loop?
#
# <details><summary>Our reading</summary>
#
# If a kind repeats a form (code, tables, lists), each next token is nearly certain, so heads that saw this kind accept
# most there. If n-gram lookup is as good or better in a kind, its answers copy from their prompts or from themselves, and
# trained heads add nothing that the copyist doesn't have for free. If prose gives the least, or nearly so, the reason is
# that the heads were not trained on it: they never learned which words follow its hidden states. Compare its row with the
# mean of the other rows. Prompts with loops are left out because any drafter guesses a loop, so they would
# flatter every method.
# </details>
#
# **In words.** "Accepted" is less than "right": head 2 may be right and still be lost, because head 0 was wrong. A tree
# repairs that by giving head 0 a second guess.
#
# ## 8. The gain
#
# A step of speculative decoding gives E tokens, and takes one forward pass over n nodes, T(n), and one draft. Plain
# decoding takes T(1) for a token. So
#
#     speed-up = E / ((T(n) + draft) / T(1))
#
# E comes from the text and the heads; T(n)/T(1) from the machine *and from the program*. A machine that waits for weights
# at batch 1, as GPUs do, has arithmetic to spare, so T(n) stays near T(1) until it is used up (the roofline of lab 3.3.1
# tells you where). A CPU core has some to spare too, but the program has to use it.
#
# What does a step consist of? In the PyTorch loop one step calls about 2,500 small operators, and 97 of them are matrix
# products. The rest arranges, copies and dispatches. That part doesn't grow with n, so speculation saves mostly dispatch.
# And each small product packs its weights anew, which makes even the second node expensive. The compiled step
# (`utils/speculative/compiled_step/step.cpp`) does the same arithmetic in one call. It reads every weight once, and while a
# weight is in a register it is multiplied with all n rows. So its T(1) is the time of reading the weights, and another
# node costs only arithmetic, until the arithmetic takes longer than the reading.

# %% [markdown]
# Write `expected_tokens`: tokens that a step gives on average, from the choices of a tree and `accuracy[head][rank]`, how often
# the guess of that rank by that head is right. Take the heads as independent: a node is accepted if *all* guesses on its
# path are right, which has the product of their accuracies as its probability. Each accepted node adds one token; the
# target's own token always comes.
#
# <details><summary>Hint</summary>
#
# 1 + the sum over all choices of the product of `accuracy[head][rank]` for `head, rank in enumerate(path)`.
# </details>

# %% exercise="expected_tokens" title="Tokens a step" minutes=10 difficulty=3 importance=4 points=3
def expected_tokens(choices: list[tuple[int, ...]], accuracy: list[list[float]]) -> float:
    """Expected tokens of a step, the target's own included."""
    ### BEGIN SOLUTION
    total = 1.0
    for path in choices:
        probability = 1.0
        for head, rank in enumerate(path):
            probability *= accuracy[head][rank]
        total += probability
    return total
    ### END SOLUTION

# %% check="expected_tokens"
expected_tokens = checks.expected_tokens(expected_tokens)

# %% [markdown]
# Write `expected_speedup`: how many times as fast as plain decoding, with `tokens` a step, `step_s` seconds for the forward
# pass over the tree, `plain_s` for one over a single token, and `draft_s` for the draft.
#
# <details><summary>Hint</summary>
#
# It is the formula above. A result below 1 means that speculation is slower.
# </details>

# %% exercise="expected_speedup" title="Speed-up" minutes=5 difficulty=1 importance=5 points=2
def expected_speedup(tokens: float, step_s: float, plain_s: float, draft_s: float) -> float:
    """Expected speed-up over plain decoding."""
    ### BEGIN SOLUTION
    return tokens / ((step_s + draft_s) / plain_s)
    ### END SOLUTION

# %% check="expected_speedup"
expected_speedup = checks.expected_speedup(expected_speedup)

# %% [markdown]
# Before anything is timed, the engines of section 9 have to have started: an idle engine takes no core, a starting one
# does. From here on the model runs on one thread (two threads on shared cores wait for each other, and the ratio of two
# times would be about that): through the compiled step in float32 if it runs, else in the profile's own data type.
#
# Which tree? `best_choices` adds, one by one, the choice with the highest probability of being accepted: the greedy
# construction of Medusa's paper (section 2.3.3), from accuracies measured on prompts that are not used here. (The best four
# choices may well be the chain: where each head's best guess is right so much more often than its second.) First, the cost
# of a forward pass over n nodes on this machine:

# %% tags=["measures"]
fleet = engines.result()
dtype = "float32" if target.compiled else profile.dtype
timed = target if dtype == "float32" else load_target(target.path, device=device, dtype=getattr(torch, dtype))
timed_heads = load_medusa(timed)
trees = {"chain of 4": None, "tree of 4": 4, "tree of 8": 8, "tree of 16": 16}
drafters = {name: MedusaDrafter(timed_heads, nodes and best_choices(accuracy, nodes)) for name, nodes in trees.items()}
costs = comparison.step_costs(timed, sorted({1, *(drafter.nodes for drafter in drafters.values())}))
print(f"T(1) is {1000 * costs[1]:.2f} ms in {dtype}, T(17)/T(1) is {costs[17] / costs[1]:.2f} (measured)")
display(plots.plot_costs(costs))
if target.compiled:
    target.compiled = None
    readable = comparison.step_costs(target, sorted(costs), repeats=10)
    target.compiled = compiled
    print(f"In the PyTorch loop: T(1) is {1000 * readable[1]:.2f} ms,", "T(n)/T(1) is",
          {n: round(cost / readable[1], 2) for n, cost in readable.items()}, "(measured)")

# %%
predicted = {}
for name, drafter in drafters.items():
    tokens, draft_s = expected_tokens(list(drafter.tree.choices), accuracy), experiments.draft_seconds(timed, drafter)
    predicted[name] = {
        "nodes": drafter.nodes, "tokens": tokens, "step_s": costs[drafter.nodes], "plain_s": costs[1], "draft_s": draft_s,
        "speedup": expected_speedup(tokens, costs[drafter.nodes], costs[1], draft_s),
    }
tables.prediction_table(predicted)

# %% [markdown]
# *In the picture: T(n)/T(1) against n. The dotted line is n times the price, where speculation can gain nothing; the
# green line is "free". The blue points are this machine.*
#
# **Predict**: which number of choices is fastest when it is measured (4, 8 or 16), and how fast?

# %% prediction="best_size"
### BEGIN SOLUTION
#: best_size = None  # 4, 8 or 16
best_size = 4
### END SOLUTION

# %% prediction="best_speedup"
### BEGIN SOLUTION
#: best_speedup = None  # times plain decoding
best_speedup = max(row["speedup"] for row in predicted.values())
### END SOLUTION

# %% tags=["measures"]
fair = experiments.fair_prompts(asked, answers["plain"], sizes.prompts // 3 or 1)
results = comparison.compare(
    timed, {"n-gram": NGramDrafter(4), **drafters}, [p.ids for p in fair], label="lab 3.3.4: trees", profile=profile,
    max_new_tokens=limit, repeats=sizes.repeats,
)
best = experiments.best_of(results, list(drafters))
compare_prediction(best_size, drafters[best].tree.size - 1, what=f"choices of the fastest, {best}")
compare_prediction(best_speedup, results[best].speedup, what="its speed-up", unit="times")
display(comparison.result_table(results), tables.measured_table(predicted, results))
display(plots.plot_speedups(*tables.speedup_series(predicted, results)))

# %% [markdown]
# *In the picture: a point per tree, from small to large. The grey triangles, tokens a step, rise with the size. The speed-up,
# predicted (red) and measured (blue, with the range over all repeats), rises less or falls: each further node is less likely
# to be accepted than the one before, and costs as much.*
#
# **Read the tables.** Which tree is fastest? Which accepts most? Where they differ, use T(n)/T(1) to explain. Did the
# prediction name the fastest tree?
#
# <details><summary>Our reading</summary>
#
# First check whether the ranges `least ... most` of the two fastest trees overlap. If they do, these runs can't tell which
# of the two is faster.
#
# If the fastest tree isn't the one that accepts most, the larger tree pays more for its nodes than its extra tokens
# bring: going from one tree to the other, T(n)/T(1) grows by a larger factor than the acceptance length. If they are the
# same tree, nodes are cheap on your machine, and a still larger one might be faster. If two rows have the same nodes and
# the same E predicted, they are the same tree, so the difference between their speed-ups is the noise of this machine.
# A prediction that names another tree within that noise isn't wrong.
# </details>
#
# **In words.** E is predicted as if the heads were independent and this text were the text of the calibration; neither is
# quite so. The time is predicted as a forward pass and a draft; a step also copies keys and values, builds a mask and
# walks the tree in Python, so measured speed-ups tend to be lower. `least ... most` shows how far repeats differ.
#
# The course set itself targets for Medusa: at least 2.0 times plain decoding and 2.5 tokens a step, and ahead of n-gram
# lookup on the same prompts.

# %%
ratio = costs[drafters[best].nodes] / costs[1]
print(f"Verifying {drafters[best].nodes} nodes in {dtype}: {ratio:.2f} T(1); drafting: "
      f"{results[best].draft_share:.0%} of the decoding time; repeated 8-grams: {results[best].repeated:.1%} (measured)")
print(f"With free drafts the speed-up would be {results[best].acceptance_length / ratio:.2f}, and a speed-up of "
      f"{tables.SPEEDUP_TARGET} needs {tables.SPEEDUP_TARGET * ratio:.2f} tokens a step (derived)")
tables.targets_table(results[best], results["n-gram"])

# %% [markdown]
# **Read the table.** Which targets did your machine reach? If it missed the speed-up, use the two lines above to say
# whether verification, drafting or acceptance is to blame.
#
# <details><summary>Our reading</summary>
#
# First look at the speed-up with free drafts, which is the acceptance length divided by T(n)/T(1).
#
# * If it is 2.0 or more but the measured one isn't, the rest of the step took the gain: drafting, and in Python the
#   masks, the moved keys and values and the walk over the tree.
# * If it is below 2.0 and T(n)/T(1) is above 1.3, nodes are too expensive here. A processor that reads weights for many
#   tokens as quickly as for one has a smaller ratio, for example a GPU, or a CPU with bfloat16 instructions.
# * If it is below 2.0 although T(n)/T(1) is at most 1.3, the heads have to guess better, or the text has to be more
#   predictable.
#
# If the tree isn't ahead of n-gram lookup, these answers copy a lot from their prompts. A high share of repeated 8-grams
# is a warning too, because text that repeats itself is easy for every drafter.
# </details>
#
# A speed-up is a ratio, and the cheapest way to a large ratio is a slow baseline. So: is our plain loop a good one?

# A judge from outside has to answer that, because a slow peer shares the fault. So the same prompts go to transformers'
# `generate`, to plain vLLM, and to llama.cpp with one thread and the same weights in bfloat16. (Engines are asked only
# where they serve the model of this notebook.)

# %% tags=["measures"]
baselines = experiments.baselines(
    timed, [p.ids for p in fair[::2]], limit, profile, fleet, tokenizer, repeats=min(3, sizes.repeats)
)
tables.warn_slow_baseline(baselines)
tables.baseline_table(baselines)

# %% [markdown]
# **Read the table.** *ours / this* is the speed of our plain loop divided by that of the program in the row, on the same
# prompts in turn. We ask for at least 0.8 of the fastest program. If it were 0.5, how would you read the speed-ups above?
#
# <details><summary>Our reading</summary>
#
# * If every ratio is 0.8 or more, no speed-up above comes from a slow baseline. If one is lower, a warning tells you which
#   program is faster, and you have to multiply every speed-up by that ratio: with 0.5, half of each speed-up is owed to
#   our loop and not to the method.
# * If our loop is ahead of vLLM, don't conclude that it is the better engine. vLLM's step has costs for each step that a
#   tiny model can't hide (scheduler, sampling, HTTP), and it may use more threads. With a large model they vanish.
# * If our loop is ahead of llama.cpp, part of it is HTTP too, because llama.cpp sends each token as a message. Both read the
#   same bytes per token.
# * The row *the same in PyTorch* is the loop without the compiled step. Its distance to ours is dispatch, which a
#   speculative method would have saved as well. Speed-ups over that row would look larger and mean less.
# * If some answers differ, the programs add numbers in another order or in another data type, and two tokens that are
#   nearly as probable may change places.
# </details>
#
# **Your answer**, in three or four sentences of plain text in the cell below (your instructor reads it): which tree was fastest
# on your machine, and which accepted most? Explain the difference with your numbers for E and T(n)/T(1). What would you
# choose on a machine where T(17)/T(1) is 1.05, and what changes when 32 requests are served at once?

# %% [markdown] answer="which_tree" points=2
# ### BEGIN SOLUTION
# One point: names both trees from the learner's own run, with E and T(n)/T(1), and says that a larger tree accepts more
# but pays for every node, so the best size is where E divided by cost is largest.
#
# One point: with T(17)/T(1) = 1.05 nodes are almost free, so the largest tree (16, or more). With 32 requests at once
# each node is multiplied by 32: the forward pass is bound by arithmetic, T(n)/T(1) rises towards n, and speculation pays
# less or costs (small chains, or none).
# ### END SOLUTION

# %% [markdown]
# ## 9. The same heads in vLLM
#
# vLLM loads these heads as they are in `models/heads/medusa` (a `config.json` and one safetensors file; the layout is in
# `utils/speculative/checkpoints.py`):
#
#     vllm serve MODEL --speculative-config '{"method": "medusa", "num_speculative_tokens": 4, "model": "models/heads/medusa"}'
#
# vLLM 0.32 drafts chains only: no trees, no typical acceptance. One trap is worth knowing: without `"medusa_fc_bias": true`
# in the configuration it drops the biases and says nothing; drafts get worse, and no error tells.
#
# It counts what it does: `vllm:spec_decode_num_drafts_total`, `..._num_draft_tokens_total` and `..._num_accepted_tokens_total`;
# 1 + accepted/drafts is the acceptance length. Your verification of the same chain on the same prompts has to give the same.
#
# **Predict**: how many times as fast as plain vLLM is vLLM with Medusa here?

# %% prediction="served_medusa"
### BEGIN SOLUTION
#: served_medusa = None  # times plain vLLM
served_medusa = 2
### END SOLUTION

# %% tags=["measures"]
ready = [name for name in fleet.variants if fleet.has(name)]
if "medusa_heads" not in profile.models:
    print("Medusa in vLLM:", experiments.NO_MEDUSA)
sent = experiments.prompts_for_engine(profile, fair[::2])
served = experiments.serve(fleet, profile, [p.ids for p in sent], limit, turns=sizes.repeats)
if "Medusa" in served:
    own = acceptance_length(comparison.in_batches(target, MedusaDrafter(heads), sent, limit))
    counted = served["Medusa"][-1].acceptance_length
    compare_prediction(served_medusa, tables.served_speedup(served, "Medusa"), what="vLLM with Medusa", unit="times plain vLLM")
    print(f"Acceptance length, chain of 4: {counted:.3f} by vLLM's counters, {own:.3f} by our own verification (measured)")
    result_guards.warn_disagreement(counted, own)
    plain_answers = comparison.in_batches(target, PlainDrafter(), sent, limit)
    same = experiments.same_texts(plain_answers, served["plain"][-1].texts, tokenizer)
    print(f"Our plain answers and plain vLLM's: {same:.0%} of {len(sent)} are the same text (measured)")
if served:
    display(tables.served_table(served))
fleet.stop()

# %% [markdown]
# **Read the table.** Is an engine with speculation faster than plain vLLM in every turn? Do its answers equal plain
# vLLM's? If Medusa ran, do both acceptance lengths agree within 10 %?
#
# <details><summary>Our reading</summary>
#
# * If `least` is above 1, speculation was faster in every turn. If `least ... most` includes 1, you can't tell from these
#   runs.
# * The acceptance lengths should agree within 10 %, because target, heads and text are the same. A small difference
#   remains, because vLLM also counts guesses that are accepted after the end of an answer, and ours doesn't. If they
#   differ by more, suspect the configuration first, for example the biases described above.
# * If some answers differ, the reason is rounding. A program that computes several tokens together, or adds numbers in
#   another order, rounds differently, and two tokens that are nearly as probable may change places. From there on the
#   whole answer differs. In bfloat16 this happens more often than in float32.
# </details>
#
# **In words.** The *counters* agree because acceptance does not depend on who computes: it is a property of target, heads and
# text. The *speed-up* is another engine's T(n)/T(1): vLLM's own step has costs that do not grow with the tokens (scheduler,
# HTTP, sampling), and speculation spreads them over more tokens. If an engine is missing above, the line gives the reason.
#
# ## Summary
#
# | | the idea | where it was measured |
# |---|---|---|
# | draft and verify | many guesses, one forward pass, the target's own output | section 1, your loop; section 4, token for token |
# | tree, mask, positions | futures side by side that do not see each other | section 2, logits against separate passes |
# | Medusa heads | guesses from one hidden state, independent of each other | section 3, section 6 |
# | residual | what a rejection draws from, so that p remains p | section 5, chi-square |
# | typical acceptance | likely enough; not lossless | section 5, the same test |
# | kind of text | acceptance belongs to a text, with a control beside it | section 7 |
# | E / (T(n)/T(1)) | the optimum is where a further node stops paying | section 8 |
# | counters | 1 + accepted/drafts | section 9, vLLM beside your own |
#
# Runs of an engine are recorded in `records/` (`load_all()` of `utils.benchmark` reads them), our own loop's in
# `records/speculative/`, one JSON file per comparison.

# %% [markdown]
# ## Questions
#
# <details><summary>1. The drafter is replaced by one that guesses at random. What happens to the output, and what to the speed?</summary>
#
# Nothing happens to the output: the target decides about every token. The speed falls below plain decoding's: each step gives
# one token, and takes T(n) and a draft.
# </details>
# <details><summary>2. Why can a tree hold `(1, 0)`, and why is it seldom worth its node?</summary>
#
# Its guess follows head 0's second-best. It counts only if that was right, which is rare. Head 1 guesses the same
# there as after head 0's best, because it does not know head 0's guess.
# </details>
# <details><summary>3. A model loops: it writes the same line for ever. What acceptance length do you expect, and what is it worth?</summary>
#
# The highest possible, from every drafter, n-gram lookup too. It is worth nothing: nobody wants that text. That is why
# each figure comes with its repeated 8-grams and the control.
# </details>
# <details><summary>4. Somebody reports 3.6 times with typical acceptance at temperature 0.7. What do you ask?</summary>
#
# Against what: the same temperature, sampled exactly? On which text? With which loss of quality, measured how? It is not
# the same output in less time, but another output.
# </details>
# <details><summary>5. Why does speculation pay less at a large batch?</summary>
#
# It uses arithmetic that plain decoding leaves idle. With many requests in a batch the arithmetic is in use already, and
# T(n)/T(1) rises towards n. Lab 3.3.5 measures where it stops paying.
# </details>
#
# ## Further experiments
#
# * Train longer (`training.TrainingConfig(steps=600, ...)`) on more prompts, and watch which head gains most.
# * `best_choices(accuracy, 32)`: predict E and the speed-up before you measure.
# * Calibrate a tree on prose alone (`training.medusa_accuracy` on recorded prose), and try it on prose and on code.
# * Serve with `num_speculative_tokens` of 2 in place of 4. How do the counters change, and how does the clock?
# * Lab 3.3.5 gives the drafter the token that was just guessed, which Medusa's heads lack.
