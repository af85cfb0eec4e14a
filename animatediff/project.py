"""Where this project's own files lie: configs/, models/ and assets/ beside the code, or inside an installed package."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from animatediff.files import is_there

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent
INSTALLED = _PACKAGE / "share"  # where a wheel puts configs/, models/miniature and assets/
PROJECT = INSTALLED if INSTALLED.is_dir() else _PACKAGE.parent


def locate(path: str) -> str:
    """`path`, or, where nothing lies there, the same path in this project's folder if something lies there."""
    return str(PROJECT / path) if path and not is_there(path) and is_there(PROJECT / path) else path


def located(files: T) -> T:
    """A copy of a dataclass of paths, each found by `locate`: its fields *_path (text) and *_paths (lists)."""
    changes: dict[str, Any] = {}
    for entry in fields(files):  # type: ignore[arg-type]
        value = getattr(files, entry.name)
        if entry.name.endswith("_path"):
            changes[entry.name] = locate(value)
        elif entry.name.endswith("_paths"):
            changes[entry.name] = [locate(path) for path in value]
    return replace(files, **changes)  # type: ignore[type-var]
