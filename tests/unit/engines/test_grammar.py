"""The automaton of the grammar masks, on its own and with the tiny model's tokenizer."""

import itertools
import json
import re

import jsonschema
import pytest
from transformers import AutoTokenizer

from utils.checks.lab_3_3_2 import GOOD_ORDERS, ORDER_SCHEMA, token_mask
from utils.engines.grammar import (
    Masks,
    compile_pattern,
    schema_pattern,
    vocabulary,
)
from utils.profiles import ROOT


def accepts(pattern, text):
    automaton = compile_pattern(pattern)
    return automaton.after(text.encode()) in automaton.ends


@pytest.mark.parametrize(
    "pattern",
    [
        "a*b",
        "(a|ab)(b|c)?",
        "[ab]{2}",
        "a{1,3}c?",
        "(ab|c)+",
        "a{2,}",
        "(?:a|)b",
        r"a\.b|c",
        "[a-]+",
        "(a*)*c",
    ],
)
def test_accepts_as_re_does(pattern):
    texts = ["".join(t) for n in range(5) for t in itertools.product("abc.-", repeat=n)]
    assert [t for t in texts if accepts(pattern, t)] == [
        t for t in texts if re.fullmatch(pattern, t)
    ]


def test_characters_of_several_bytes():
    assert accepts("(caf\u00e9)+", "caf\u00e9caf\u00e9")
    half = compile_pattern("\u00e9")
    assert half.after("\u00e9".encode()[:1]) is not None
    assert half.after("\u00e8".encode()) is None


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a|b", "missing"),
        ("a)", "isn't open"),
        ("[^a]", r"\^ isn't supported"),
        ("a.", "isn't supported"),
        (r"\d", r"\[0-9\]"),
        ("[a", "missing"),
        ("[\u00e0-\u00ff]", "ASCII"),
        ("*a", "isn't supported"),
    ],
)
def test_refuses_patterns_that_it_does_not_support(pattern, reason):
    with pytest.raises(ValueError, match=reason):
        compile_pattern(pattern)


def test_schema_as_a_pattern_accepts_what_the_schema_does():
    pattern = schema_pattern(ORDER_SCHEMA)
    assert all(accepts(pattern, json.dumps(order)) for order in GOOD_ORDERS)
    for bad in ({"drink": "tea", "count": 10, "to_go": True}, {"drink": "tea", "count": 1}, "tea"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, ORDER_SCHEMA)
        assert not accepts(pattern, json.dumps(bad))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "integer"},
        {"type": "object", "properties": {"a": {"enum": [1]}}},
    ],
)
def test_refuses_schemas_that_it_does_not_support(schema):
    with pytest.raises(ValueError, match="isn't supported"):
        schema_pattern(schema)


def test_vocabulary_spells_every_text():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    tokens = vocabulary(tokenizer)
    text = 'Caf\u00e9: {"a": 1}\n\t\u4e2d \x00'
    assert b"".join(tokens[token] for token in tokenizer.encode(text)) == text.encode()
    assert [
        tokenizer.convert_ids_to_tokens(i) for i, spelled in enumerate(tokens) if not spelled
    ] == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]


def test_masks_allow_the_end_where_the_text_may_end_and_are_computed_once():
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return token_mask.reference(*arguments)

    masks = Masks(compile_pattern("ab*"), counted, [b"", b"a", b"b", b"ab"], end_token=0)
    assert masks.allowed(0) == [1, 3]
    after = masks.after(0, 1)
    assert masks.allowed(after) == [0, 2]
    assert masks.allowed(masks.after(after, 2)) == [0, 2]  # the same state again
    assert len(calls) == 2
    with pytest.raises(ValueError, match="Token 2 isn't allowed"):
        masks.after(0, 2)
