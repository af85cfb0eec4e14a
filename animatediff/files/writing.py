"""Writing files so that a kill, a full disk or an error leaves either the whole new file or the old one."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from animatediff.errors import UserError, describe_os_error, find_disk_fault, one_line
from animatediff.files.parts import Writer, final_path, remove
from animatediff.files.paths import is_folder

_TORCH_WRITER = ("PytorchStreamWriter", "unexpected pos", "inline_container")  # how torch says that it cannot write


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix); on success, synced to disk, it takes the place of `path`.

    Leaving the block through an exception removes the temporary file and leaves `path` as it was. Parent folders
    are made. An OSError (disk full, no permission, read-only), or what torch, safetensors and Pillow raise in its
    stead, becomes a UserError that names `path`.
    """
    path = Path(path)
    part = Writer.present().part(path)
    with _told(path, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        _sync(part)
        os.replace(part, path)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `folder`; on success, synced to disk, it takes the place of `folder`.

    As `atomic_path` otherwise. A kill while the two folders change places leaves the old one aside, where
    `remove_stale_parts` finds it.
    """
    folder = Path(folder)
    part = Writer.present().part(folder)
    with _told(folder, part):
        _check_kind(folder, folder=True)
        part.mkdir(parents=True)
        yield part
        _sync(part)
        _take_places({folder: part})


@contextmanager
def atomic_group(record: str | Path) -> Iterator[Callable[[str | Path], Path]]:
    """For files and folders that belong together, such as a video and the `record` that says how it was made.

    Yields a function: `new(path)` is where to write what is to become `path`, by save_video, save_frames, write_json
    and their like. On success everything written so takes its place, `record` last; the old record goes before the
    first of them, so that no record ever stands beside what it does not tell of. Leaving the block through an
    exception (disk full) leaves everything as it was. UserError where something cannot take its place.
    """
    record, writer = Path(record), Writer.present()
    parts: dict[Path, Path] = {}

    def new(path: str | Path) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return parts.setdefault(path, writer.part(path))

    try:
        yield new
        last = parts.pop(record)
        parts[record] = last
        try:
            for part in parts.values():
                _sync(part)
            _take_places(parts, record)
        except OSError as error:
            raise describe_os_error(error, f"writing {next(iter(parts))} and what belongs to it") from error
    finally:
        for part in parts.values():
            remove(part)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically, line ends as they are; halves of surrogate pairs become escapes."""
    with atomic_path(path) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write `rows` as JSON Lines, atomically."""
    write_text(path, "".join(to_json(row) + "\n" for row in rows))


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that every reader takes.

    NaN and infinity are null; bytes of a file name that are no UTF-8 (halves of surrogate pairs in Python) are escapes.
    """
    text = json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _told(path: Path, part: Path) -> Iterator[None]:
    """Whatever stops the writing of `path` as a UserError; `part` is gone afterwards."""
    try:
        yield
    except UserError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        doing = f"writing {final_path(path)}"
        fault = find_disk_fault(error)
        if isinstance(error, OSError) and error.errno:
            raise describe_os_error(fault or error, doing) from error
        fault = fault or _stopped_by(part)
        if fault is not None:
            raise describe_os_error(fault, doing) from error
        if isinstance(error, RuntimeError) and not any(word in str(error) for word in _TORCH_WRITER):
            raise  # a defect, not the disk
        raise UserError(f"{doing} failed: {one_line(error)[:160]}") from error
    finally:
        remove(part)


def _stopped_by(part: Path) -> OSError | None:
    """Why no more can be written to `part`, which is given up: libraries that fail there keep it to themselves."""
    try:
        with open(part / "more" if is_folder(part) else part, "ab") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _check_kind(path: Path, folder: bool) -> None:
    """OSError where a file would take a folder's place, or a folder a file's."""
    if os.path.lexists(path) and is_folder(path) != folder:
        code = errno.ENOTDIR if folder else errno.EISDIR
        raise OSError(code, os.strerror(code))


def _sync(path: Path) -> None:
    """Have the system bring a file, or all files of a folder, to the disk. OSError where there is no such file."""
    for file in [entry for entry in path.rglob("*") if entry.is_file()] if is_folder(path) else [path]:
        with open(file, "r+b") as written:  # Windows syncs no handle that is open for reading only
            os.fsync(written.fileno())


def _take_places(parts: Mapping[Path, Path], record: Path | None = None) -> None:
    """Move every finished part to its path, in their order; what was there is deleted once all are in place.

    An old `record` goes first. After an exception everything is as it was; after a kill `remove_stale_parts` puts back
    what had gone aside, except the record, which no longer tells of what lies beside it.
    """
    writer = Writer.present()
    moved: list[tuple[Path, Path]] = []  # (where to, where from)

    def move_away(path: Path, place: Path) -> None:
        if os.path.lexists(path):
            moved.append((place, path))
            os.replace(path, place)

    for path, part in parts.items():
        _check_kind(path, folder=is_folder(part))
    try:
        if record is not None:
            move_away(record, writer.part(record))
        for path, part in parts.items():
            move_away(path, writer.aside(path))
            os.replace(part, path)
    except BaseException:
        for path, part in parts.items():
            if not os.path.lexists(part):
                remove(path)
        for place, path in reversed(moved):
            with suppress(FileNotFoundError):  # the move itself was interrupted
                os.replace(place, path)
        raise
    for place, _ in moved:
        remove(place)
