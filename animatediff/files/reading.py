"""JSON that others wrote: one reader, which gives values of the expected types or a UserError of one line."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from animatediff.errors import UserError, describe_os_error, nearest, one_line, shown

MAX_DEPTH = 64  # lists and objects within each other
MAX_INTEGER = 2**64
Keys = Mapping[str, Any]  # key -> its type, as `check_value` knows them
_WORDS: dict[Any, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    NoneType: "null",
    list: "a list",
    dict: "an object of keys and values",
}


def read_json(
    path: str | Path, keys: Keys | None = None, required: Sequence[str] = (), others: bool = True
) -> dict[str, Any]:
    """The JSON object in the file at `path`, checked by `check_object`; UserError where it is anything else."""
    return check_object(load_json(path), str(path), keys, required, others)


def load_json(path: str | Path) -> Any:
    """The JSON value in the file at `path`, whatever it is; UserError where there is none (see `parse_json`)."""
    return parse_json(_read_text(path), str(path))


def read_jsonl(
    path: str | Path, keys: Keys | None = None, required: Sequence[str] = (), others: bool = True
) -> list[tuple[int, dict[str, Any]]]:
    """A JSON Lines file as (line number, object checked by `check_object`) pairs; blank lines are skipped.

    UserError names the first line that is not such an object.
    """
    rows = []
    for number, line in read_lines(path):
        label = f"{path} line {number}"
        rows.append((number, check_object(parse_json(line, label), label, keys, required, others)))
    return rows


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 text file that are not blank, with their numbers; a byte order mark is no part of them."""
    lines = _read_text(path).replace("\r\n", "\n").split("\n")  # splitlines() would also cut inside strings
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def parse_object(text: str, label: str) -> dict[str, Any]:
    """The JSON object that `text` holds; UserError, naming `label`, where it holds none."""
    return check_object(parse_json(text, label), label)


def parse_json(text: str, label: str) -> Any:
    """The JSON value that `text` holds; UserError, naming `label`, where it is none that every program reads alike.

    A key that stands twice in one object, NaN, infinity and numbers beyond a double's range are refused, and more than
    MAX_DEPTH lists or objects within each other.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_integer
        )
        if _depth(value) <= MAX_DEPTH:
            return value
    except RecursionError:
        pass
    except ValueError as error:
        raise UserError(f"{label} is not valid JSON ({error})") from error
    raise UserError(f"{label} is not valid JSON (more than {MAX_DEPTH} lists or objects within each other)")


def check_object(
    value: Any, label: str, keys: Keys | None = None, required: Sequence[str] = (), others: bool = True
) -> dict[str, Any]:
    """`value`, where it is a JSON object with the types that `keys` says and the `required` keys; else UserError.

    Without `others` it may have no keys but those. `label` names it in messages.
    """
    if not isinstance(value, dict):
        raise UserError(f"{label} holds {_word(type(value))}, expected {_WORDS[dict]}")
    keys = keys or {}
    for key in required:
        if key not in value:
            raise UserError(f"{label} lacks '{key}'" + (f", {_expected(keys[key])}" if key in keys else ""))
    for key, inner in value.items():
        if key in keys:
            check_value(inner, keys[key], f"{label}: {key}")
        elif not others:
            raise UserError(f"{label} has unknown key {shown(key)}; {nearest(key, list(keys))}")
    return value


def keys_of(constructor: Callable[..., Any]) -> Keys:
    """The keys that a constructor takes, such as a diffusers component's `__init__`, with their types in JSON.

    A tuple is a list there; what the signature gives null as its default may be null; of what it names no plain type
    for, any value passes.
    """
    hints = get_type_hints(constructor)
    keys = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and name != "self":
            kind = _in_json(hints.get(name, Any))
            keys[name] = kind if parameter.default is not None or kind is Any else kind | None
    return keys


def _in_json(hint: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        kinds = [_in_json(inner) for inner in get_args(hint)]
        return Any if Any in kinds else Union[tuple(kinds)]  # noqa: UP007 - of a tuple
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        inner = {_in_json(each) for each in get_args(hint) if each is not ...}
        return list[inner.pop()] if len(inner) == 1 and Any not in inner else list  # type: ignore[misc]
    if origin is dict and get_args(hint)[0] is str:
        return dict[str, _in_json(get_args(hint)[1])]  # type: ignore[misc]
    return hint if hint in (str, bool, int, float, dict, NoneType) or origin is Literal else Any


def wrong_keys(record: Mapping[str, Any], keys: Keys) -> dict[str, str]:
    """The keys of `record` that do not have the types that `keys` says -> what is wrong, in one line each."""
    wrong = {}
    for key, kind in keys.items():
        if key in record:
            try:
                check_value(record[key], kind, key)
            except UserError as error:
                wrong[key] = str(error)
    return wrong


def check_value(value: Any, kind: Any, label: str) -> None:
    """UserError, naming `label`, where a JSON value is not of `kind`.

    kind: str, bool, int (no bool, within 64 bits), float (any number), None, Any, list[kind], dict[str, kind], list,
    dict, Literal["a", "b"], kind | kind, or a mapping of keys for an object that may have others, too.
    """
    if isinstance(kind, Mapping):
        check_object(value, label, kind)
        return
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        _check_any_of(value, get_args(kind), label)
    elif kind is Any:
        return
    elif origin is Literal:
        if not any(value is known or (type(value) is type(known) and value == known) for known in get_args(kind)):
            raise _wrong(value, kind, label)
    elif not _is(value, origin or kind):
        raise _wrong(value, kind, label)
    elif origin is list:
        for number, inner in enumerate(value):
            check_value(inner, get_args(kind)[0], f"{label}[{number}]")
    elif origin is dict:
        for key, inner in value.items():
            check_value(inner, get_args(kind)[1], f"{label}.{one_line(key)}")


def _check_any_of(value: Any, kinds: Sequence[Any], label: str) -> None:
    """As `check_value` for a union; an error inside a list or an object is told where it is."""
    errors = []
    for kind in kinds:
        try:
            check_value(value, kind, label)
        except UserError as error:
            errors.append((_is(value, get_origin(kind) or kind), error))
        else:
            return
    inside = [error for same_type, error in errors if same_type]
    raise inside[0] if inside else _wrong(value, Union[tuple(kinds)], label)  # noqa: UP007 - of a tuple


def _is(value: Any, kind: Any) -> bool:
    """Whether `value` is of the JSON type `kind`, not looking into it."""
    if kind in (None, NoneType):
        return value is None
    if kind is float:
        return type(value) in (int, float)
    return isinstance(value, dict) if kind is dict else type(value) is kind


def _wrong(value: Any, kind: Any, label: str) -> UserError:
    told = shown(value) if isinstance(value, str | int | float) or value is None else _word(type(value))
    if isinstance(value, bool) or value is None:
        told = json.dumps(value)
    return UserError(f"{label} is {told}, expected {_expected(kind)}")


def _expected(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_expected(inner) for inner in get_args(kind))
    if get_origin(kind) is Literal:
        return " or ".join(known if isinstance(known, str) else json.dumps(known) for known in get_args(kind))
    return _word(dict if isinstance(kind, Mapping) else get_origin(kind) or kind)


def _word(kind: Any) -> str:
    return _WORDS.get(NoneType if kind is None else kind, getattr(kind, "__name__", str(kind)))


def _read_text(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error})") from error
    except ValueError as error:  # a name that no file system takes
        raise UserError(f"reading {path} failed: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {shown(next(key for key in keys if keys.count(key) > 1))} stands twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shown(text, 20)} is too large a number")
    return number


def _integer(text: str) -> int:
    if len(text) > 21 or abs(int(text)) > MAX_INTEGER:
        raise ValueError(f"{text[:20]} is too large a whole number")
    return int(text)


def _depth(value: Any) -> int:
    """How many lists and objects lie within each other, counted up to one more than MAX_DEPTH."""
    depth, level = 0, [value]
    while (level := [inner for inner in level if isinstance(inner, list | dict)]) and depth <= MAX_DEPTH:
        level = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        depth += 1
    return depth
