"""The methods, by name: the one table. A new method is one folder beside this file and one line below."""

from __future__ import annotations

from animatediff.errors import UserError, nearest
from animatediff.pipelines.method import Method
from animatediff.tables import Table

__all__ = ["METHODS", "Method", "Methods", "method_named"]


class Methods(Table[Method]):
    """A mapping name -> Method."""


def method_named(name: str) -> Method:
    """The method of that name; UserError, with the nearest known one, where there is none."""
    if name not in METHODS:
        raise UserError(f"method is '{name}'; {nearest(name, list(METHODS))}")
    return METHODS[name]


METHODS = Methods(
    {
        "efficientmt": "animatediff.pipelines.efficientmt.method:METHOD",
        "motionclone": "animatediff.pipelines.motionclone.method:METHOD",
        "ditflow": "animatediff.pipelines.ditflow.method:METHOD",
        "motionfollower": "animatediff.pipelines.motionfollower.method:METHOD",
    }
)
