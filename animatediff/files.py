"""Writing files so that a kill, a full disk or an error leaves either the whole new file or the old one."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from animatediff.errors import UserError, describe_os_error, one_line


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); on success it takes the place of `path`.

    Leaving the block through an exception removes the temporary file and leaves `path` as it was. Parent folders
    are made. An OSError (disk full, no permission, read-only) becomes a UserError that names `path`.
    """
    path = Path(path)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    except OSError as error:
        raise describe_os_error(error, f"writing {path}") from error
    finally:
        with suppress(OSError):  # gone already, or never made
            part.unlink()


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `folder`; on success, synced to disk, it takes the place of `folder`.

    Leaving the block through an exception removes it and leaves `folder` as it was. Parent folders are made. An
    OSError, or what torch and safetensors raise in its stead, becomes a UserError that names `folder`. A kill while
    the two folders change places leaves the old one aside, where `remove_stale_parts` finds it.
    """
    folder = Path(folder)
    part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
    aside = folder.with_name(f".old-{os.getpid()}-{folder.name}")
    try:
        _recover(aside, folder)
        shutil.rmtree(part, ignore_errors=True)  # a killed process had this one's number
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        part.mkdir(parents=True)
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                with open(path, "rb") as written:
                    os.fsync(written.fileno())
        _take_place(part, folder, aside)
    except OSError as error:
        raise describe_os_error(error, f"writing {folder}") from error
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"writing {folder} failed: {one_line(error)[:160]}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_stale_parts(folder: str | Path) -> None:
    """Clear up in `folder` after killed processes, those that no longer run.

    Their temporary files and folders are deleted; a folder that one was about to replace is put back.
    """
    folder = Path(folder)
    for part in folder.glob(".part-*"):
        if _is_stale(part):
            _remove(part)
    for aside in folder.glob(".old-*-*"):
        if _is_stale(aside):
            _recover(aside, folder / aside.name.split("-", 2)[2])


def _take_place(new: Path, folder: Path, aside: Path) -> None:
    """Move `new` to `folder`; a `folder` already there goes `aside` and is deleted once the new one is in place."""
    if not folder.exists():
        os.replace(new, folder)
        return
    os.replace(folder, aside)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(aside, folder)
        raise
    _remove(aside)


def _recover(aside: Path, folder: Path) -> None:
    """Put back a folder that went `aside` and whose successor never came; delete it where one did."""
    with suppress(OSError):  # another process was quicker, or there is none
        if folder.exists():
            _remove(aside)
        else:
            os.replace(aside, folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_stale(path: Path) -> bool:
    """Whether the process whose number stands in the name (.part-<number>-...) is gone."""
    pid = path.name.split("-")[1]
    return pid.isdigit() and not _alive(int(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; UserError where it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error


def read_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """Read a JSON Lines file as (line number, object) pairs; blank lines are skipped.

    UserError names the line that is not a JSON object.
    """
    return [(number, parse_object(line, f"{path} line {number}")) for number, line in read_lines(path)]


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 text file that are not blank, with their numbers."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")  # splitlines() would also cut inside strings
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error})") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def parse_object(text: str, label: str) -> dict[str, Any]:
    """The JSON object that `text` holds; UserError, naming `label`, where it holds none."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{label} is not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"{label} is {type(row).__name__}, expected a JSON object")
    return row
