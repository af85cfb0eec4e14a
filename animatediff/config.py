"""One YAML per run, checked against a dataclass: the one door for text, numbers and YAML.

A field made by `option` carries its range, its choices and one line of help; commands, the web page and the nodes read
them from there. Keys of type str are never interpreted: what stands in a YAML, after `key=` or in a job line is the
value, letter by letter.
"""

from __future__ import annotations

import math
import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, asdict, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from animatediff.errors import UserError, describe_os_error, nearest, one_line, shown
from animatediff.files import is_file, to_path, write_text
from animatediff.project import locate

T = TypeVar("T")
Values = dict[str, Any]  # nested, checked against a schema, strings still literal
Layer = tuple[str, Mapping[str, Any] | yaml.MappingNode]  # where it comes from, and what it says

BASE = "base"  # the key of a YAML that names another one, which it is laid over
DEEPEST = 16  # how many YAMLs may be laid over one another
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_MERGE = "tag:yaml.org,2002:merge"
_NULLS = ("null", "Null", "NULL", "~", "")


def option(
    default: Any,
    help: str = "",
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[str] | None = None,
    once: bool = False,
    pixels: bool = True,
) -> Any:
    """A dataclass field with what a user may know of it.

    default: a value, or a list or dictionary, which is copied. least, most: the range of a number, or of each in a
    list or dictionary, inclusive. choices: the texts it may be (of `float | str`: besides numbers). once: it is read
    when models are loaded, so jobs cannot differ in it. pixels: False where it does not decide the result.
    """
    metadata = {"help": help, "least": least, "most": most, "choices": choices, "once": once, "pixels": pixels}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def load_config(
    schema: type[T], path: str | Path | Sequence[str | Path] | None = None, overrides: Sequence[str] = ()
) -> T:
    """The dataclass `schema` filled from the YAML file at `path`, then from `key=value` strings.

    Of several paths a later file is laid over an earlier one; a file may name its `base`. Nested keys are written
    `part.key=value`. Types come from the dataclass. UserError on a missing file, invalid YAML, an unknown key (with
    the nearest known one), a value of the wrong type or outside its range.
    """
    paths = [path] if isinstance(path, str | Path) else list(path or ())
    config = _load_layers(schema, [layer for file in paths for layer in read_layers(file)], overrides)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{paths[-1] if paths else 'the configuration'} lacks a value for {', '.join(missing)}")
    return checked(_instance(config))


def fill(schema: type[T], layers: Sequence[Layer], overrides: Sequence[str] = ()) -> T:
    """As `load_config`, from layers that were read before."""
    return checked(_instance(_load_layers(schema, layers, overrides)))


def _load_layers(schema: type, layers: Sequence[Layer], overrides: Sequence[str]) -> Any:
    """OmegaConf's structure of `schema`, the layers and then the overrides laid over it."""
    config = OmegaConf.structured(schema)
    for source, values in layers:
        config = _merge(config, _typed(schema, values, source), source)
    for override in overrides:
        config = _merge(config, _parse_override(schema, override), override)
    return config


def update_config(config: T, values: Mapping[str, Any], source: str) -> T:
    """A copy of the dataclass instance `config` with `values` (a possibly nested mapping) laid over it.

    The values have the types that JSON gives them: a text where the schema says text, true or false where it says
    bool, a number where it says a number, a whole one for int. UserError otherwise.
    """
    typed = _typed(type(config), values, source)
    return checked(_instance(_merge(_structured(config), typed, source)))


def override_config(config: T, overrides: Sequence[str]) -> T:
    """A copy of the dataclass instance `config` with `key=value` strings laid over it, as in `load_config`."""
    merged = _structured(config)
    for override in overrides:
        merged = _merge(merged, _parse_override(type(config), override), override)
    return checked(_instance(merged))


def checked(config: T, prefix: str = "") -> T:
    """`config`, every number in its range and every choice one of the known. UserError for the first that is not."""
    for entry in fields(config):  # type: ignore[arg-type]
        name, value = f"{prefix}{entry.name}", getattr(config, entry.name)
        if is_dataclass(value):
            checked(value, f"{name}.")
        elif isinstance(value, dict):
            for part, inner in value.items():
                _check_value(entry, f"{name}.{part}", inner)
        else:
            for inner in value if isinstance(value, list | tuple) else [value]:
                _check_value(entry, name, inner)
    return config


def _check_value(entry: Field[Any], name: str, value: Any) -> None:
    choices = entry.metadata.get("choices")
    if isinstance(value, str):
        if choices is not None and value not in choices:
            raise UserError(f"{name} is '{value}'; {nearest(value, choices)}")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    least, most = entry.metadata.get("least"), entry.metadata.get("most")
    inside = (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (isinstance(value, int) or math.isfinite(value))
    )
    if not inside:
        raise UserError(f"{name} is {value}, expected {describe_range(least, most)}")


def describe_range(least: float | None, most: float | None) -> str:
    """ "1 to 32", "0 or more", "a finite number"."""
    if most is not None:
        return f"{least} to {most}" if least is not None else f"at most {most}"
    return f"{least} or more" if least is not None else "a finite number"


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass instance `config` as plain Python containers (JSON-serialisable)."""
    return asdict(config)


def to_yaml(config: Any) -> str:
    """The dataclass instance `config` as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, default_flow_style=False)


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved `config` as YAML, atomically."""
    write_text(path, to_yaml(config))


def read_layers(path: str | Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """The YAML file at `path` and those it is laid over, the lowest first, each with its path.

    A `base:` is looked up beside the file that names it, then in the current and this project's folder.
    """
    path = to_path(path, "--config" if not above else f"'{BASE}' in {above[-1]}")
    if (place := Path(os.path.realpath(path))) in above or len(above) > DEEPEST:
        raise UserError(f"{path} names itself as its base, through {len(above)} files; take one 'base:' out")
    mapping = _read_yaml(path)
    named = [(name, value) for name, value in mapping.value if name.value == BASE]
    if not named:
        return [(str(path), mapping)]
    mapping.value = [pair for pair in mapping.value if pair[0].value != BASE]
    base = named[0][1]
    if not isinstance(base, yaml.ScalarNode) or not base.value:
        raise UserError(f"'{BASE}' in {path} is not a path; name one YAML file")
    beside = path.parent / base.value
    lower = read_layers(beside if is_file(beside) else locate(base.value), (*above, place))
    return [*lower, (str(path), mapping)]


def items_of(layer: Layer) -> list[tuple[str, Any]]:
    """The top-level keys of a layer with their values: YAML nodes, or what JSON gave."""
    return list(_items(layer[1], layer[0]))


def text_of(value: Any) -> str | None:
    """The text of one value of a layer as it stands; None where it is a list or has keys of its own."""
    return value if isinstance(value, str) else value.value if isinstance(value, yaml.ScalarNode) else None


def last_said(name: str, layers: Sequence[Layer], overrides: Sequence[str]) -> str | None:
    """The last text, not empty, that layers and then `key=value` overrides give for a top-level key."""
    said = [text_of(value) for layer in layers for key, value in items_of(layer) if key == name]
    said += [text.partition("=")[2] for text in overrides if text.partition("=")[0] == name]
    return next((text for text in reversed(said) if text), None)


def part_of(config: Any, kind: type[T]) -> T:
    """The dataclass `kind` filled from the keys of the same names of a dataclass instance."""
    return kind(**{entry.name: getattr(config, entry.name) for entry in fields(kind)})  # type: ignore[arg-type]


def _read_yaml(path: Path) -> yaml.MappingNode:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error})") from error
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"no configuration file at {path}; see the files in configs/") from error
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    node = _compose(text, str(path))
    if node is None:
        return yaml.MappingNode("tag:yaml.org,2002:map", [])
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "one value"
        raise UserError(f"{path} holds {kind}, expected key: value lines")
    return node


def _compose(text: str, source: str) -> yaml.Node | None:
    """The node tree of a YAML text, merge keys resolved, scalars as they stand."""
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        for mapping in _mappings(node):
            _merge_keys(loader, mapping)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # such as \UFFFFFFFF
        raise UserError(f"{source} is not valid YAML ({one_line(error)})") from error
    finally:
        if loader is not None:
            loader.dispose()
    return node


def _mappings(node: yaml.Node | None) -> list[yaml.MappingNode]:
    """Every mapping of a node tree once, those inside another before it."""
    found: list[yaml.MappingNode] = []
    seen: set[int] = set()

    def visit(node: yaml.Node | None) -> None:
        if id(node) in seen or not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
            return
        seen.add(id(node))
        for inner in node.value if isinstance(node, yaml.SequenceNode) else [value for _, value in node.value]:
            visit(inner)
        if isinstance(node, yaml.MappingNode):
            found.append(node)

    visit(node)
    return found


def _merge_keys(loader: yaml.SafeLoader, mapping: yaml.MappingNode) -> None:
    """Put what `<<` names into `mapping`, under the keys that it has itself."""
    own = [pair for pair in mapping.value if pair[0].tag != _MERGE]
    if len(own) == len(mapping.value):
        return
    loader.flatten_mapping(mapping)
    said = {name.value for name, _ in own if isinstance(name, yaml.ScalarNode)}
    merged = {name.value: (name, value) for name, value in mapping.value if isinstance(name, yaml.ScalarNode)}
    mapping.value = [pair for name, pair in merged.items() if name not in said] + own


def _typed(schema: type, values: Mapping[str, Any] | yaml.MappingNode, source: str, prefix: str = "") -> Values:
    """`values` as the dataclass `schema` wants them: known keys, text literal, the rest for OmegaConf to convert."""
    kinds = get_type_hints(schema)
    typed: Values = {}
    for name, value in _items(values, source):
        if name not in kinds:
            known = [entry.name for entry in fields(schema)]
            raise UserError(f"unknown key '{prefix}{name}' in {source}; {nearest(name, known)}")
        if name in typed:
            raise UserError(f"'{prefix}{name}' stands twice in {source}; keep one")
        typed[name] = _value(kinds[name], value, source, f"{prefix}{name}")
    return typed


def _items(values: Mapping[str, Any] | yaml.MappingNode, source: str) -> Iterator[tuple[str, Any]]:
    if isinstance(values, yaml.MappingNode):
        for name, value in values.value:
            if not isinstance(name, yaml.ScalarNode):
                raise UserError(f"a key in {source} is not a name; write key: value")
            yield name.value, value
    else:
        for name, value in values.items():
            yield str(name), value


def _value(kind: Any, value: Any, source: str, name: str) -> Any:
    """One value for a field of type `kind`: from a YAML node, or with the type that JSON gave it."""
    optional, kinds = _options(kind)
    if _is_null(value, optional):
        if not optional:
            raise UserError(f"bad value in {source}: {name} is null, expected {_expected(kind)}")
        return None
    mapping = isinstance(value, Mapping | yaml.MappingNode)
    for inner in kinds:
        if is_dataclass(inner):
            if is_dataclass(value) and not isinstance(value, type):
                value, mapping = asdict(value), True
            if not mapping:
                raise UserError(f"bad value in {source}: {name} is one value, expected keys of its own")
            return _typed(inner, value, source, f"{name}.")  # type: ignore[arg-type]
        if get_origin(inner) is dict and mapping:
            return {part: _value(get_args(inner)[1], v, source, f"{name}.{part}") for part, v in _items(value, source)}
        if get_origin(inner) in (list, tuple) and isinstance(value, Sequence | yaml.SequenceNode):
            if isinstance(value, str):
                continue
            elements = value.value if isinstance(value, yaml.SequenceNode) else value
            return [_value(get_args(inner)[0], element, source, name) for element in elements]
        number = get_args(inner)[0] if get_origin(inner) is list else None
        if number in (int, float) and (isinstance(value, yaml.ScalarNode) or _has_type(number, value)):
            return [_value(number, value, source, name)]  # one number is a list of one
    if mapping:
        raise UserError(f"'{name}' in {source} takes one value, not keys of its own")
    if isinstance(value, yaml.ScalarNode) and any(get_origin(inner) in (list, tuple, dict) for inner in kinds):
        raise UserError(f"bad value in {source}: {name} is '{value.value}', expected {_expected(kind)}")
    if isinstance(value, yaml.ScalarNode):
        return _from_text(kinds, value.value, source, name)
    if not any(_has_type(inner, value) for inner in kinds):
        found = "a list" if isinstance(value, list | tuple | yaml.SequenceNode) else shown(value)
        raise UserError(f"bad value in {source}: {name} is {found}, expected {_expected(kind)}")
    if isinstance(value, str):
        return _literal(value, source, name)
    try:
        return float(value) if float in kinds else value
    except OverflowError as error:
        raise UserError(f"bad value in {source}: {name} is a number of more than 308 digits") from error


def _from_text(kinds: tuple[Any, ...], text: str, source: str, name: str) -> Any:
    if text == "???" or (str in kinds and float not in kinds):
        return _literal(text, source, name)
    if bool in kinds:
        if text.lower() not in _BOOLEANS:
            raise UserError(f"bad value in {source}: {name} is '{text}', expected true or false")
        return _BOOLEANS[text.lower()]
    if float in kinds:
        try:
            return float(re.sub(r"^([+-]?)\.(?=inf$|nan$)", r"\1", text.lower()))
        except ValueError:
            pass
    if str in kinds:
        return _literal(text, source, name)
    if "${" in text:  # which OmegaConf would look up
        raise UserError(f"bad value in {source}: {name} is {shown(text)}, expected {_expected(kinds[0])}")
    return text


def _has_type(kind: Any, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)


def _is_null(value: Any, optional: bool) -> bool:
    if not isinstance(value, yaml.ScalarNode):
        return value is None
    return optional and value.style is None and value.value in _NULLS


def _options(kind: Any) -> tuple[bool, tuple[Any, ...]]:
    """Whether None is one of the types that `kind` admits, and the others."""
    if get_origin(kind) in (Union, types.UnionType):
        kinds = get_args(kind)
        return type(None) in kinds, tuple(k for k in kinds if k is not type(None))
    return False, (kind,)


def _expected(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    optional, kinds = _options(kind)
    shown = [names.get(k) or ("a list" if get_origin(k) in (list, tuple) else "keys of its own") for k in kinds]
    return " or ".join([*shown, *["null"] * optional])


def _literal(text: str, source: str, name: str) -> str:
    """`text` for OmegaConf, taken literally; "???" alone cannot be, it stands for a missing value there."""
    if text == "???":
        raise UserError(f"{name} in {source} is '???', which stands for a missing value; write something else")
    return _escaped(text)


def _escaped(value: Any) -> Any:
    """`value` with "${" in its strings taken literally: a prompt is no place for OmegaConf's interpolation."""
    if isinstance(value, dict):
        return {name: _escaped(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _instance(config: Any) -> Any:
    """The dataclass instance that an OmegaConf structure stands for."""
    return OmegaConf.to_object(config)


def _structured(config: Any) -> Any:
    """The dataclass instance `config` as OmegaConf's, its strings taken literally."""
    return OmegaConf.merge(OmegaConf.structured(type(config)), OmegaConf.create(_escaped(to_dict(config))))


def _parse_override(schema: type, override: str) -> Values:
    """One `key=value` string as nested values. Where the schema says text, the value is taken as it stands."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"'{override}' is not an override; write key=value, for example seed=7")
    source = "the command line" if len(override) > 80 else override
    names = path.split(".")
    kind: Any = schema
    for depth, name in enumerate(names):
        if not is_dataclass(kind):
            if get_origin(kind) is dict:
                kind = get_args(kind)[1]
                continue
            raise UserError(f"'{'.'.join(names[:depth])}' in {source} takes one value, not keys of its own")
        kinds = get_type_hints(kind)
        if name not in kinds:
            known = [f.name for f in fields(kind)]
            raise UserError(f"unknown key '{path}' in {source}; {nearest(name, known)}")
        kind = kinds[name]
    value = _override_value(kind, text, override, source, path)
    for name in reversed(names):
        value = {name: value}
    return value


def _override_value(kind: Any, text: str, override: str, source: str, path: str) -> Any:
    optional, kinds = _options(kind)
    if optional and text == "null":
        return None
    if any(get_origin(inner) in (list, tuple, dict) for inner in kinds):
        try:
            node = _compose(text, "it")
        except UserError as error:
            raise UserError(f"'{override}' is not a valid key=value override ({error})") from error
        return _value(kind, node if node is not None else yaml.ScalarNode("", ""), source, path)
    if any(is_dataclass(inner) for inner in kinds):
        raise UserError(f"bad value in {source}: {path} is one value, expected keys of its own: {path}.KEY=value")
    if str in kinds and text == "???":
        source = "the command line"
    return _from_text(kinds, text, source, path)


def _merge(base: Any, update: Values, source: str) -> Any:
    try:
        return OmegaConf.merge(base, OmegaConf.create(update))
    except ConfigKeyError as error:
        raise UserError(f"unknown key in {source}: {one_line(error)}") from error
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        raise UserError(f"bad value in {source}: {where}{one_line(str(error).splitlines()[0])}") from error


def default_of(entry: Field[Any]) -> Any:
    """The default of a dataclass field, made anew."""
    return entry.default_factory() if entry.default_factory is not MISSING else entry.default
