"""The one exception that a person at the command line is meant to read."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

INTERRUPTED = 128 + signal.SIGINT


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


def run_command(main: Callable[[], int]) -> None:
    """Run a command's `main` and exit with its status.

    UserError becomes one line on stderr and status 2; Ctrl-C one line and status 130. Anything else is a
    defect of ours and keeps its traceback.
    """
    try:
        status = main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted: whatever was finished is kept", file=sys.stderr)
        status = INTERRUPTED
    sys.exit(status)
