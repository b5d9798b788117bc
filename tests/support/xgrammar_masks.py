"""Token masks of xgrammar for the tiny model's tokenizer. An engine's Python runs this as a program.

It reads one JSON list of pairs from standard input: `{"regex": "..."}` or `{"schema": {...}}`, and answers as
lists of tokens. For each answer it writes the allowed tokens before each of its tokens to standard output.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import xgrammar
from transformers import AutoTokenizer


def masks(compiled: xgrammar.CompiledGrammar, size: int, answer: list[int]) -> list[list[int]]:
    """Return the tokens that xgrammar allows before each token of an answer."""
    matcher = xgrammar.GrammarMatcher(compiled)
    bits = xgrammar.allocate_token_bitmask(1, size)
    found = []
    for token in answer:
        matcher.fill_next_token_bitmask(bits)
        words = [word & 0xFFFFFFFF for word in bits[0].tolist()]
        found.append([one for one in range(size) if words[one // 32] >> one % 32 & 1])
        assert matcher.accept_token(token), f"xgrammar refuses token {token}"
    return found


def main() -> None:
    """Answer the question on standard input."""
    tokenizer = AutoTokenizer.from_pretrained("models/tiny")
    size = len(tokenizer)
    info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=size, stop_token_ids=[tokenizer.eos_token_id]
    )
    compiler = xgrammar.GrammarCompiler(info)
    result = []
    for constraint, answers in json.load(sys.stdin):
        if "regex" in constraint:
            compiled = compiler.compile_regex(constraint["regex"])
        else:
            schema = json.dumps(constraint["schema"])
            compiled = compiler.compile_json_schema(schema, any_whitespace=False)
        result.append([masks(compiled, size, answer) for answer in answers])
    json.dump(result, sys.stdout)


main()
