"""Files are whole or not there, and what a killed program left behind is removed and nothing else."""

import pytest

from maskprune.base import files


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    path = files.replace_file(tmp_path / "deep" / ("n" * 255), b"one")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="gone"):
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("gone")))
        files.replace_file(path, b"two")
    assert path.read_bytes() == b"one" and [each.name for each in path.parent.iterdir()] == [path.name]


def test_drafts_of_a_killed_program_go_and_hidden_files_stay(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    kept = [tmp_path / ".mine.tmp", tmp_path / "a" / ".0123456789abcdef.tmpx", tmp_path / "0123456789abcdef.tmp"]
    for path in kept:
        path.write_text("kept")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # killed: nobody tidies up
        files.replace_file(tmp_path / "a" / "file", b"half")
    assert len(list(tmp_path.rglob("*.tmp"))) == 3
    files.drop_drafts(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
