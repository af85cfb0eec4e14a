"""One YAML per run, checked against a dataclass: unknown keys are refused with the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from animatediff.errors import UserError, nearest, one_line
from animatediff.files import write_text

T = TypeVar("T")


def load_config(
    schema: type[T], path: str | Path | Sequence[str | Path] | None = None, overrides: Sequence[str] = ()
) -> T:
    """The dataclass `schema` filled from the YAML file at `path`, then from `key=value` strings.

    Of several paths a later file is laid over an earlier one. Nested keys are written `part.key=value`. Types come
    from the dataclass. UserError on a missing file, invalid YAML, an unknown key (with the nearest known one) or a
    value of the wrong type.
    """
    config = OmegaConf.structured(schema)
    paths = [path] if isinstance(path, str | Path) else list(path or ())
    for file in paths:
        config = _merge(config, _read_yaml(Path(file)), source=str(file))
    for override in overrides:
        config = _merge(config, _parse_override(schema, override), source=override)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{paths[-1] if paths else 'the configuration'} lacks a value for {', '.join(missing)}")
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def update_config(config: T, values: dict[str, Any], source: str) -> T:
    """A copy of the dataclass instance `config` with `values` (a possibly nested mapping) laid over it."""
    return OmegaConf.to_object(_merge(_structured(config), _literal(values, source), source))  # type: ignore[return-value]


def override_config(config: T, overrides: Sequence[str]) -> T:
    """A copy of the dataclass instance `config` with `key=value` strings laid over it, as in `load_config`."""
    merged = _structured(config)
    for override in overrides:
        merged = _merge(merged, _parse_override(type(config), override), source=override)
    return OmegaConf.to_object(merged)  # type: ignore[return-value]


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass instance `config` as plain Python containers (JSON-serialisable)."""
    return asdict(config)


def to_yaml(config: Any) -> str:
    """The dataclass instance `config` as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(to_dict(config))))


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved `config` as YAML, atomically."""
    write_text(path, to_yaml(config))


def _escaped(value: Any) -> Any:
    """`value` with "${" in its strings taken literally: a prompt is no place for OmegaConf's interpolation."""
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _literal(values: dict[str, Any], source: str) -> Any:
    """`values` as OmegaConf's, strings taken literally; "???" alone cannot be, it stands for a missing value there."""
    literal = OmegaConf.create(_escaped(values))
    missing = sorted(OmegaConf.missing_keys(literal))
    if missing:
        raise UserError(f"{missing[0]} in {source} is '???', which stands for a missing value; write something else")
    return literal


def _structured(config: Any) -> Any:
    """The dataclass instance `config` as OmegaConf's, its strings taken literally."""
    return OmegaConf.merge(OmegaConf.structured(type(config)), _literal(to_dict(config), "the configuration"))


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"no configuration file at {path}; see the files in configs/")
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # yaml raises a family of unrelated classes
        raise UserError(f"{path} is not valid YAML ({one_line(error)})") from error
    if not OmegaConf.is_dict(loaded):
        raise UserError(f"{path} holds a list, expected key: value lines")
    return loaded


def _parse_override(schema: type, override: str) -> Any:
    """One `key=value` string as OmegaConf's mapping. Where the schema says text, the value is taken as it stands."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is not an override; write key=value, for example seed=7")
    kind = get_type_hints(schema).get(key)
    if kind is str or (kind == str | None and value != "null"):
        return _literal({key: value}, "the command line")
    try:
        return OmegaConf.from_dotlist([override])
    except Exception as error:  # yaml raises a family of unrelated classes
        raise UserError(f"'{override}' is not a valid key=value override ({one_line(error)})") from error


def _merge(base: Any, update: Any, source: str) -> Any:
    _check_keys(base, update, source)
    try:
        return OmegaConf.merge(base, update)
    except ConfigKeyError as error:
        raise UserError(f"unknown key in {source}: {one_line(error)}") from error
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        raise UserError(f"bad value in {source}: {where}{one_line(str(error).splitlines()[0])}") from error


def _check_keys(base: Any, update: Any, source: str, prefix: str = "") -> None:
    """Refuse keys of `update` that the structured `base` does not have."""
    for key in update:
        if OmegaConf.get_type(base) is dict:
            return
        if key not in base:
            raise UserError(f"unknown key '{prefix}{key}' in {source}; {nearest(str(key), [str(k) for k in base])}")
        if OmegaConf.is_dict(update) and not OmegaConf.is_missing(update, key) and OmegaConf.is_dict(update[key]):
            if not OmegaConf.is_dict(base[key]):
                raise UserError(f"'{prefix}{key}' in {source} takes one value, not keys of its own")
            _check_keys(base[key], update[key], source, f"{prefix}{key}.")
