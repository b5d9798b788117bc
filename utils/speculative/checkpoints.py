"""Draft heads on disk, in the layouts that vLLM and SGLang load, and back; also what others have published.

| heads | layout | source |
|---|---|---|
| Medusa | `blocks.{k}.layers.{j}`, `lm_heads.{k}` | vllm/model_executor/models/medusa.py |
| Medusa, published | `{k}.{j}.linear`, `{k}.{layers}` in medusa_lm_head.pt | FasterDecoding/Medusa |
| EAGLE-3 | `fc`, `midlayer.*`, `norm`, `lm_head`, `d2t` (offsets), `t2d` | llama_eagle3.py (vLLM, SGLang) |
| EAGLE-1 | `fc`, `layers.0.*` | SafeAILab/EAGLE, vLLM's llama_eagle.py |
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.speculative.errors import SpeculationError
from utils.speculative.heads import Eagle1, Eagle3, EagleShape, MedusaHeads, default_aux_layers
from utils.speculative.target import Shape, Target, layer_tensors, layer_to_theirs

WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
)
ENGINES = {"vllm": 0, "sglang": 1}  # what each adds to an auxiliary layer id to get a hidden state
LAYER_IDS_OF = "layer_ids_of"  # in `eagle_config`: the engine, if it is not vLLM
Heads = MedusaHeads | Eagle3 | Eagle1


def save_heads(
    heads: Heads,
    target: Target,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    engine: str = "vllm",
) -> None:
    """Writes `config.json` and `model.safetensors` into a folder.

    SGLang 0.5.23 takes `eagle_aux_hidden_state_layer_ids` one layer further than vLLM does, without an error
    (`set_eagle3_layers_to_capture` adds 1; sglang pull request 25454 tells the two conventions apart). So
    EAGLE-3 heads for SGLang are a copy with ids one lower, which says so in its configuration.

    Args:
        heads: What to write.
        target: Whose heads they are; gives the configuration of positions.
        folder: Made if needed.
        dtype: Of the stored weights.
        engine: "vllm" or "sglang": whose layer ids EAGLE-3's configuration holds.

    Raises:
        SpeculationError: Another engine, or hidden states that SGLang cannot capture.
    """
    if engine not in ENGINES:
        raise SpeculationError(f"Heads are written for {' or '.join(ENGINES)}, not for {engine!r}.")
    if isinstance(heads, MedusaHeads):
        config, tensors = _medusa_out(heads)
    elif isinstance(heads, Eagle3):
        config, tensors = _eagle3_out(heads, target, engine)
    else:
        config, tensors = _eagle1_out(heads, target)
    folder.mkdir(parents=True, exist_ok=True)
    stored = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor)
        .detach()
        .cpu()
        .contiguous()
        for name, tensor in tensors.items()
    }
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_heads(path: str | Path, target: Target) -> Heads:
    """Reads draft heads for a target: a folder, or an id of the model hub.

    Args:
        path: Folder with a config.json and weights, or hub id.
        target: Whose hidden states they are going to read; decides device and data type.

    Returns:
        What the folder holds; the configuration says which kind.

    Raises:
        SpeculationError: No heads there, an incomplete file, or heads that are not for this target.
    """
    folder = _folder(path)
    config, tensors = _read(folder)
    kinds = " ".join(config.get("architectures") or [])
    if any(name.endswith("d2t") for name in tensors) or "Eagle3" in kinds:
        heads: Heads = _eagle3_in(config, tensors, target, folder)
    elif config.get("medusa_num_heads") or config.get("model_type") == "medusa":
        heads = _medusa_in(config, tensors, target, folder)
    elif "fc.weight" in tensors:
        heads = _eagle1_in(tensors, target, folder)
    else:
        raise SpeculationError(f"{folder} holds neither Medusa heads nor an EAGLE draft: {kinds}.")
    bad = [name for name, p in heads.named_parameters() if not torch.isfinite(p).all()]
    if bad:
        raise SpeculationError(f"{folder}: {bad[0]} holds values that are no numbers.")
    heads.requires_grad_(False).eval()
    return heads.to(device=target.device, dtype=target.dtype)


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise SpeculationError(f"There is no folder {path}, and it is no id of the model hub.")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path)))


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    file = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if file is None or not (folder / "config.json").exists():
        raise SpeculationError(f"{folder} needs config.json and one of: {', '.join(WEIGHTS)}.")
    try:
        config = json.loads((folder / "config.json").read_text())
        if file.suffix == ".safetensors":
            return config, load_file(file)
        return config, torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, json.JSONDecodeError, RuntimeError, EOFError) as error:
        raise SpeculationError(
            f"{file} cannot be read ({error}). It is probably incomplete: download or train it again."
        ) from error


def _fill(heads: Heads, state: Mapping[str, Tensor], folder: Path) -> None:
    """Loads a state, and says what is missing or of another size."""
    wanted = heads.state_dict()
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise SpeculationError(f"{folder} lacks {', '.join(missing[:4])}.")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise SpeculationError(
                f"{folder}: {name} is {list(state[name].shape)}, for this target it has to be "
                f"{list(tensor.shape)}. These heads are for another model."
            )
    heads.load_state_dict({name: state[name] for name in wanted})


def _medusa_out(heads: MedusaHeads) -> tuple[dict[str, Any], dict[str, Tensor]]:
    hidden, vocab = heads.lm_heads.shape[1:]
    config = {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "hidden_size": hidden,
        "vocab_size": vocab,
        "num_heads": heads.count,
        "num_hidden_layers": heads.layers,
        "medusa_fc_bias": True,  # without it vLLM drops the biases and says nothing
    }
    tensors = {}
    for k in range(heads.count):
        for j in range(heads.layers):
            tensors[f"blocks.{k}.layers.{j}.weight"] = heads.blocks[j, k].t()
            tensors[f"blocks.{k}.layers.{j}.bias"] = heads.biases[j, k, 0]
        tensors[f"lm_heads.{k}.weight"] = heads.lm_heads[k].t()
    return config, tensors


def _medusa_in(
    config: dict[str, Any], tensors: dict[str, Tensor], target: Target, folder: Path
) -> MedusaHeads:
    count = config.get("num_heads") or config["medusa_num_heads"]
    layers = config.get("medusa_num_layers") or config["num_hidden_layers"]
    ours = {_medusa_name(name, layers): tensor for name, tensor in tensors.items()}
    heads = MedusaHeads(count, target.shape.hidden, target.shape.vocab, layers)
    try:
        state = {
            "blocks": torch.stack(
                [
                    torch.stack([ours[f"blocks.{k}.layers.{j}.weight"].t() for k in range(count)])
                    for j in range(layers)
                ]
            ),
            "biases": torch.stack(
                [
                    torch.stack([ours[f"blocks.{k}.layers.{j}.bias"][None] for k in range(count)])
                    for j in range(layers)
                ]
            ),
            "lm_heads": torch.stack([ours[f"lm_heads.{k}.weight"].t() for k in range(count)]),
        }
    except KeyError as error:
        raise SpeculationError(f"{folder} lacks {error}: {count} heads were announced.") from error
    _fill(heads, state, folder)
    return heads


def _medusa_name(name: str, layers: int) -> str:
    """FasterDecoding's `{k}.{j}.linear.weight` and `{k}.{layers}.weight` under vLLM's names."""
    found = re.fullmatch(r"(?:medusa_head\.)?(\d+)\.(\d+)\.(linear\.)?(weight|bias)", name)
    if not found:
        return name
    k, j, inner, kind = found.groups()
    return f"blocks.{k}.layers.{j}.{kind}" if inner else f"lm_heads.{k}.{kind}"


def _draft_config(target: Target) -> dict[str, Any]:
    s = target.shape
    rope = target.rotary.config
    return {
        "hidden_size": s.hidden,
        "intermediate_size": s.ffn,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "num_hidden_layers": 1,
        "vocab_size": s.vocab,
        "rms_norm_eps": s.eps,
        "max_position_embeddings": len(target.rotary.cos),
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "model_type": "llama",
        **rope,
    }


def _eagle3_out(
    heads: Eagle3, target: Target, engine: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    aux, last = heads.shape.aux_layers, target.shape.layers - 1
    if engine == "sglang" and not (min(aux) >= 1 and max(aux) <= last):
        raise SpeculationError(
            f"SGLang captures hidden states 1 to {last} of this target; the draft fuses {list(aux)}."
        )
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        **_draft_config(target),
        "draft_vocab_size": heads.shape.draft_vocab,
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [k - ENGINES[engine] for k in aux],
        }
        | ({} if engine == "vllm" else {LAYER_IDS_OF: engine}),
    }
    state = heads.state_dict()
    layer = {k.removeprefix("layer."): v for k, v in state.items() if k.startswith("layer.")}
    known = torch.zeros(heads.shape.layer.vocab, dtype=torch.bool)
    known[heads.d2t.cpu()] = True
    tensors = {
        "fc.weight": state["fc.weight"],
        **layer_to_theirs(layer, "midlayer.", heads.shape.layer),
        "midlayer.hidden_norm.weight": state["feature_norm"],
        "midlayer.input_layernorm.weight": layer["input_norm"],
        "norm.weight": state["norm"],
        "lm_head.weight": state["lm_head.weight"],
        "d2t": to_offsets(heads.d2t.cpu()),
        "t2d": known,
    }
    return config, tensors


def to_offsets(d2t: Tensor) -> Tensor:
    """The target's ids of draft tokens as EAGLE-3 stores them: less the draft's own, int64."""
    return d2t - torch.arange(len(d2t))


def from_offsets(offsets: Tensor, vocab: int, where: object) -> Tensor:
    """The inverse of `to_offsets`.

    Raises:
        SpeculationError: An id beyond the target's vocabulary.
    """
    ids = offsets.long() + torch.arange(len(offsets))
    if ids.min() < 0 or ids.max() >= vocab:
        raise SpeculationError(
            f"{where}: d2t leads to token {int(ids.max() if ids.max() >= vocab else ids.min())}; the "
            f"target knows 0 to {vocab - 1}. These heads are for another vocabulary."
        )
    return ids


def _eagle3_in(
    config: dict[str, Any], tensors: dict[str, Tensor], target: Target, folder: Path
) -> Eagle3:
    tensors = {re.sub(r"^layers\.0\.", "midlayer.", name): t for name, t in tensors.items()}
    if config.get("norm_before_residual") or config.get("norm_before_fc"):
        raise SpeculationError(
            f"{folder}: norm_before_residual and norm_before_fc are variants that are not read here."
        )
    settings = config.get("eagle_config") or {}
    aux = settings.get("eagle_aux_hidden_state_layer_ids")
    layers = target.shape.layers
    added = ENGINES[settings.get(LAYER_IDS_OF, "vllm")]
    aux = tuple(k + added for k in aux) if aux else default_aux_layers(layers)
    if max(aux) > layers:
        raise SpeculationError(
            f"{folder} fuses hidden state {max(aux)}; the target has {layers} layers."
        )
    layer = _layer_shape(config, target.shape)
    if (layer.hidden, layer.vocab) != (target.shape.hidden, target.shape.vocab):
        raise SpeculationError(
            f"{folder} is for hidden size {layer.hidden} and {layer.vocab} tokens; the target has "
            f"{target.shape.hidden} and {target.shape.vocab}."
        )
    size = config.get("draft_vocab_size") or layer.vocab
    shape = EagleShape(layer, size, aux)
    heads = Eagle3(shape)
    offsets = tensors.get("d2t", torch.zeros(size, dtype=torch.int64))
    state = _eagle_layer(tensors, "midlayer.", shape.layer, folder)
    names = {
        "fc.weight": "fc.weight",
        "feature_norm": "midlayer.hidden_norm.weight",
        "norm": "norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    state |= {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}
    state["d2t"] = from_offsets(offsets, target.shape.vocab, folder)
    _fill(heads, state, folder)
    return heads


def _eagle1_out(heads: Eagle1, target: Target) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = heads.state_dict()
    layer = {k.removeprefix("layer."): v for k, v in state.items() if k.startswith("layer.")}
    config = {"architectures": ["EagleLlamaForCausalLM"], **_draft_config(target), "bias": True}
    tensors = {
        "fc.weight": state["fc.weight"],
        "fc.bias": state["fc.bias"],
        **layer_to_theirs(layer, "layers.0.", heads.shape.layer),
    }
    return config, tensors


def _eagle1_in(tensors: dict[str, Tensor], target: Target, folder: Path) -> Eagle1:
    shape = replace(target.shape, layers=1, qk_norm=False)
    heads = Eagle1(EagleShape(shape, shape.vocab, ()), target.head.weight.cpu())
    state = _eagle_layer(tensors, "layers.0.", shape, folder)
    state["fc.weight"] = tensors["fc.weight"]
    state["fc.bias"] = tensors.get("fc.bias", torch.zeros(shape.hidden))
    _fill(heads, state, folder)
    return heads


def _eagle_layer(
    tensors: dict[str, Tensor], prefix: str, shape: Shape, folder: Path
) -> dict[str, Tensor]:
    try:
        layer = layer_tensors(tensors, prefix, shape)
    except KeyError as error:
        raise SpeculationError(f"{folder} lacks {error}.") from error
    return {f"layer.{name}": tensor for name, tensor in layer.items()}


def _layer_shape(config: dict[str, Any], target: Shape) -> Shape:
    """Sizes of a draft's layer as its configuration gives them."""
    heads = config.get("num_attention_heads", target.heads)
    hidden = config.get("hidden_size", target.hidden)
    return Shape(
        layers=1,
        hidden=hidden,
        ffn=config.get("intermediate_size", target.ffn),
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or hidden // heads,
        vocab=config.get("vocab_size", target.vocab),
        eps=config.get("rms_norm_eps", target.eps),
        qk_norm=False,
    )
