"""Whole or not at all: temporary files, their leftovers, JSON and JSON Lines."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from animatediff.errors import UserError
from animatediff.files import atomic_path, read_json, read_jsonl, remove_stale_parts, write_json


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


def test_only_parts_of_processes_that_are_gone_are_removed(tmp_path: Path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept = [f".part-{os.getpid()}-a.mp4", ".part-notanumber-a.mp4", "a.mp4"]
    for name in [*kept, f".part-{gone.pid}-b.mp4"]:
        (tmp_path / name).write_text("x")
    (tmp_path / f".part-{gone.pid}-frames").mkdir()
    (tmp_path / f".part-{gone.pid}-frames" / "00000.png").write_text("x")
    remove_stale_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_stale_parts(tmp_path / "no such folder")


def test_json_keeps_every_character(tmp_path: Path):
    value = {"prompt": "a 🦊\n“fox”", "seeds": [1, 2], "none": None}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_json_lines(tmp_path: Path):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes('\ufeff{"prompt": "one\u2028line"}\r\n\n  \n{"prompt": "two"}'.encode())
    assert read_jsonl(path) == [(1, {"prompt": "one\u2028line"}), (4, {"prompt": "two"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": }', r"jobs.jsonl line 2 is not valid JSON \("),
        (b'["a"]', "jobs.jsonl line 1 is list, expected a JSON object"),
        (b"\xff\xfe\x00", "jobs.jsonl is not UTF-8 text"),
        (b"[" * 100_000, "jobs.jsonl line 1 is not valid JSON"),
    ],
)
def test_bad_json_lines(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_jsonl(path)


def test_missing_and_broken_json(tmp_path: Path):
    with pytest.raises(UserError, match="reading .*a.json failed: No such file or directory"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="reading .*a.jsonl failed: No such file or directory"):
        read_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="a.json is not valid JSON"):
        read_json(tmp_path / "a.json")
