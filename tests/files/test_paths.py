"""Text becomes a path, or is refused in one line; questions about paths never raise."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animatediff.errors import UserError
from animatediff.files import (
    atomic_path,
    check_readable,
    check_writable,
    is_file,
    is_folder,
    is_there,
    read_json,
    to_path,
    to_text,
)
from tests.door import through

LATIN_1 = os.fsdecode(b"caf\xe9.mp4")
BAD = {
    "empty": ("", "ckpt_path is empty"),
    "NUL": ("a\0b", r"ckpt_path is 'a\\x00b', which holds a NUL"),
    "half a character": ("\ud800.mp4", r"ckpt_path is '\\ud800.mp4', which no file system can encode"),
    "long name": ("a/" + "x" * 256, "with a name of 256 bytes; a file system takes 255"),
    "long name in UTF-8": ("é" * 128, "with a name of 256 bytes"),
    "long path": ("ab/" * 1334, "a path of 4002 bytes; at most 4000"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=list(BAD))
def test_what_no_file_system_takes_is_refused(text: str, message: str):
    with pytest.raises(UserError, match=message) as error:
        to_path(text, "ckpt_path")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200
    assert not any(ask(text) for ask in (is_there, is_file, is_folder) if text)


@pytest.mark.parametrize("text", ["a.mp4", "x" * 255, "ab/" * 1333, LATIN_1, "a b/\u2028é", "-", "~"])
def test_what_a_file_system_may_hold_is_a_path(text: str):
    assert to_path(text) == Path(text)


def test_names_that_are_not_utf8_on_disk_are_found(tmp_path: Path):
    path = to_path(str(tmp_path / LATIN_1))
    with atomic_path(path) as part:
        part.write_text("{}")
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9.mp4"]
    assert is_file(path)
    assert read_json(path) == {}


def test_text_that_cannot_be_written():
    assert to_text("a 🦊, ok #2 ${seed}") == "a 🦊, ok #2 ${seed}"
    with pytest.raises(UserError, match=r"prompt is 'a \\udce9', which holds half a character"):
        to_text("a \udce9", "prompt")
    with pytest.raises(UserError, match="prompt is .* NUL"):
        to_text("a\0", "prompt")


def test_what_can_be_read(tmp_path: Path):
    (tmp_path / "a.mp4").write_text("x")
    assert check_readable(str(tmp_path / "a.mp4")) == tmp_path / "a.mp4"
    assert check_readable(tmp_path) == tmp_path
    with pytest.raises(UserError, match="ref_video_path is '.*/b.mp4', but nothing lies there"):
        check_readable(tmp_path / "b.mp4", "ref_video_path")
    with pytest.raises(UserError, match=r"reading .*a.mp4/b \(ref_video_path\) failed: Not a directory"):
        check_readable(tmp_path / "a.mp4" / "b", "ref_video_path")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="failed: Too many levels of symbolic links"):
        check_readable(tmp_path / "loop")
    assert not is_there(tmp_path / "loop")


def test_what_can_be_written(tmp_path: Path):
    assert check_writable(tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        UserError, match=r"nothing can be written to .*: .*/file is a file; choose another for output_dir"
    ):
        check_writable(tmp_path / "file" / "folder", "output_dir")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match="dangling/a .* failed: No such file or directory"):
        check_writable(tmp_path / "dangling" / "a", "output_dir")


AS_NOBODY = """
import os, sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from animatediff.errors import UserError
from animatediff.files import check_readable, check_writable, is_there, remove_stale_parts, write_json
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
locked = Path(sys.argv[1])
print(is_there(locked / "a.mp4"))
remove_stale_parts(locked)
for ask in (check_readable, check_writable, lambda path: write_json(path, {})):
    for path in (locked, locked / "a.mp4"):
        try:
            ask(path)
        except UserError as error:
            print(error)
"""


def test_a_folder_without_permission_is_one_line(tmp_path: Path, repository: Path):
    """In a process of its own, which gives up root's rights."""
    root = next(parent for parent in tmp_path.parents if parent.name.startswith("pytest-of-"))
    for parent in (tmp_path, *tmp_path.parents):
        if parent.is_relative_to(root):
            parent.chmod(0o755)
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "a.mp4").write_text("x")
    locked.chmod(0)
    command = [sys.executable, "-c", AS_NOBODY, str(locked), str(repository), *sys.path[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    locked.chmod(0o755)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "False"
    assert lines[1:] == [
        f"reading {locked} (the path) failed: Permission denied",
        f"reading {locked}/a.mp4 (the path) failed: Permission denied",
        f"nothing can be written to {locked}: {locked} cannot be written; choose another for the folder",
        f"looking at {locked}/a.mp4 (the folder) failed: Permission denied",
        f"writing {locked} failed: Permission denied",
        f"writing {locked}/a.mp4 failed: Permission denied",
    ]


ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=300)


@given(ANY_TEXT | st.lists(ANY_TEXT, max_size=40).map("/".join))
def test_any_text_is_a_path_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str):
    """What passes can be asked of the system: it answers, and may only say that nothing lies there."""
    for ask in (is_there, is_file, is_folder):
        ask(text)
    path = through(lambda: to_path(text, "ref_video_path"))
    if isinstance(path, str):
        assert path.startswith("ref_video_path is ")
    else:
        with suppress(FileNotFoundError):
            (tmp_path_factory.getbasetemp() / "nowhere" / path.relative_to(path.anchor)).lstat()
    through(lambda: check_readable(text))
    through(lambda: check_writable(text))
