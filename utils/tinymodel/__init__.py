"""The course's own tiny language model: corpus, tokenizer, training, export, and the checks on each."""

from utils.tinymodel.chats import long_answers, prompts, shared_prefix

__all__ = ["long_answers", "prompts", "shared_prefix"]
