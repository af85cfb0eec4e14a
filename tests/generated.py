"""What a generated input must give: the right result, or a UserError of one line; nothing else."""

from collections.abc import Callable
from typing import TypeVar

from animatediff.errors import UserError

T = TypeVar("T")


def right_or_one_line(read: Callable[[], T]) -> T | None:
    """What `read` gives, or None where it raises a UserError, whose message must be one line that can be shown."""
    try:
        return read()
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == 1, message
    assert message.isprintable(), ascii(message)
    return None
