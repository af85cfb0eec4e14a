"""The environment of mediapipe: found, or made once where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub.utils import WeakFileLock

from animatediff.errors import UserError, describe_os_error, one_line
from animatediff.files import is_file, write_json

VERSION = "0.10.21"
PYTHONS = ((3, 12), (3, 11), (3, 10), (3, 9))  # those that it is published for
REQUIREMENTS = (
    *("numpy==1.26.4", "opencv-python-headless==4.11.0.86", "protobuf>=4.25.3,<5"),
    *("absl-py>=2.1", "attrs>=23.1", "flatbuffers>=2.0", "matplotlib>=3.7,<4"),
)
FINISHED = "finished.json"  # in an environment that is whole


def environment_folder() -> Path:
    """Where the environment lies: in the user's folder for caches."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(caches) / "efficientmt" / f"mediapipe-{VERSION}"


def is_ready() -> bool:
    """Whether the environment is there, whole."""
    return is_file(environment_folder() / FINISHED)


def find_environment(make: bool, say: Callable[[str], None] = lambda line: None) -> Path:
    """The environment's interpreter; where it is not there and `make` allows it, it is made first.

    UserError where it may not be made, where no interpreter is here that mediapipe supports, or where pip fails.
    """
    folder = environment_folder()
    if not is_ready():
        if not make:
            raise UserError(
                f"mediapipe {VERSION} is not set up here; `efficientmt prepare` in a terminal sets it up, once"
            )
        _make(folder, say)
    return _python(folder)


def _make(folder: Path, say: Callable[[str], None]) -> None:
    interpreter = find_interpreter()
    if interpreter is None:
        versions = ", ".join(f"{major}.{minor}" for major, minor in reversed(PYTHONS))
        raise UserError(
            f"mediapipe {VERSION} runs on Python {versions}, and none of them is found here; install one, or give "
            "your own keypoints and masks"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder.with_suffix(".lock")):
            if is_ready():  # another process has made it meanwhile
                return
            say(f"setting up mediapipe {VERSION} in {folder}, once (about 400 MB)")
            shutil.rmtree(folder, ignore_errors=True)
            _call([interpreter, "-m", "venv", str(folder)])
            pip = [str(_python(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _call([*pip, *REQUIREMENTS])
            _call([*pip, "--no-deps", f"mediapipe=={VERSION}"])  # its other requirements serve what is not used here
            write_json(folder / FINISHED, {"mediapipe": VERSION, "interpreter": interpreter})
    except OSError as error:
        raise describe_os_error(error, f"making {folder}") from error


def find_interpreter() -> str | None:
    """An interpreter that mediapipe supports: this one, or one that the shell finds."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    for major, minor in PYTHONS:
        found = shutil.which(f"python{major}.{minor}")
        if found and _version(found) == (major, minor):
            return found
    return None


def _version(interpreter: str) -> tuple[int, ...] | None:
    command = [interpreter, "-c", "import sys, venv; print(*sys.version_info[:2])"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return tuple(int(part) for part in told.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).strip().splitlines() if line.strip()] or ["no word"]
        wrong = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise UserError(
            f"setting up mediapipe {VERSION} failed ({one_line(wrong)[:200]}); check the network and repeat, or give "
            "your own keypoints and masks"
        )
