"""Files are written whole or not at all."""

import os

import pytest

from utils.files import fill_folder, write_file, write_whole


def test_text_replaces_earlier_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "one")
    assert write_whole(path, "two") == path
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_earlier_file_stays_when_disk_is_full(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    write_whole(tmp_path / "a.txt", "one")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a.txt", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "one"


def test_writer_gets_name_of_file(tmp_path):
    names = []
    write_file(tmp_path / "model.gguf", lambda part: (names.append(part.name), part.touch()))
    assert names == ["model.gguf"]
    assert (tmp_path / "model.gguf").exists()


def test_folder_keeps_other_files_when_writer_fails(tmp_path):
    def write(part):
        (part / "a").write_text("new")
        raise KeyboardInterrupt

    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fill_folder(tmp_path, write)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
