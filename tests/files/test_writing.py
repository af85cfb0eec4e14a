"""Whole or not at all: temporary files, their leftovers, JSON and JSON Lines."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from animatediff.errors import UserError
from animatediff.files import (
    atomic_folder,
    atomic_group,
    atomic_path,
    read_json,
    remove_stale_parts,
    write_json,
    write_text,
)
from animatediff.files.parts import Writer
from animatediff.files.writing import _take_places
from tests.disk import fill


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


def test_what_is_synced_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Windows syncs no other handle. It was not run there."""
    modes = []
    monkeypatch.setattr(os, "fsync", lambda handle: modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE))
    write_json(tmp_path / "a.json", {})
    with atomic_folder(tmp_path / "adapter") as part:
        (part / "sub").mkdir()
        (part / "sub" / "a.txt").write_text("x")
    assert modes == [os.O_RDWR, os.O_RDWR]


TENSOR = torch.arange(100_000.0)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 256, 3), np.uint8)
WRITERS = {
    "torch": lambda part: torch.save({"a": TENSOR}, part),
    "safetensors": lambda part: save_file({"a": TENSOR}, part),
    "Pillow, PNG": lambda part: Image.fromarray(NOISE).save(part, "PNG", compress_level=0),
    "Pillow, GIF": lambda part: Image.fromarray(NOISE).quantize().save(part, "GIF"),
    "text": lambda part: part.write_text("x" * 100_000),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
@pytest.mark.parametrize("leave", [0, 8192])
def test_a_full_disk_is_called_one(disk: Path, write: Callable[[Path], object], leave: int):
    """Also where a library has another name for it, as a file and in a folder; the old file stays."""
    old = disk / "a.bin"
    new = disk / "b"
    old.write_text("old")
    fill(disk, leave)
    with pytest.raises(UserError, match="^writing .*a.bin failed: No space left on device$"), atomic_path(old) as part:
        write(part)
    with pytest.raises(UserError, match="^writing .*b failed: No space left on device$"), atomic_folder(new) as part:
        write(part / "b.bin")
    assert sorted(os.listdir(disk)) == ["a.bin", "filler"]
    assert old.read_text() == "old"


def test_torchs_own_words_are_kept_where_the_disk_is_sound(tmp_path: Path):
    words = "PytorchStreamWriter failed"
    with (
        pytest.raises(UserError, match="writing .*a.pt failed: PytorchStreamWriter failed"),
        atomic_path(tmp_path / "a.pt"),
    ):
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="^a defect$"), atomic_path(tmp_path / "a.pt"):
        raise RuntimeError("a defect")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------ groups


def write_group(folder: Path, text: str, size: int = 1, fail: BaseException | None = None) -> None:
    """A video, a folder of frames and the record that tells of both."""
    with atomic_group(record=folder / "a.json") as new:
        write_text(new(folder / "a.mp4"), text * size)
        with atomic_folder(new(folder / "a")) as frames:
            (frames / f"{text}.png").write_text(text)
        write_json(new(folder / "a.json"), {"text": text})
        assert not (folder / "a.json").exists() or read_group(folder) == "old"
        if fail is not None:
            raise fail


def read_group(folder: Path) -> str:
    """What all of a group hold."""
    text = read_json(folder / "a.json")["text"]
    assert (folder / "a.mp4").read_text() == text
    assert os.listdir(folder / "a") == [f"{text}.png"]
    return text


def test_a_group_appears_whole_and_is_replaced_whole(tmp_path: Path):
    for text in ("old", "new"):
        write_group(tmp_path / "outputs", text)
        assert read_group(tmp_path / "outputs") == text
        assert sorted(os.listdir(tmp_path / "outputs")) == ["a", "a.json", "a.mp4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("bad"), ValueError("defect")])
def test_an_exception_leaves_the_old_group(tmp_path: Path, error: BaseException):
    write_group(tmp_path, "old")
    with pytest.raises(type(error)):
        write_group(tmp_path, "new", fail=error)
    assert read_group(tmp_path) == "old"
    assert sorted(os.listdir(tmp_path)) == ["a", "a.json", "a.mp4"]


def test_a_full_disk_leaves_the_old_group_with_its_record(disk: Path):
    write_group(disk, "old")
    fill(disk, leave=8192)
    with pytest.raises(UserError, match=r"^writing \S*/disk/a.mp4 failed: No space left on device$"):
        write_group(disk, "new", size=100_000)
    assert read_group(disk) == "old"
    assert sorted(os.listdir(disk)) == ["a", "a.json", "a.mp4", "filler"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("step", range(1, 7))
def test_an_interruption_at_any_step_of_the_exchange_leaves_the_old_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, before: bool
):
    """Six moves: the record away; for video and folder the old one away, the new one in; the new record in.

    The exception comes just before or just after a move, as a signal does.
    """
    write_group(tmp_path, "old")
    parts, moves = prepared(tmp_path), []

    def move(source, target, original=os.replace):
        moves.append(target)
        if len(moves) != step:
            original(source, target)
            return
        if not before:
            original(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", move)
    with pytest.raises(KeyboardInterrupt):
        _take_places(parts, tmp_path / "a.json")
    assert read_group(tmp_path) == "old"


def prepared(folder: Path) -> dict[Path, Path]:
    """The finished parts of a new group, in the order in which they take their places."""
    parts = {folder / name: Writer.present().part(folder / name) for name in ("a.mp4", "a", "a.json")}
    parts[folder / "a.mp4"].write_text("new")
    parts[folder / "a"].mkdir()
    (parts[folder / "a"] / "new.png").write_text("new")
    parts[folder / "a.json"].write_text('{"text": "new"}')
    return parts


def test_a_file_takes_no_folders_place_in_a_group(tmp_path: Path):
    (tmp_path / "a.mp4").mkdir()
    (tmp_path / "a.mp4" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="writing .*a.mp4 .*failed: Is a directory"):
        write_group(tmp_path, "new")
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4" / "mine.txt").read_text() == "mine"


KILLED = """
import os, signal, sys
from pathlib import Path
from animatediff.files import atomic_group, write_json, write_text
folder, moves = Path(sys.argv[1]), int(sys.argv[2])
done, replace = [], os.replace
def move(source, target):
    replace(source, target)
    done.append(target)
    if len(done) == moves:
        os.kill(os.getpid(), signal.SIGKILL)
with atomic_group(record=folder / "a.json") as new:
    write_text(new(folder / "a.mp4"), "new")
    write_json(new(folder / "a.json"), {"text": "new"})
    os.replace = move
"""


@pytest.mark.parametrize("moves", [1, 2, 3])
def test_a_kill_during_the_exchange_never_leaves_a_record_of_something_else(
    tmp_path: Path, moves: int, repository: Path
):
    """Killed after the record went, after the old video went, after the new one came: it counts as unfinished."""
    write_json(tmp_path / "a.json", {"text": "old"})
    (tmp_path / "a.mp4").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(moves)], check=False, cwd=repository)
    assert killed.returncode == -signal.SIGKILL
    remove_stale_parts(tmp_path)
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == ("old" if moves < 3 else "new")
