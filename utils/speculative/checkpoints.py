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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.speculative.heads import (
    Eagle1Draft,
    Eagle3Draft,
    EagleShape,
    MedusaHeads,
    default_aux_layers,
)
from utils.speculative.resume import read_torch
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Target, TargetShape, layer_tensors, layer_to_transformers

WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "medusa_lm_head.safetensors",
    "medusa_lm_head.pt",
)
ENGINES = {"vllm": 0, "sglang": 1}  # what each adds to an auxiliary layer id to get a hidden state
LAYER_IDS_OF = "layer_ids_of"  # in `eagle_config`: the engine, if it is not vLLM
Heads = MedusaHeads | Eagle3Draft | Eagle1Draft


def save_heads(
    heads: Heads,
    target: Target,
    folder: Path,
    dtype: torch.dtype = torch.bfloat16,
    engine: str = "vllm",
) -> None:
    """Write `config.json` and `model.safetensors` into a folder.

    SGLang 0.5.23 takes `eagle_aux_hidden_state_layer_ids` one layer further than vLLM does, without an error
    (`set_eagle3_layers_to_capture` adds 1; sglang pull request 25454 tells the two conventions apart). So
    EAGLE-3 heads for SGLang are a copy with ids one lower, and its configuration records that.

    Args:
        heads: Heads to write.
        target: Their model; gives the configuration of positions.
        folder: Made if needed.
        dtype: Data type of the stored weights.
        engine: "vllm" or "sglang": whose layer ids EAGLE-3's configuration holds.

    Raises:
        SpeculationError: Another engine, or hidden states that SGLang cannot capture.
    """
    if engine not in ENGINES:
        raise SpeculationError(f"Heads are written for {' or '.join(ENGINES)}, not for {engine!r}.")
    if isinstance(heads, MedusaHeads):
        config, tensors = _medusa_out(heads)
    elif isinstance(heads, Eagle3Draft):
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
    """Read draft heads for a target: a folder, or an id of the model hub.

    Args:
        path: Folder with a config.json and weights, or hub id.
        target: Whose hidden states they are going to read; decides device and data type.

    Returns:
        The folder's heads, of the kind that the configuration names.

    Raises:
        SpeculationError: No heads there, an incomplete file, or heads that are not for this target.
    """
    folder = _folder(path)
    config, tensors = _read(folder)
    kinds = " ".join(map(str, config.get("architectures") or []))
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
        raise SpeculationError(f"{folder}: {bad[0]} holds values that aren't numbers.")
    heads.requires_grad_(False).eval()
    return heads.to(device=target.device, dtype=target.dtype)


def _folder(path: str | Path) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise SpeculationError(f"There is no folder {path}, and it isn't an id of the model hub.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path)))
    except Exception as error:  # of the hub's client, of HTTP and of the network: it has many kinds
        text = str(error).strip().split("\n")[0]
        raise SpeculationError(
            f"There is no folder {folder.absolute()}, and the model hub gave nothing for {path} ({text}). "
            "Is the folder's name right? For the hub: is the id, and is there a network?"
        ) from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    file = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if file is None or not (folder / "config.json").exists():
        raise SpeculationError(f"{folder} needs config.json and one of: {', '.join(WEIGHTS)}.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise SpeculationError(
            f"{folder / 'config.json'} cannot be read ({error}). Download it again."
        ) from error
    if not isinstance(config, dict):
        raise SpeculationError(
            f"{folder / 'config.json'} holds no settings by name: is it a configuration of heads?"
        )
    return config, _tensors(file)


def _tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name."""
    if file.suffix != ".safetensors":
        tensors = read_torch(file)
        if not isinstance(tensors, dict) or not all(
            isinstance(t, Tensor) for t in tensors.values()
        ):
            raise SpeculationError(f"{file} holds no tensors by name: are these weights of heads?")
        return tensors
    try:
        return load_file(file)
    except SafetensorError as error:
        raise SpeculationError(
            f"{file} cannot be read ({error}). It is probably incomplete: download or train it again."
        ) from error


def _count(config: Mapping[str, Any], names: Sequence[str], folder: Path, default: int = 0) -> int:
    """A number of a configuration that has to be an int of at least 1, under the first name that is there."""
    name = next((name for name in names if config.get(name) is not None), None)
    if name is None and default:
        return default
    value = config[name] if name else None
    if type(value) is not int or value < 1:
        raise SpeculationError(
            f"{folder / 'config.json'} has to say {' or '.join(names)}, a whole number of at least 1; it "
            f"says {value!r}."
        )
    return value


def _fill(heads: Heads, state: Mapping[str, Tensor], folder: Path) -> None:
    """Load a state, and report missing entries and other sizes."""
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
    count = _count(config, ("num_heads", "medusa_num_heads"), folder)
    layers = _count(config, ("medusa_num_layers", "num_hidden_layers"), folder)
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
    except RuntimeError as error:  # of torch.stack and .t()
        raise SpeculationError(
            f"{folder}: its heads are not all of one size ({error}). Train or download them again."
        ) from error
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
    heads: Eagle3Draft, target: Target, engine: str
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
        **layer_to_transformers(layer, "midlayer.", heads.shape.layer),
        "midlayer.hidden_norm.weight": state["feature_norm"],
        "midlayer.input_layernorm.weight": layer["input_norm"],
        "norm.weight": state["norm"],
        "lm_head.weight": state["lm_head.weight"],
        "d2t": to_offsets(heads.d2t.cpu()),
        "t2d": known,
    }
    return config, tensors


def to_offsets(d2t: Tensor) -> Tensor:
    """Return the target's ids of draft tokens as EAGLE-3 stores them: less the draft's own, int64."""
    return d2t - torch.arange(len(d2t))


def from_offsets(offsets: Tensor, vocab: int, where: object) -> Tensor:
    """Return the inverse of `to_offsets`.

    Raises:
        SpeculationError: An id beyond the target's vocabulary, one twice, or none.
    """
    if offsets.ndim != 1 or not len(offsets) or offsets.is_floating_point():
        raise SpeculationError(
            f"{where}: d2t has to be a list of whole offsets, one per draft token; it is "
            f"{list(offsets.shape)}, {offsets.dtype}."
        )
    ids = offsets.long() + torch.arange(len(offsets))
    if ids.min() < 0 or ids.max() >= vocab:
        raise SpeculationError(
            f"{where}: d2t leads to token {int(ids.max() if ids.max() >= vocab else ids.min())}; the "
            f"target knows 0 to {vocab - 1}. These heads are for another vocabulary."
        )
    if len(set(ids.tolist())) < len(ids):
        raise SpeculationError(
            f"{where}: d2t leads to a token twice. It has to hold offsets: target id less draft id."
        )
    return ids


def _aux_layers(config: Mapping[str, Any], layers: int, folder: Path) -> tuple[int, ...]:
    """Return the hidden states that an EAGLE-3 draft fuses."""
    settings = config.get("eagle_config") or {}
    ids = settings.get("eagle_aux_hidden_state_layer_ids")
    if ids is None:
        return default_aux_layers(layers)
    written_for = settings.get(LAYER_IDS_OF, "vllm")
    if written_for not in ENGINES or not ids or any(type(k) is not int for k in ids):
        raise SpeculationError(
            f"{folder}: eagle_aux_hidden_state_layer_ids has to be a list of whole numbers, for "
            f"{' or '.join(ENGINES)}; it is {ids!r}, for {written_for}."
        )
    aux = tuple(k + ENGINES[written_for] for k in ids)
    if max(aux) > layers:
        raise SpeculationError(
            f"{folder} fuses hidden state {max(aux)}; the target has {layers} layers."
        )
    if min(aux) < 0 or list(aux) != sorted(set(aux)):
        raise SpeculationError(
            f"{folder} fuses hidden states {list(aux)}: they have to be different, ascending, and not below "
            "0. Compare eagle_aux_hidden_state_layer_ids with the model card."
        )
    return aux


def _draft_ids(tensors: Mapping[str, Tensor], size: int, vocab: int, folder: Path) -> Tensor:
    """Return the target's id of each draft token, checked against `t2d` where that is there."""
    if "d2t" not in tensors:
        if size != vocab:
            raise SpeculationError(
                f"{folder} drafts {size} of {vocab} tokens and lacks d2t, which says of which. Download or "
                "export it again."
            )
        return torch.arange(size)
    ids = from_offsets(tensors["d2t"], vocab, folder)
    if "t2d" in tensors:
        known = tensors["t2d"].bool().nonzero().flatten()
        if not torch.equal(known, ids.sort().values):
            raise SpeculationError(
                f"{folder}: t2d and d2t name different tokens ({len(known)} and {len(ids)}): the file mixes "
                "two vocabularies."
            )
    return ids


def _eagle3_in(
    config: dict[str, Any], tensors: dict[str, Tensor], target: Target, folder: Path
) -> Eagle3Draft:
    tensors = {re.sub(r"^layers\.0\.", "midlayer.", name): t for name, t in tensors.items()}
    if config.get("norm_before_residual") or config.get("norm_before_fc"):
        raise SpeculationError(
            f"{folder}: norm_before_residual and norm_before_fc are variants that are not read here."
        )
    aux = _aux_layers(config, target.shape.layers, folder)
    layer = _layer_shape(config, target.shape, folder)
    if (layer.hidden, layer.vocab) != (target.shape.hidden, target.shape.vocab):
        raise SpeculationError(
            f"{folder} is for hidden size {layer.hidden} and {layer.vocab} tokens; the target has "
            f"{target.shape.hidden} and {target.shape.vocab}."
        )
    size = _count(config, ("draft_vocab_size",), folder, layer.vocab)
    shape = EagleShape(layer, size, aux)
    heads = Eagle3Draft(shape)
    state = _eagle_layer(tensors, "midlayer.", shape.layer, folder)
    names = {
        "fc.weight": "fc.weight",
        "feature_norm": "midlayer.hidden_norm.weight",
        "norm": "norm.weight",
        "lm_head.weight": "lm_head.weight",
    }
    state |= {ours: tensors[expected] for ours, expected in names.items() if expected in tensors}
    state["d2t"] = _draft_ids(tensors, size, target.shape.vocab, folder)
    _fill(heads, state, folder)
    return heads


def _eagle1_out(heads: Eagle1Draft, target: Target) -> tuple[dict[str, Any], dict[str, Tensor]]:
    state = heads.state_dict()
    layer = {k.removeprefix("layer."): v for k, v in state.items() if k.startswith("layer.")}
    config = {"architectures": ["EagleLlamaForCausalLM"], **_draft_config(target), "bias": True}
    tensors = {
        "fc.weight": state["fc.weight"],
        "fc.bias": state["fc.bias"],
        **layer_to_transformers(layer, "layers.0.", heads.shape.layer),
    }
    return config, tensors


def _eagle1_in(tensors: dict[str, Tensor], target: Target, folder: Path) -> Eagle1Draft:
    shape = replace(target.shape, layers=1, qk_norm=False)
    heads = Eagle1Draft(EagleShape(shape, shape.vocab, ()), target.head.weight.cpu())
    state = _eagle_layer(tensors, "layers.0.", shape, folder)
    state["fc.weight"] = tensors["fc.weight"]
    state["fc.bias"] = tensors.get("fc.bias", torch.zeros(shape.hidden))
    _fill(heads, state, folder)
    return heads


def _eagle_layer(
    tensors: dict[str, Tensor], prefix: str, shape: TargetShape, folder: Path
) -> dict[str, Tensor]:
    try:
        layer = layer_tensors(tensors, prefix, shape)
    except KeyError as error:
        raise SpeculationError(f"{folder} lacks {error}.") from error
    return {f"layer.{name}": tensor for name, tensor in layer.items()}


def _layer_shape(config: dict[str, Any], target: TargetShape, folder: Path) -> TargetShape:
    """Sizes of a draft's layer as its configuration gives them."""

    def size(name: str, default: int) -> int:
        return _count(config, (name,), folder, default)

    heads = size("num_attention_heads", target.heads)
    kv_heads = size("num_key_value_heads", heads)
    hidden = size("hidden_size", target.hidden)
    if heads % kv_heads:
        raise SpeculationError(
            f"{folder}: {heads} attention heads cannot share {kv_heads} key heads evenly."
        )
    return TargetShape(
        layers=1,
        hidden=hidden,
        ffn=size("intermediate_size", target.ffn),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=size("head_dim", max(1, hidden // heads)),
        vocab=size("vocab_size", target.vocab),
        eps=config.get("rms_norm_eps", target.eps),
        qk_norm=False,
    )
