"""Writing files so that a kill, a full disk or an error leaves either the whole new file or the old one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from animatediff.errors import UserError, describe_os_error


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


def remove_stale_parts(folder: str | Path) -> None:
    """Delete temporary files and folders that killed processes left in `folder` (their process no longer runs)."""
    for part in Path(folder).glob(".part-*"):
        pid = part.name.split("-")[1]
        if not pid.isdigit() or _alive(int(pid)):
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


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
