"""What every command shares: one-line errors, exit statuses, an orderly end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from animatediff.errors import UserError


class Interrupted(KeyboardInterrupt):
    """A signal that asks the command to end; raised wherever the program is, so that whatever is unfinished is
    cleaned away as after any exception.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run_command(main: Callable[[], int]) -> None:
    """Run a command's `main` and exit with its status.

    UserError becomes one line on stderr and status 2, or its own; Ctrl-C one line and status 130, SIGTERM one line and
    143. Anything else is a defect of ours and keeps its traceback.
    """
    quiet_libraries()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a terminal cannot show ends no command
            stream.reconfigure(errors="backslashreplace")
    try:
        with _signals_raise():
            status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = error.status
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        how = "interrupted" if number == signal.SIGINT else "terminated"
        print(f"{how}: whatever was finished is kept", file=sys.stderr)
        status = 128 + number
    sys.exit(status)


def quiet_libraries() -> None:
    """Have the libraries say errors only, unless the user asks for more: what must be known, a command says itself."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for name, module in (("TRANSFORMERS", transformers_logging), ("DIFFUSERS", diffusers_logging)):
        level = module.log_levels.get(os.environ[f"{name}_VERBOSITY"])
        if level is not None:
            module.set_verbosity(level)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT and SIGTERM raise Interrupted, once: a second one does not disturb the clean-up that the first began, a
    third ends the process. Once the clean-up is over any further one ends it, without a traceback.
    """
    main_thread = threading.current_thread() is threading.main_thread()  # no other may set handlers
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if main_thread and signal.getsignal(n) != signal.SIG_IGN]
    came: list[int] = []

    def raise_once(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise Interrupted(number)
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, raise_once) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if came else handler)
