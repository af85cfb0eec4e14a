"""The one exception that a person at the command line is meant to read."""

from __future__ import annotations

import os


class UserError(ValueError):
    """A mistake that the person who typed the command can mend.

    The message is one line: the offending value, what was expected, what to do.
    """


def one_line(text: object) -> str:
    """`text` with every run of white space, newlines included, turned into one space."""
    return " ".join(str(text).split())


def describe_os_error(error: OSError, doing: str) -> UserError:
    """The one-line form of an operating-system error met while `doing` something ("writing out.mp4")."""
    return UserError(f"{doing} failed: {os.strerror(error.errno) if error.errno else error}")
