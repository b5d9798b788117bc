"""Decoding of the tiny model under a grammar's masks, step by step, for the section about masks."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from utils.engines.grammar import Masks
from utils.profiles import ROOT


@dataclass(frozen=True)
class Step:
    """One decoding step.

    Attributes:
        token: Text of the chosen token.
        allowed: Number of tokens that the mask allowed.
        mask_s: Seconds until the mask was there.
        model_s: Seconds of the model's forward pass.
    """

    token: str
    allowed: int
    mask_s: float
    model_s: float


class TinyModel:
    """The tiny model and its tokenizer on the CPU."""

    def __init__(self) -> None:
        disable_progress_bar()
        folder = ROOT / "models" / "tiny"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answer(
        self, question: str, masks: Masks | None = None, max_tokens: int = 40
    ) -> tuple[str, list[Step]]:
        """Answer greedily, with or without masks, and return the text and its steps."""
        chat = [{"role": "user", "content": question}]
        prompt = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
        inputs = self.tokenizer(prompt, return_tensors="pt").input_ids
        state, cache, answer, steps = 0, None, [], []
        for _ in range(max_tokens):
            begin = time.perf_counter()
            with torch.inference_mode():
                out = self.model(inputs, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[0, -1]
            computed = time.perf_counter()
            allowed = masks.allowed(state) if masks else range(len(logits))
            done = time.perf_counter()
            forbidden = torch.ones_like(logits, dtype=torch.bool)
            forbidden[list(allowed)] = False
            token = int(logits.masked_fill(forbidden, -torch.inf).argmax())
            spelled = self.tokenizer.decode([token])
            steps.append(Step(spelled, len(allowed), done - computed, computed - begin))
            if token == self.tokenizer.eos_token_id:
                break
            answer.append(token)
            state = masks.after(state, token) if masks else state
            inputs = torch.tensor([[token]])
        return self.tokenizer.decode(answer), steps


def steps_table(first: list[Step], again: list[Step]) -> pd.DataFrame:
    """Return the allowed tokens and the times of each step, for two answers to the same question."""
    return pd.DataFrame(
        {
            "token": [repr(step.token) for step in first],
            "allowed": [step.allowed for step in first],
            "mask, first time, ms": [round(1000 * step.mask_s, 2) for step in first],
            "mask, again, ms": [round(1000 * step.mask_s, 3) for step in again],
            "model, ms": [round(1000 * step.model_s, 1) for step in first],
        }
    )
