"""Where this project's own files lie, and what its commands are called: in a checkout, or as an installed package."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from animatediff.files import is_there

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent
INSTALLED = _PACKAGE / "share"  # where a wheel puts configs/, models/miniature and assets/
PROJECT = INSTALLED if INSTALLED.is_dir() else _PACKAGE.parent
PROGRAMS = {  # word after `efficientmt` -> the same command as a program of the checkout
    "infer": "inference.py",
    "demo": "scripts/demo.py",
    "train": "train.py",
    "evaluate": "scripts/evaluate.py",
    "pairs": "scripts/make_pairs.py",
    "prepare": "scripts/prepare.py",
    "download": "scripts/download_models.py",
    "convert": "scripts/convert_checkpoint.py",
    "benchmark": "scripts/benchmark.py",
    "export": "scripts/export.py",
}


def locate(path: str) -> str:
    """`path`, or, where nothing lies there, the same path in this project's folder if something lies there."""
    return str(PROJECT / path) if path and not is_there(path) and is_there(PROJECT / path) else path


def weights_guide() -> str:
    """What an error about a missing weight file says when no download is known for it."""
    return f"see {locate('models/README.md')} for what goes there"


def as_called(text: str) -> str:
    """`text`, which names programs of the checkout, as the user can type them.

    Unchanged in a checkout; `python scripts/evaluate.py` becomes `efficientmt evaluate` where the project is an
    installed package (it has no scripts/), or where that is the command that runs.
    """
    if not INSTALLED.is_dir() and Path(sys.argv[0]).stem != "efficientmt":
        return text
    for word, program in PROGRAMS.items():
        name = rf"\b(?:scripts/)?{re.escape(Path(program).name)}"
        text = re.sub(f"accelerate launch {name}", f"accelerate launch -m animatediff.command {word}", text)
        text = re.sub(f"(?:python )?{name}", f"efficientmt {word}", text)
    return text


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
