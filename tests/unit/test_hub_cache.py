"""Whose the model cache is, and what the user is told."""

import os

import pytest

from utils import model_sizes
from utils.hub_cache import foreign_owner
from utils.model_sizes import ConfigError, from_hub


def test_first_foreign_file_is_found(tmp_path):
    (tmp_path / "hub" / "models").mkdir(parents=True)
    (tmp_path / "hub" / "models" / "x").write_text("")
    me = os.getuid()
    assert foreign_owner(tmp_path, me) is None
    assert foreign_owner(tmp_path, me + 1) == (tmp_path, me)
    assert foreign_owner(tmp_path / "nowhere", me) is None


def test_denied_model_cache_is_named_with_its_owner(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()

    def denied(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path / "hub" / "models--a--b"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", denied)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(ConfigError, match=r"models--a--b can't be written.*chown"):
        from_hub("a/b", "config.json")
    monkeypatch.setattr(model_sizes, "foreign_owner", lambda folder, user: (folder, 0))
    with pytest.raises(ConfigError, match=f"{tmp_path}/hub belongs to root") as caught:
        from_hub("a/b", "config.json")
    assert "network" not in str(caught.value)
