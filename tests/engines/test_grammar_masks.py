"""The course's grammar masks, bit for bit against those of the installed engines' xgrammar."""

import json
import subprocess

import pytest
from transformers import AutoTokenizer

from utils.checks.lab_3_3_2 import GOOD_ORDERS, ORDER_SCHEMA, token_mask
from utils.engines import sglang, vllm
from utils.engines.grammar import Masks, compile_pattern, schema_pattern, vocabulary
from utils.profiles import ROOT

pytestmark = pytest.mark.engine
DATE = r"20[2-3][0-9]-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
CASES = [
    ({"schema": ORDER_SCHEMA}, [json.dumps(order) for order in GOOD_ORDERS]),
    ({"regex": DATE}, ["2026-12-01", "2039-02-28"]),
    ({"regex": "(positive|neutral|negative)"}, ["neutral", "negative"]),
    ({"regex": "[a-z]+( [a-z]{2,5})*!?"}, ["the soup was", "return self!", "a"]),
    ({"regex": "(caf\u00e9|th\u00e9)( noir)?"}, ["caf\u00e9 noir", "th\u00e9"]),
]


@pytest.mark.parametrize("engine", [vllm, sglang], ids=["vllm", "sglang"])
def test_masks_equal_those_of_xgrammar(engine):
    if not engine.PYTHON.exists():
        pytest.skip("The engine isn't set up here. Run: make setup STEP=engines")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    tokens, end = vocabulary(tokenizer), tokenizer.eos_token_id
    ways = [
        # The usual tokens, and one token for each byte.
        (
            constraint,
            [
                [*way, end]
                for text in texts
                for way in (
                    tokenizer.encode(text),
                    [tokens.index(bytes([b])) for b in text.encode()],
                )
            ],
        )
        for constraint, texts in CASES
    ]
    done = subprocess.run(
        [str(engine.PYTHON), "tests/support/xgrammar_masks.py"],
        cwd=ROOT,
        input=json.dumps(ways),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps = 0
    for (constraint, answers), theirs in zip(ways, json.loads(done.stdout), strict=True):
        pattern = constraint.get("regex") or schema_pattern(constraint["schema"])
        masks = Masks(compile_pattern(pattern), token_mask.reference, tokens, end)
        for answer, expected in zip(answers, theirs, strict=True):
            state = 0
            for token, allowed in zip(answer, expected, strict=True):
                assert masks.allowed(state) == allowed, (pattern, tokenizer.decode(answer), token)
                state = masks.after(state, token)  # no bytes at the end token
                steps += 1
    assert steps > 100
