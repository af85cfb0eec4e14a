"""What every command shares: one-line errors, exit statuses, an orderly end on Ctrl-C and SIGTERM."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType
from typing import Any, NoReturn

from animatediff.errors import UserError
from animatediff.project import PROGRAMS, as_called


class Parser(argparse.ArgumentParser):
    """The command line of `efficientmt WORD`, which is also a program of the checkout: told of as the user called it,
    mistakes in one line.
    """

    def __init__(self, word: str, description: str | None, **settings: Any) -> None:
        super().__init__(
            prog=as_called(f"python {PROGRAMS[word]}"),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **settings,
        )

    def format_help(self) -> str:
        """The help, which names other commands, too, as they can be typed here."""
        return as_called(super().format_help())

    def error(self, message: str) -> NoReturn:
        """UserError in place of argparse's usage and exit."""
        raise UserError(f"{message}; see {self.prog} --help")


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
    for library in ("transformers", "diffusers"):
        wish = os.environ.setdefault(f"{library.upper()}_VERBOSITY", "error")  # read by the library when it is imported
        logging = sys.modules.get(f"{library}.utils.logging")
        if logging is not None and wish in logging.log_levels:
            logging.set_verbosity(logging.log_levels[wish])


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
