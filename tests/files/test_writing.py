"""Whole or not at all: temporary files, their leftovers, JSON and JSON Lines."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from animatediff.errors import UserError
from animatediff.files import atomic_folder, atomic_path


def write_then(path: Path, error: BaseException) -> None:
    """Write half of a file, and fail."""
    with atomic_path(path) as part:
        part.write_text("half")
        raise error


def test_the_new_file_takes_the_place_of_the_old_one_only_at_the_end(tmp_path: Path):
    path = tmp_path / "new folder" / "a.txt"
    with atomic_path(path) as part:
        part.write_text("first")
        assert not path.exists()
    with atomic_path(path) as part:
        part.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, interruption: type[BaseException]):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(interruption):
        write_then(path, interruption())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")]
)
def test_system_errors_are_one_line_that_names_the_file(tmp_path: Path, code: int, words: str):
    path = tmp_path / "a.txt"
    with pytest.raises(UserError) as caught:
        write_then(path, OSError(code, os.strerror(code)))
    assert str(caught.value) == f"writing {path} failed: {words}"
    assert os.listdir(tmp_path) == []


def test_a_file_in_place_of_the_folder(tmp_path: Path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match="writing .*taken/a.txt failed: "), atomic_path(tmp_path / "taken" / "a.txt"):
        pass
    assert (tmp_path / "taken").read_text() == "mine"


def write_folder_then(folder: Path, error: BaseException) -> None:
    """Write half of a folder, and fail."""
    with atomic_folder(folder) as part:
        (part / "a.txt").write_text("half")
        raise error


def folder_of(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(text)
    return folder


def test_a_folder_is_replaced_whole(tmp_path: Path):
    folder = tmp_path / "new" / "adapter"
    for text in ("first", "second"):
        with atomic_folder(folder) as part:
            (part / "a.txt").write_text(text)
            (part / f"{text}.txt").write_text(text)
        assert (folder / "a.txt").read_text() == text
    assert sorted(os.listdir(folder)) == ["a.txt", "second.txt"]
    assert os.listdir(folder.parent) == ["adapter"]


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (OSError(errno.ENOSPC, "full"), UserError, "writing .*adapter failed: No space left on device"),
        (SafetensorError("I/O\nerror"), UserError, "writing .*adapter failed: I/O error"),
        (RuntimeError("unexpected pos"), UserError, "writing .*adapter failed: unexpected pos"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_an_exception_leaves_the_old_folder(
    tmp_path: Path, error: BaseException, raised: type[BaseException], words: str | None
):
    folder = folder_of(tmp_path / "adapter", "old")
    with pytest.raises(raised, match=words):
        write_folder_then(folder, error)
    assert (folder / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["adapter"]


def test_an_interruption_while_folders_change_places_puts_the_old_one_back(tmp_path: Path, monkeypatch):
    folder = folder_of(tmp_path / "adapter", "old")

    def interrupt(source, target, original=os.replace):
        if Path(source).name.startswith(".part-"):
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder):
        pass
    assert (folder / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_file_is_no_folder_to_replace(tmp_path: Path):
    (tmp_path / "adapter").write_text("mine")
    with (
        pytest.raises(UserError, match="writing .*adapter failed: Not a directory"),
        atomic_folder(tmp_path / "adapter"),
    ):
        pass
    assert (tmp_path / "adapter").read_text() == "mine"
