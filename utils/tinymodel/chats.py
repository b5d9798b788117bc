"""Realistic chats for benchmarks, of varied lengths, none of which the model was trained on."""

import random

from utils.tinymodel import corpus, tasks

Messages = list[tasks.Message]
# kinds whose answers run to about 100 tokens and more without repeating themselves
LONG_KINDS = ("class", "argparse", "sql_insert", "json_list", "markdown", "csv")


def _question(rng: random.Random) -> Messages:
    topic = rng.choice(corpus.topics())
    return [{"role": "user", "content": rng.choice(topic.heldout)}]


def prompts(
    n: int, *, seed: int = 0, turns: tuple[int, int] = (1, 4), questions: float = 0.3
) -> list[Messages]:
    """Chats that end with a user's message: questions about engines and held-out tasks, mixed.

    Args:
        n: how many.
        seed: the same seed gives the same chats.
        turns: least and most user messages of a chat; earlier ones come with their answers, so lengths
            run from about 30 to about 1,000 tokens of the tiny model.
        questions: share of chats that end with a question about inference engines.
    """
    rng = random.Random(f"prompts {seed}")
    pool = iter(tasks.heldout(n * turns[1], seed=seed))
    chats = []
    for _ in range(n):
        earlier: Messages = []
        for _ in range(rng.randint(*turns) - 1):
            task = next(pool)
            text = [m for m in task.messages if m["role"] != "system"]
            earlier += [*text, {"role": "assistant", "content": task.answer}]
        last = _question(rng) if rng.random() < questions else next(pool).messages
        system = [m for m in last if m["role"] == "system"]
        chats.append([*system, *earlier, *[m for m in last if m["role"] != "system"]])
    return chats


def shared_prefix(n: int, *, seed: int = 0, turns: int = 6) -> list[Messages]:
    """`n` chats with the same system prompt and first `turns` turns, and different last messages."""
    rng = random.Random(f"shared {seed}")
    prefix: Messages = [{"role": "system", "content": tasks.SYSTEM_PROMPTS[seed % 4]}]
    for task in tasks.heldout(turns, seed=seed):
        text = [m for m in task.messages if m["role"] != "system"]
        prefix += [*text, {"role": "assistant", "content": task.answer}]
    lasts = [task.messages for task in tasks.heldout(n, seed=seed + 1)]
    chats = [[*prefix, *[m for m in last if m["role"] != "system"]] for last in lasts]
    rng.shuffle(chats)
    return chats


def long_answers(n: int, *, seed: int = 0, characters: int = 250) -> list[tasks.Task]:
    """Held-out tasks whose correct answer has at least `characters` characters and no loops.

    The tiny model writes about two characters per token, so 250 are about 120 tokens.
    """
    found: list[tasks.Task] = []
    size = n
    while len(found) < n:
        drawn = [t for k in LONG_KINDS for t in tasks.heldout(size, k, seed)]
        found = [t for t in drawn if len(t.answer) >= characters]
        size *= 2
    random.Random(f"long {seed}").shuffle(found)
    return found[:n]
