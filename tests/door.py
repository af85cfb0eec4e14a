"""What every door for things from outside promises: a checked value, or a refusal of one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from animatediff.errors import UserError

T = TypeVar("T")


def through(door: Callable[[], T]) -> T | str:
    """What `door` gives, or the message of its UserError, which is one line that any terminal and file takes."""
    try:
        return door()
    except UserError as error:
        message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1
    message.encode()
    return message
