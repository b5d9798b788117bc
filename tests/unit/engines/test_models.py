"""Finding models: the tiny one whole, others by what any model needs, hub ids left alone."""

import json
import shutil
import struct

import pytest

from utils.engines import ModelMissing
from utils.engines.models import find_model
from utils.tinymodel.hub import TINY


def weights(path, cut=0):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes((struct.pack("<Q", len(header)) + header + bytes(8))[: -cut or None])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    weights(tmp_path / "model-00001-of-00002.safetensors")
    weights(tmp_path / "model-00002-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return tmp_path


def test_a_hub_id_is_left_alone():
    assert find_model("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"


def test_a_sharded_model_of_somebody_elses_is_sound(folder):
    assert find_model(str(folder)) == str(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "config.json: missing"),
        ("tokenizer.json", "no tokenizer"),
        ("model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors: missing"),
    ],
)
def test_missing_model_file_is_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(ModelMissing, match=message):
        find_model(str(folder))


def test_a_shard_that_is_cut_off_is_named(folder):
    weights(folder / "model-00001-of-00002.safetensors", cut=4)
    with pytest.raises(ModelMissing, match=r"00001-of-00002\.safetensors: cut off"):
        find_model(str(folder))


def test_a_relative_path_means_the_same_everywhere(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert find_model(f"./{folder.name}") == str(folder)


@pytest.mark.parametrize("name", ["none.gguf", "./none", "/none/model"])
def test_a_mistyped_path_is_no_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelMissing, match="There is no model at"):
        find_model(name)


def test_the_tiny_model_is_held_to_its_whole_list(tmp_path, monkeypatch):
    copy = tmp_path / "tiny"
    shutil.copytree(TINY, copy)
    monkeypatch.setattr("utils.engines.models.TINY", copy)
    assert find_model(str(copy)) == str(copy)
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ModelMissing, match=r"chat_template\.jinja: missing"):
        find_model(str(copy))
