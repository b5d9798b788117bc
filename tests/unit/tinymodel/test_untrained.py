"""The untrained model: its files, and that they are the same each time."""

import json

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from utils.tinymodel import untrained
from utils.tinymodel.model import ModelShape

SMALL = ModelShape(layers=2, hidden=64, ffn=64, heads=2, kv_heads=1, vocab=2048)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(untrained, "SHAPE", SMALL)
    monkeypatch.setattr(untrained.random_tensors, "__defaults__", (SMALL, untrained.SEED))
    return tmp_path / "model"


def test_shape_has_102_million_parameters():
    shape = untrained.SHAPE
    attention = shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    layer = attention + 3 * shape.hidden * shape.ffn
    assert round((shape.layers * layer + shape.vocab * shape.hidden) / 1e6) == 102
    assert "102M" in untrained.NAME
    assert untrained.NAME.startswith("untrained")


def test_transformers_loads_every_tensor(folder):
    path = untrained.untrained_model(folder)
    assert AutoConfig.from_pretrained(path).num_hidden_layers == SMALL.layers
    _, told = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]


def test_model_is_made_once_and_is_the_same_each_time(folder, tmp_path):
    first = untrained.untrained_model(folder) / "model.safetensors"
    made = first.stat().st_mtime_ns
    again = untrained.untrained_model(tmp_path / "again") / "model.safetensors"
    assert untrained.untrained_model(folder)
    assert first.stat().st_mtime_ns == made
    one, other = load_file(first), load_file(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_model_that_is_cut_off_is_made_again(folder):
    file = untrained.untrained_model(folder) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    untrained.untrained_model(folder)
    assert file.read_bytes() == whole


@pytest.mark.parametrize(("kind", "bits"), [("BF16", 16), ("Q8_0", 8.5), ("Q4_0", 4.5)])
def test_gguf_has_the_kinds_bits_and_a_name_that_says_untrained(folder, kind, bits):
    file = untrained.untrained_gguf(kind, folder)
    assert file.name == f"untrained-102M-{kind}.gguf"
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.name"].contents() == untrained.NAME
    (down,) = [t for t in reader.tensors if t.name == "blk.1.ffn_down.weight"]
    assert 8 * down.n_bytes / down.n_elements == bits
    layers = reader.fields["qwen3.block_count"].contents()
    assert layers == json.loads((folder / "config.json").read_text())["num_hidden_layers"]
