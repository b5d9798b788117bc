"""Requests from files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from utils.benchmark import Conversation, Request, WorkloadError
from utils.benchmark.datasets import read_requests


def write(folder: Path, *objects: object) -> Path:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in objects), encoding="utf-8-sig")
    return path


def test_own_jsonl_gives_prompts_and_limits(tmp_path: Path):
    history = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
               {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]  # fmt: skip
    found = read_requests(write(tmp_path, {"prompt": "p", "max_tokens": 7}, {"messages": history}))
    first, second = found
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    assert (first.prompt, first.max_tokens) == ("p", 7)
    assert [m["content"] for m in second.messages or ()] == ["s", "a", "b", "c"]
    assert first.source.dataset == "own.jsonl"
    assert not first.source.fresh


def test_conversation_has_think_times_between_its_turns(tmp_path: Path):
    talk = {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"},
                              {"from": "gpt", "value": "one two three"},
                              {"from": "human", "value": "b"}]}  # fmt: skip
    path = write(tmp_path, talk)
    (one,) = read_requests(path, turns=True, think_s=2.0, seed=1)
    assert isinstance(one, Conversation)
    assert one.turns == ("a", "b")
    assert one.think_s[0] > 0
    assert one.request.max_tokens == 4
    assert read_requests(path, turns=True, think_s=2.0, seed=1) == [one]
    (single,) = read_requests(path, max_tokens=9)
    assert isinstance(single, Request)
    assert single.max_tokens == 9
    assert [m["content"] for m in single.messages or ()] == ["s", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no requests"),
        ("{half", "line 1 isn't valid JSON"),
        ("[1, 2", "isn't valid JSON"),
        ("[5]", "object 1: expected a JSON object"),
        ('{"conversations": [{"from": "gpt", "value": "x"}]}', "object 1: .*no `prompt`"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "has no text"),
    ],
)
def test_odd_file_is_named(tmp_path: Path, text: str, message: str):
    path = tmp_path / "odd.jsonl"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=message) as caught:
        read_requests(path)
    assert "odd.jsonl" in str(caught.value)


def test_absent_file_is_named(tmp_path: Path):
    with pytest.raises(WorkloadError, match=r"cannot read .*none\.jsonl"):
        read_requests(tmp_path / "none.jsonl")
