"""Temporary files and folders: names that say whose they are, and clearing up after writers that are proven dead."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from animatediff.files.paths import MAX_NAME

# .part-<host>-<boot>-<process>-<random>-<name>: not finished. .old-...: about to be replaced.
_NAME = re.compile(
    r"\.(part|old)-(?P<host>[0-9a-f]{8})-(?P<boot>[0-9a-f]{8})-(?P<pid>\d+)-(?P<random>[0-9a-f]{8})-(?P<name>.+)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Writer:
    """A process as the name of a temporary file tells it: its host, the host's boot and its number there.

    Containers of one machine are hosts of their own, since a number counts within one container only.
    """

    host: str
    boot: str
    pid: int

    @classmethod
    def present(cls) -> Writer:
        """This process."""
        return cls(*_here(), os.getpid())

    def part(self, path: Path) -> Path:
        """A new name beside `path`, with its suffix, for what is not finished."""
        return self._beside(path, "part", whole=False)

    def aside(self, path: Path) -> Path:
        """A new name beside `path` for what is about to be replaced; OSError where `path`'s own is too long for it."""
        return self._beside(path, "old", whole=True)

    def is_dead(self, changed: float) -> bool:
        """Whether it is certain that this process is gone; `changed`: when its file last was (seconds, st_mtime).

        It is where the process ran on this very host, and there either has gone since, or wrote last before the host
        was started anew.
        """
        host, boot = _here()
        if self.host != host:
            return False
        if self.boot != boot:
            return changed < psutil.boot_time()
        return not psutil.pid_exists(self.pid)  # which sends no signal on Windows, where signal 0 kills

    def _beside(self, path: Path, kind: str, whole: bool) -> Path:
        start = f".{kind}-{self.host}-{self.boot}-{self.pid}-{secrets.token_hex(4)}-"
        name = os.fsencode(path.name)
        room = MAX_NAME - len(start)
        if len(name) > room and whole:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        end = name[-room:].decode("utf-8", "ignore") if len(name) > room else path.name
        return path.with_name(start + end)


def final_path(path: Path) -> Path:
    """Where a temporary `path` is to end up; any other is its own end."""
    found = _NAME.fullmatch(path.name)
    return path.with_name(found["name"]) if found else path


def remove_stale_parts(folder: str | Path) -> None:
    """Clear up in `folder` after writers that are proven dead (`Writer.is_dead`); never raises.

    Their temporary files and folders are deleted; what one was about to replace is put back.
    """
    folder = Path(folder)
    with suppress(OSError):  # no such folder, or not ours to look into
        for entry in list(os.scandir(folder)):
            found = _NAME.fullmatch(entry.name)
            if found is None:
                continue
            writer = Writer(found["host"], found["boot"], int(found["pid"]))
            with suppress(OSError):  # another process was quicker
                if not writer.is_dead(entry.stat(follow_symlinks=False).st_mtime):
                    continue
                left = Path(entry.path)
                if found[1] == "old":
                    restore(left, folder / found["name"])
                else:
                    remove(left)


def restore(aside: Path, path: Path) -> None:
    """Put back what went `aside` from `path` and whose successor never came; delete it where one did."""
    if os.path.lexists(path):
        remove(aside)
    else:
        os.replace(aside, path)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder, as far as that can be done."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@cache
def _here() -> tuple[str, str]:
    """(host, boot) as eight hexadecimal digits each."""
    machine = _read("/etc/machine-id")
    namespace = ""  # of process numbers: each container has one
    with suppress(OSError):
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    boot = _read("/proc/sys/kernel/random/boot_id") or str(round(psutil.boot_time()))
    return _digits(f"{socket.gethostname()} {machine} {namespace}"), _digits(boot)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]
