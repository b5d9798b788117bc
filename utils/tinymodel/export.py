"""From a training checkpoint to the files that engines load: a transformers folder and GGUF."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from utils.files import fill_folder, write_file
from utils.tinymodel import tokenizer as tok
from utils.tinymodel.model import ModelShape, grow

CHECKPOINT = "checkpoint.pt"  # of a training folder
LICENSE = "MIT (weights); trained on PSF-licensed documentation"  # of the tiny model
GGUF_TYPES = {
    "BF16": (gguf.LlamaFileType.MOSTLY_BF16, gguf.GGMLQuantizationType.BF16),
    "Q8_0": (gguf.LlamaFileType.MOSTLY_Q8_0, gguf.GGMLQuantizationType.Q8_0),
    "Q4_0": (gguf.LlamaFileType.MOSTLY_Q4_0, gguf.GGMLQuantizationType.Q4_0),
}
SHIPPED_TYPES = ("BF16", "Q8_0")  # in models/tiny; lab 3.3.6 makes the other


def export(run: Path, shape: ModelShape, folder: Path) -> None:
    """Write the model of a training folder for transformers, at the recipe's full depth.

    An unfinished training may still be shallower; the missing layers are added as in `model.grow`, so the
    files have their final shapes and the model computes what it has learned so far.
    """
    saved = torch.load(run / CHECKPOINT, weights_only=True)
    state = grow(saved["model"], saved["layers"], shape.layers)
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in state.items()}
    ends = _ends(tok.load(run))
    fill_folder(folder, lambda part: _write(part, tensors, shape, ends))


def _ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """Token numbers of the end of a turn and the end of a text."""
    end, text_end = (tokenizer.token_to_id(t) for t in (tok.IM_END, tok.END_OF_TEXT))
    if end is None or text_end is None:
        raise ValueError("the tokenizer lacks the chat format's special tokens")
    return end, text_end


def _write(
    part: Path, tensors: dict[str, Tensor], shape: ModelShape, ends: tuple[int, int]
) -> None:
    from transformers import GenerationConfig, Qwen3Config

    end, text_end = ends
    config = Qwen3Config(
        **shape.config(), bos_token_id=None, eos_token_id=end, pad_token_id=text_end
    )
    config.architectures = ["Qwen3ForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(part)
    GenerationConfig(eos_token_id=end, pad_token_id=text_end, do_sample=False).save_pretrained(part)
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})


def copy_tokenizer(run: Path, folder: Path) -> None:
    """Put the training's tokenizer files into the exported model's folder."""

    def write(part: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(run / name, part / name)

    fill_folder(folder, write)


def write_gguf(
    folder: Path, kind: str, to: Path | None = None, *, name: str = "tiny", license: str = LICENSE
) -> Path:
    """Write `name`-`kind`.gguf from the safetensors model in `folder`.

    Args:
        folder: Complete model folder.
        kind: BF16, Q8_0 or Q4_0 (matrices in 8 or 4 bits with a scale per 32 weights; norms stay float32).
        to: Folder of the file, or None for `folder`.
        name: Name of the model.
        license: Licence that the file states.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind not in GGUF_TYPES:
        raise ValueError(f"unknown GGUF type {kind!r}; the types are {', '.join(GGUF_TYPES)}")
    into = folder if to is None else to
    file = into / f"{name}-{kind}.gguf"
    return write_file(file, lambda part: _write_gguf(folder, part, kind, name, license))


def _write_gguf(folder: Path, path: Path, kind: str, name: str, license: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    file_type, matrix_type = GGUF_TYPES[kind]
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name(name)
    writer.add_license(license)
    writer.add_file_type(file_type)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    _add_tokenizer(writer, folder)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for source, value in load_file(folder / "model.safetensors").items():
        target = names.get_name(source, try_suffixes=(".weight",))
        if target is None:
            raise ValueError(f"GGUF has no name for the tensor {source}")
        data = value.float().numpy()
        stored = matrix_type if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(data, stored) if value.ndim == 2 else data.astype(np.float32)
        writer.add_tensor(target, packed, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    tokenizer = tok.load(folder)
    merges = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["merges"]
    tokens = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if t in tok.SPECIAL else normal for t in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    end, text_end = _ends(tokenizer)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_pad_token_id(text_end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tok.CHAT_TEMPLATE)
