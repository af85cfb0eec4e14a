"""A table of things by name, each imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Table(Mapping[str, T]):
    """A mapping name -> thing; an entry "module:NAME" is imported when it is first used."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        self._entries: dict[str, Any] = dict(entries)

    def register(self, name: str, entry: str | T) -> None:
        """Add a thing, or replace one: "module:NAME", or the thing itself."""
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        entry = self._entries[name]
        if isinstance(entry, str):
            entry = self._entries[name] = load(entry)
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def load(entry: str) -> Any:
    """What "module:NAME" names."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
