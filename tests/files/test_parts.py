"""Whose a temporary file is, and which leftovers are cleared away: those of writers that are proven dead."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from animatediff.files import atomic_path, remove_stale_parts
from animatediff.files.parts import Writer, final_path

HERE = Writer.present()
LONG_AGO = psutil.boot_time() - 1000


@pytest.fixture(scope="module")
def dead() -> Writer:
    """A process of this host that has ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return replace(HERE, pid=gone.pid)


def leave(part: Path, text: str = "x", changed: float | None = None) -> Path:
    part.write_text(text)
    if changed is not None:
        os.utime(part, (changed, changed))
    return part


def test_the_name_tells_host_boot_and_process_and_never_repeats(tmp_path: Path):
    path = tmp_path / "a b.mp4"
    first, second = HERE.part(path), HERE.part(path)
    assert first != second
    assert first.name.startswith(f".part-{HERE.host}-{HERE.boot}-{os.getpid()}-")
    assert first.name.endswith("-a b.mp4")
    assert final_path(first) == final_path(HERE.aside(path)) == final_path(path) == path


def test_two_writers_of_one_path_do_not_meet(tmp_path: Path):
    with atomic_path(tmp_path / "a.txt") as one, atomic_path(tmp_path / "a.txt") as other:
        one.write_text("one")
        other.write_text("other")
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "one"


@pytest.mark.parametrize("name", ["x" * 251 + ".mp4", "é" * 125 + ".mp4"])
def test_a_name_of_full_length_can_be_written(tmp_path: Path, name: str):
    with atomic_path(tmp_path / name) as part:
        assert part.suffix == ".mp4"
        part.write_text("x")
    assert os.listdir(tmp_path) == [name]


def test_only_what_is_proven_dead_is_removed(tmp_path: Path, dead: Writer):
    """Parts of: a process that runs, other hosts and containers (a number there says nothing here), an earlier boot."""
    other_host = replace(dead, host="0" * 8)
    other_boot = replace(HERE, boot="0" * 8)
    kept = [
        leave(HERE.part(tmp_path / "mine.mp4")),
        leave(replace(HERE, pid=os.getppid()).part(tmp_path / "parent's.mp4"), changed=LONG_AGO),
        leave(other_host.part(tmp_path / "other host's.mp4"), changed=LONG_AGO),
        leave(replace(other_host, boot="0" * 8).part(tmp_path / "another's boot.mp4"), changed=LONG_AGO),
        leave(other_boot.part(tmp_path / "written since this boot.mp4")),
        leave(tmp_path / f".part-{dead.pid}-no name of ours.mp4"),
        leave(tmp_path / "a.mp4"),
    ]
    leave(dead.part(tmp_path / "dead.mp4"))
    leave(other_boot.part(tmp_path / "before this boot.mp4"), changed=LONG_AGO)
    folder = dead.part(tmp_path / "frames")
    folder.mkdir()
    (folder / "00000.png").write_text("x")
    remove_stale_parts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    remove_stale_parts(tmp_path / "no such folder")


def test_a_kill_while_folders_change_places_loses_neither(tmp_path: Path, dead: Writer):
    def aside(writer: Writer, name: str, text: str) -> None:
        writer.aside(tmp_path / name).mkdir()
        next(tmp_path.glob(f".old-*-{name}")).joinpath("a.txt").write_text(text)

    aside(dead, "adapter-1", "the only one")
    aside(dead, "other", "replaced already")
    aside(HERE, "third", "in use")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("new")
    leave(dead.aside(tmp_path / "a.mp4"), "the only one, too")
    remove_stale_parts(tmp_path)
    names = sorted(os.listdir(tmp_path))
    assert names[0].startswith(f".old-{HERE.host}-{HERE.boot}-{HERE.pid}-")
    assert names[1:] == ["a.mp4", "adapter-1", "other"]
    assert (tmp_path / "adapter-1" / "a.txt").read_text() == "the only one"
    assert (tmp_path / "other" / "a.txt").read_text() == "new"
    assert (tmp_path / "a.mp4").read_text() == "the only one, too"


def test_no_signal_asks_whether_a_process_runs(tmp_path: Path, dead: Writer, monkeypatch: pytest.MonkeyPatch):
    """On Windows os.kill(pid, 0) ends the process. How psutil asks there was not run here: its POSIX way sends one."""
    asked = []
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: asked.append(pid) or False)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
    part = leave(dead.part(tmp_path / "a.mp4"))
    remove_stale_parts(tmp_path)
    assert asked == [dead.pid]
    assert not part.exists()


CONTAINER = "from animatediff.files.parts import Writer; print(Writer.present().host, Writer.present().boot)"


def test_a_container_on_this_host_is_another_host(repository: Path):
    """A process in a namespace of numbers of its own, as containers are; its boot is this one's."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", CONTAINER]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository)
    except OSError:
        pytest.skip("there is no unshare here")
    if "unshare" in ended.stderr:
        pytest.skip("a namespace of its own takes more rights than this user has")
    assert ended.returncode == 0, ended.stderr
    host, boot = ended.stdout.split()
    assert host != HERE.host
    assert boot == HERE.boot
