"""The methods, by name: the one table. A new method is one folder beside this file and one line below."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from animatediff.pipelines.method import Method

__all__ = ["METHODS", "Method", "Methods"]


class Methods(Mapping[str, Method]):
    """A mapping name -> Method; an entry "module:NAME" is imported when it is first used."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._entries: dict[str, str | Method] = dict(entries)

    def register(self, name: str, method: str | Method) -> None:
        """Add a method, or replace one: "module:NAME", or the Method itself."""
        self._entries[name] = method

    def __getitem__(self, name: str) -> Method:
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = getattr(importlib.import_module(module), attribute)
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


METHODS = Methods(
    {
        "efficientmt": "animatediff.pipelines.efficientmt.method:METHOD",
        "motionclone": "animatediff.pipelines.motionclone.method:METHOD",
        "ditflow": "animatediff.pipelines.ditflow.method:METHOD",
    }
)
