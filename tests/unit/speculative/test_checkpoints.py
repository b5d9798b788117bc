"""Heads on disk: both ways, published names, and what does not fit the target."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from utils.profiles import load_profile
from utils.speculative.checkpoints import from_offsets, load_heads, save_heads, to_offsets
from utils.speculative.heads import Eagle1Draft, Eagle3Draft, EagleShape, MedusaHeads
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Rotary, Target, TargetShape, load_target
from utils.speculative.training import draft_layer

SMALL = TargetShape(
    layers=8, hidden=16, ffn=24, heads=4, kv_heads=2, head_dim=4, vocab=40, eps=1e-6, qk_norm=True
)


def make_target(shape=SMALL):
    torch.manual_seed(0)
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return Target(shape, Rotary(torch.tensor([1.0, 0.01]), 64, config=config))


def make_heads(target):
    s = target.shape
    medusa = MedusaHeads(3, s.hidden, s.vocab, layers=2)
    eagle3 = Eagle3Draft(EagleShape(draft_layer(target), 10, (2, 4, 5)))
    eagle3.d2t.copy_(torch.arange(10) * 4)
    eagle1 = Eagle1Draft(EagleShape(draft_layer(target), s.vocab, ()), target.head.weight.detach())
    for heads in (medusa, eagle3, eagle1):
        for p in heads.parameters():
            torch.nn.init.normal_(p)
    return {"medusa": medusa, "eagle3": eagle3, "eagle1": eagle1}


@pytest.fixture
def target():
    return make_target()


@pytest.mark.parametrize("name", ["medusa", "eagle3", "eagle1"])
def test_saved_heads_are_read_again(target, tmp_path, name):
    heads = make_heads(target)[name]
    save_heads(heads, target, tmp_path, torch.float32)
    again = load_heads(tmp_path, target)
    assert type(again) is type(heads)
    for key, value in heads.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_medusa_heads_have_vllms_names(target, tmp_path):
    save_heads(make_heads(target)["medusa"], target, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = {
        f"blocks.{k}.layers.{j}.{w}" for k in range(3) for j in (0, 1) for w in ("weight", "bias")
    }
    assert set(tensors) == names | {f"lm_heads.{k}.weight" for k in range(3)}
    assert tensors["lm_heads.0.weight"].shape == (40, 16)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["medusa_fc_bias"] is True, "without it vLLM drops the biases and says nothing"
    assert (config["num_heads"], config["num_hidden_layers"]) == (3, 2)


def test_the_eagle3_draft_has_vllms_names(target, tmp_path):
    save_heads(make_heads(target)["eagle3"], target, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["midlayer.self_attn.q_proj.weight"].shape == (16, 32)
    assert tensors["midlayer.self_attn.k_proj.weight"].shape == (8, 32)
    assert tensors["fc.weight"].shape == (16, 48)
    assert tensors["d2t"].tolist() == [3 * i for i in range(10)], "offsets, not ids"
    assert tensors["t2d"].nonzero().flatten().tolist() == [4 * i for i in range(10)]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "llama" and config["draft_vocab_size"] == 10
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]
    assert config["tie_word_embeddings"] is False


def test_sglangs_copy_has_the_ids_that_sglang_means(target, tmp_path):
    """SGLang 0.5.23 captures before layer id + 1: the output of layer id, hidden state id + 1."""
    heads = make_heads(target)["eagle3"]
    save_heads(heads, target, tmp_path, torch.float32, engine="sglang")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 3, 4]
    assert load_heads(tmp_path, target).shape.aux_layers == (2, 4, 5), "read back as what it means"
    with pytest.raises(SpeculationError, match="written for vllm or sglang, not for 'trt'"):
        save_heads(heads, target, tmp_path, engine="trt")
    heads.shape = replace(heads.shape, aux_layers=(2, 4, 8))
    with pytest.raises(SpeculationError, match="captures hidden states 1 to 7"):
        save_heads(heads, target, tmp_path, engine="sglang")


def test_published_names_are_read(target, tmp_path):
    heads = make_heads(target)
    save_heads(heads["medusa"], target, tmp_path, torch.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    published = {}
    for name, tensor in tensors.items():
        part = name.split(".")
        if part[0] == "blocks":
            published[f"{part[1]}.{part[3]}.linear.{part[4]}"] = tensor
        else:
            published[f"{part[1]}.2.weight"] = tensor
    (tmp_path / "model.safetensors").unlink()
    torch.save(published, tmp_path / "medusa_lm_head.pt")
    (tmp_path / "config.json").write_text(
        json.dumps({"medusa_num_heads": 3, "medusa_num_layers": 2, "base_model_name_or_path": "x"})
    )
    again = load_heads(tmp_path, target)
    assert torch.equal(again.lm_heads, heads["medusa"].lm_heads)
    assert torch.equal(again.blocks, heads["medusa"].blocks)
    other = tmp_path / "eagle3"
    save_heads(heads["eagle3"], target, other, torch.float32)
    tensors = load_file(other / "model.safetensors")
    (other / "model.safetensors").unlink()
    renamed = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items()}
    torch.save(renamed, other / "pytorch_model.bin")
    assert torch.equal(load_heads(other, target).fc.weight, heads["eagle3"].fc.weight)


def test_offsets_lead_to_the_targets_tokens_and_back():
    ids = torch.tensor([3, 4, 9])
    assert to_offsets(ids).tolist() == [3, 3, 7]
    assert torch.equal(from_offsets(to_offsets(ids), 10, "here"), ids)
    with pytest.raises(SpeculationError, match="token 9; the target knows 0 to 8"):
        from_offsets(to_offsets(ids), 9, "here")


def test_a_file_that_was_cut_off_is_named(target, tmp_path):
    save_heads(make_heads(target)["medusa"], target, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SpeculationError, match=r"cannot be read .* probably incomplete"):
        load_heads(tmp_path, target)


@pytest.mark.parametrize("name", ["medusa", "eagle3", "eagle1"])
def test_heads_of_another_model_are_refused(target, tmp_path, name):
    save_heads(make_heads(target)[name], target, tmp_path)
    wider = make_target(replace(SMALL, hidden=32))
    with pytest.raises(SpeculationError, match=r"for this target it has to be|for hidden size"):
        load_heads(tmp_path, wider)


def test_draft_ids_beyond_the_vocabulary_are_refused(target, tmp_path):
    save_heads(make_heads(target)["eagle3"], target, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["d2t"][-1] = 99
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SpeculationError, match="token 108; the target knows 0 to 39"):
        load_heads(tmp_path, target)


def test_values_that_are_no_numbers_are_refused(target, tmp_path):
    heads = make_heads(target)["medusa"]
    heads.biases.data[0, 1, 0, 0] = float("nan")
    save_heads(heads, target, tmp_path)
    with pytest.raises(SpeculationError, match="biases holds values that aren't numbers"):
        load_heads(tmp_path, target)


def test_too_deep_features_missing_tensors_and_missing_files_are_named(target, tmp_path):
    save_heads(make_heads(target)["eagle3"], target, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = [2, 4, 30]
    path.write_text(json.dumps(config))
    with pytest.raises(SpeculationError, match="hidden state 30; the target has 8 layers"):
        load_heads(tmp_path, target)
    save_heads(make_heads(target)["medusa"], target, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_heads.2.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(SpeculationError, match=r"lacks 'lm_heads\.2\.weight': 3 heads"):
        load_heads(tmp_path, target)
    with pytest.raises(SpeculationError, match="no folder /nowhere"):
        load_heads("/nowhere", target)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SpeculationError, match=r"needs config\.json and one of"):
        load_heads(tmp_path, target)


def changed(heads, target, folder, config=None, tensors=None):
    """Writes heads, then other settings and other tensors over them."""
    save_heads(heads, target, folder, torch.float32)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | (config or {})))
    stored = load_file(folder / "model.safetensors") | (tensors or {})
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


@pytest.mark.parametrize(
    "config, tensors, message",
    [
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 2, 5]}}, {}, "ascending"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [4, 2, 5]}}, {}, "ascending"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [-1, 2, 5]}}, {}, "not below 0"),
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": ["2"]}},
            {},
            "list of whole numbers",
        ),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}, {}, "list of whole numbers"),
        ({"num_attention_heads": 0}, {}, "num_attention_heads, a whole number of at least 1"),
        ({"num_key_value_heads": 3}, {}, "cannot share 3 key heads"),
        ({}, {"d2t": None}, "drafts 10 of 40 tokens and lacks d2t"),
        ({}, {"d2t": -torch.arange(10)}, "to a token twice"),
        ({}, {"d2t": torch.zeros(0, dtype=torch.int64)}, "one per draft token"),
        ({}, {"t2d": torch.arange(40) < 10}, "t2d and d2t name different tokens"),
    ],
)
def test_eagle3_drafts_that_cannot_be_right_are_refused(target, tmp_path, config, tensors, message):
    changed(make_heads(target)["eagle3"], target, tmp_path, config, tensors)
    with pytest.raises(SpeculationError, match=message):
        load_heads(tmp_path, target)


@pytest.mark.parametrize(
    "config, tensors, message",
    [
        ({"num_heads": None}, {}, "num_heads or medusa_num_heads, a whole number"),
        ({"num_hidden_layers": "2"}, {}, "says '2'"),
        ({}, {"lm_heads.1.weight": torch.zeros(39, 16)}, "not all of one size"),
    ],
)
def test_medusa_heads_that_cannot_be_right_are_refused(target, tmp_path, config, tensors, message):
    changed(make_heads(target)["medusa"], target, tmp_path, config, tensors)
    with pytest.raises(SpeculationError, match=message):
        load_heads(tmp_path, target)


@pytest.mark.parametrize("text", [b"<html>no such page</html>", b"version https://git-lfs.x/v1"])
def test_a_page_or_a_pointer_in_place_of_weights_is_named(target, tmp_path, text):
    save_heads(make_heads(target)["medusa"], target, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "medusa_lm_head.pt").write_bytes(text)
    with pytest.raises(SpeculationError, match="a web page or a git-lfs pointer"):
        load_heads(tmp_path, target)
    torch.save([1, 2], tmp_path / "medusa_lm_head.pt")
    with pytest.raises(SpeculationError, match="no tensors by name"):
        load_heads(tmp_path, target)


@pytest.mark.parametrize(
    "text, message", [(b"[1]", "no settings by name"), (b"\xff\xfe{}", "cannot be read")]
)
def test_a_configuration_that_is_none_is_named(target, tmp_path, text, message):
    save_heads(make_heads(target)["medusa"], target, tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(SpeculationError, match=message):
        load_heads(tmp_path, target)


def test_a_mistyped_folder_is_named_beside_the_hub_that_does_not_know_it(target, monkeypatch):
    def refuse(name):
        raise OSError(f"404 for {name}")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(
        SpeculationError, match=r"no folder /.*heads/medusaa, and the model hub.*404"
    ):
        load_heads("heads/medusaa", target)


def test_the_shipped_heads_fit_the_shipped_model():
    profile = load_profile("cpu")
    target = load_target(profile.models["transformers"])
    for name in ("medusa", "eagle1", "eagle3"):
        load_heads(profile.models[f"{name}_heads"], target)
