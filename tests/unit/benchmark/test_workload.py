"""Requests and the builders of request lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from utils.benchmark import Request, WorkloadError, fixed, random_prompts, shared_prefix
from utils.benchmark.prompts import WORDS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE that splits most words in several tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        WORDS[::3], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet)
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe.save(str(folder / "tokenizer.json"))
    return folder


def text(request: Request) -> str:
    assert isinstance(request.prompt, str)
    return request.prompt


@pytest.mark.parametrize("length", [1, 2, 7, 64, 301])
def test_exact_token_lengths(tokenizer: Path, length: int) -> None:
    count = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode
    for request in random_prompts(8, length, tokenizer=tokenizer, max_tokens=3, ignore_eos=True):
        assert len(count(text(request)).ids) == length
        assert request.max_tokens == 3
        assert request.ignore_eos
    for request in random_prompts(3, length, tokenizer=tokenizer, token_ids=True):
        assert isinstance(request.prompt, tuple)
        assert len(request.prompt) == length
        assert request.body("m", "completions")["prompt"] == list(request.prompt)


def test_lengths_in_words_without_a_tokenizer() -> None:
    assert [len(text(r).split()) for r in random_prompts(5, 12)] == [12] * 5
    spread = {len(text(r).split()) for r in random_prompts(200, 20, spread=0.25)}
    assert min(spread) == 15
    assert max(spread) == 25


def test_random_prompts_are_seeded_and_differ() -> None:
    assert random_prompts(4, 30, seed=1) == random_prompts(4, 30, seed=1)
    assert random_prompts(4, 30, seed=1) != random_prompts(4, 30, seed=2)
    assert len({text(r) for r in random_prompts(50, 30)}) == 50


@pytest.mark.parametrize("interleave", [False, True])
def test_shared_prefixes(interleave: bool) -> None:
    requests = shared_prefix(3, 4, 50, 5, interleave=interleave)
    prefixes = [text(r).split("\n\n")[0] for r in requests]
    assert len(set(prefixes)) == 3
    assert len({text(r) for r in requests}) == 12
    assert all(len(prefix.split()) == 50 for prefix in prefixes)
    assert [r.tag for r in requests].count("cold") == 3
    seen: set[str] = set()
    for prefix, request in zip(prefixes, requests, strict=True):
        assert (request.tag == "warm") == (prefix in seen)
        seen.add(prefix)
    assert (prefixes[0] == prefixes[1]) != interleave


def test_fixed() -> None:
    assert [text(r) for r in fixed(["a", "b"], count=5)] == ["a", "b", "a", "b", "a"]
    assert [r.max_tokens for r in fixed(["a", "b"], max_tokens=9)] == [9, 9]


def test_messages_and_bodies() -> None:
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    body = Request(messages=messages, temperature=0.5, stream=False).body("m", "chat")
    assert body["messages"] == [dict(message) for message in messages]
    assert "stream" not in body
    assert "ignore_eos" not in body
    assert body["temperature"] == 0.5
    assert Request("x", extra_body={"max_tokens": 7}).body("m", "chat")["max_tokens"] == 7


def test_bad_workloads(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="either"):
        Request()
    with pytest.raises(WorkloadError, match="either"):
        Request("x", messages=({"role": "user", "content": "x"},))
    with pytest.raises(WorkloadError, match="max_tokens"):
        Request("x", max_tokens=0)
    with pytest.raises(WorkloadError, match="no prompts"):
        fixed([])
    with pytest.raises(WorkloadError, match="no tokenizer at"):
        random_prompts(1, 5, tokenizer=tmp_path)
    with pytest.raises(WorkloadError, match="needs tokenizer"):
        random_prompts(1, 5, token_ids=True)
    with pytest.raises(WorkloadError, match="at least 1 token"):
        random_prompts(1, 0)
    with pytest.raises(WorkloadError, match="word list is empty"):
        random_prompts(1, 5, words=[])


def test_an_impossible_length_is_refused_in_good_time(tokenizer: Path) -> None:
    with pytest.raises(WorkloadError, match="token_ids=True"):
        random_prompts(1, 1, tokenizer=tokenizer, words=["Zürich-Straße"])
