"""The one exception that a person at the command line is meant to read, and the words it is made of."""

from __future__ import annotations

import difflib
import errno
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence

# What stops a writer and is no mistake of the program: full, over quota, over a size limit, broken, read-only.
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class UserError(ValueError):
    """A mistake that the person who typed the command can mend.

    The message is made one line: the offending value, what was expected, what to do.
    """

    status = 2  # with which a command ends

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))


def one_line(text: object) -> str:
    """`text` in one line that any terminal shows: white space is one space, control characters and halves of
    surrogate pairs are written as escapes.
    """
    return "".join(map(_visible, " ".join(str(text).split())))


def shown(value: object, length: int = 80) -> str:
    """`value` as an error message quotes it: one line of at most `length` characters."""
    text = one_line(f"'{value}'" if isinstance(value, str) else value)
    return text if len(text) <= length else f"{text[: length - 3]}..."


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint that names the known name nearest to `name`, or lists them all when none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def describe_os_error(error: OSError, doing: str) -> UserError:
    """The one-line form of an operating-system error met while `doing` something ("writing out.mp4")."""
    error = find_disk_fault(error) or error
    return UserError(f"{doing} failed: {os.strerror(error.errno) if error.errno else error}")


def find_disk_fault(error: BaseException) -> OSError | None:
    """The full disk, or its like, behind an exception: itself, its cause, or what its message tells of one.

    Libraries raise classes of their own for it (safetensors: "... (os error 28)"); None where nothing says so.
    """
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in DISK_FAULTS:
            return link
        told = re.search(r"\(os error (\d+)\)", str(link))
        for code in DISK_FAULTS:
            if (told and int(told[1]) == code) or os.strerror(code) in str(link):
                return OSError(code, os.strerror(code))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it was raised from or while handling."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _visible(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cs"):
        return character
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
