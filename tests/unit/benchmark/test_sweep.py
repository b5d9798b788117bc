"""Prompts of a sweep: exact in tokens for local and hub models, in words only with a line that says so."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from utils import model_sizes
from utils.benchmark import sweep
from utils.model_sizes import ConfigError, tokenizer_file
from utils.profiles import PROFILES
from utils.tinymodel.hub import TINY


@pytest.fixture
def profile(monkeypatch):
    tokenizer_file.cache_clear()
    yield replace(PROFILES["cuda"], models={"vllm": "owner/on-the-hub"})
    tokenizer_file.cache_clear()


def test_prompts_for_a_hub_model_are_exact_in_its_tokens(profile, monkeypatch, capsys):
    asked = []

    def from_hub(model, name):
        asked.append((model, name))
        return TINY / name

    monkeypatch.setattr(model_sizes, "from_hub", from_hub)
    requests = sweep.prompts(profile, 3, length=40) + sweep.prompts(profile, 1, length=7)
    encode = Tokenizer.from_file(str(TINY / "tokenizer.json")).encode
    assert [len(encode(request.prompt).ids) for request in requests] == [40, 40, 40, 7]
    assert asked == [("owner/on-the-hub", "tokenizer.json")]
    assert capsys.readouterr().out == ""


def test_prompts_in_words_say_so(profile, monkeypatch, capsys):
    def from_hub(model, name):
        raise ConfigError("the hub did not answer.")

    monkeypatch.setattr(model_sizes, "from_hub", from_hub)
    (request,) = sweep.prompts(profile, 1, length=9)
    assert len(request.prompt.split()) == 9
    assert "in words and not in tokens, because the hub" in capsys.readouterr().out


def test_prompts_for_a_local_model_ask_no_hub(monkeypatch):
    monkeypatch.setattr(model_sizes, "from_hub", lambda *names: pytest.fail("asked the hub"))
    assert len(sweep.prompts(PROFILES["cpu"], 2)) == 2
