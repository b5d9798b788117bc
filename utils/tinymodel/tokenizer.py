"""The byte-level BPE tokenizer: trained so that a word is the same tokens at any place.

Qwen2's pre-tokenizer glues one leading space or sign to a word (" name", ".name", "_name"), so plain BPE
gives `name` a different token in each place, and a small model must learn to copy from every form to every
other. Here the merges are learned from text in which letters are split from everything else: no merge
joins a letter with a space or a sign. Encoding uses the unchanged Qwen2 pattern, which engines know.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [END_OF_TEXT, IM_START, IM_END]
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn `vocab_size` tokens (bytes, merges and the three special tokens) from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    qwen2 = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    letters = pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([qwen2, letters, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([qwen2, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja for transformers and engines."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[IM_START],
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    path = folder / "tokenizer_config.json"  # the class under the name that older versions know too
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> Tokenizer:
    """Read the tokenizer of a model folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def render(messages: list[dict[str, str]], *, generate: bool = False) -> str:
    """Chat messages as the text the model reads: the chat template, without jinja."""
    turns = "".join(f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages)
    return turns + (f"{IM_START}assistant\n" if generate else "")
