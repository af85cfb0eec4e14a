"""Text that became a path: refused where no file system takes it; questions about paths that never raise."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from animatediff.errors import UserError, describe_os_error, shown

MAX_NAME = 255  # bytes of one name between slashes
MAX_PATH = 4000  # bytes of a whole path; systems take 4095, and a temporary name beside it needs some of them


def to_path(text: str | os.PathLike[str], what: str = "the path") -> Path:
    """`text` as a path that some file system could hold; nothing is looked up.

    UserError, which calls it `what`, where it is empty, holds a NUL or half a surrogate pair, or where a name or the
    whole is too long. A name that is not UTF-8 on disk (Latin-1) passes as the system hands it over.
    """
    text = os.fspath(text)
    if not text:
        raise UserError(f"{what} is empty, expected a path")
    if "\0" in text:
        raise UserError(f"{what} is {shown(text)}, which holds a NUL character that no file system takes")
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is {shown(text)}, which no file system can encode; write it anew") from error
    path = Path(text)
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > MAX_NAME:
        raise UserError(f"{what} is {shown(text)}, with a name of {longest} bytes; a file system takes {MAX_NAME}")
    if size > MAX_PATH:
        raise UserError(f"{what} is {shown(text)}, a path of {size} bytes; at most {MAX_PATH} are taken")
    return path


def to_text(text: str, what: str = "the text") -> str:
    """`text` where it can be written as UTF-8 and holds no NUL: what tokenizers and files take; else UserError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is {shown(text)}, which holds half a character; write it anew") from error
    if "\0" in text:
        raise UserError(f"{what} is {shown(text)}, which holds a NUL character; take it out")
    return text


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether something lies at `path`; False too where that cannot be seen or no file system takes the name."""
    return os.path.exists(path)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file lies at `path`; never raises, as `is_there`."""
    return os.path.isfile(path)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a folder lies at `path`; never raises, as `is_there`."""
    return os.path.isdir(path)


def check_readable(path: str | os.PathLike[str], what: str = "the path") -> Path:
    """`path`, where it can be read: a file that opens, a folder that can be listed. UserError says what is amiss."""
    path = to_path(path, what)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            os.scandir(path).close()
        elif stat.S_ISREG(kind):
            open(path, "rb").close()
    except FileNotFoundError as error:
        raise UserError(f"{what} is {shown(str(path), 200)}, but nothing lies there") from error
    except OSError as error:
        raise describe_os_error(error, f"reading {path} ({what})") from error
    return path


def check_writable(folder: str | os.PathLike[str], what: str = "the folder") -> Path:
    """`folder`, where files could be written into it, be it that it must be made first; makes nothing.

    UserError where it, or the nearest folder above it that is there, is a file or may not be written.
    """
    folder = to_path(folder, what)
    try:
        above = next(parent for parent in (folder, *folder.absolute().parents) if _lies_there(parent))
        usable = above.is_dir()
    except OSError as error:
        raise describe_os_error(error, f"looking at {folder} ({what})") from error
    if not usable:
        raise UserError(f"nothing can be written to {folder}: {above} is a file; choose another for {what}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"nothing can be written to {folder}: {above} cannot be written; choose another for {what}")
    return folder


def _lies_there(path: Path) -> bool:
    """Whether something lies at `path`; OSError where that cannot be seen, or a link leads nowhere."""
    try:
        path.stat()
    except NotADirectoryError:
        return False
    except FileNotFoundError:
        if path.is_symlink():
            raise
        return False
    return True
