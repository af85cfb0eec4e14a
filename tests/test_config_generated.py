"""Generated texts, numbers, trees and files for the configuration's door: the right typed value, or one line."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from animatediff.config import load_config, option, override_config, update_config
from animatediff.errors import UserError
from animatediff.inference.run import lay_over, read_run, run_schema
from tests.door import through


@dataclass
class Inner:
    text: str = ""
    names: list[str] = option(["a"])


@dataclass
class Part:
    text: str = ""
    inner: Inner = field(default_factory=Inner)


@dataclass
class Config:
    text: str = ""
    maybe: str | None = None
    flag: bool = False
    whole: int = option(1, least=-1000, most=1000)
    free: int = 1
    limit: int | None = option(None, least=0)
    ratio: float = option(1.0, least=0, most=2)
    level: float | str = option(8.0, least=0, most=240, choices=("source",))
    mode: str = option("a", choices=("a", "b"))
    scales: list[float] = option([1.0], least=0, most=2)
    bounds: dict[str, float] = option({})
    part: Part = field(default_factory=Part)


TEXT_KEYS = ("text", "maybe", "part.text", "part.inner.text")
ANY = st.characters()  # halves of surrogate pairs and control characters, too
SPECIAL = st.sampled_from(
    ["$", "{", "}", "\\", "${", "???", "\n", "'", '"', ":", "#", "null", "~", "12:30", "007", "no"]
)
TEXTS = st.one_of(st.text(ANY), st.lists(SPECIAL).map("".join))
PLAIN = st.from_regex(r"[0-9A-Za-z.+_-]*[0-9A-Za-z](:[0-9A-Za-z]+)*", fullmatch=True).filter(lambda text: text != "-")
NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.from_regex(r"[+-]?[0-9_]{0,4}\.?[0-9]{0,3}([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(["inf", ".inf", "-.Inf", "nan", ".NaN", "1e400", "9" * 5000, "0x1F", "1_000", "١٢", "", " 5 "]),
    TEXTS,
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.integers(), st.floats(), TEXTS, st.just(10**400), st.just("source")
)


def trees(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    keys = st.one_of(st.sampled_from(names), TEXTS)
    return st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))


NAMES = tuple({entry.name for kind in (Config, Part, Inner) for entry in fields(kind)})
RUN_NAMES = tuple(
    {entry.name for method in ("efficientmt", "motionclone") for entry in fields(run_schema(method))}
    | {"k", "adapter_scale", "image_index", "controlnet_scale", "video_path", "base", "guidance_range"}
)


def sound(value: Any, kind: Any = None) -> bool:
    """Whether every value is of the type that its field says, and every number finite."""
    if is_dataclass(value):
        hints = get_type_hints(type(value))
        return all(sound(getattr(value, entry.name), hints[entry.name]) for entry in fields(value))
    kinds = get_args(kind) if get_origin(kind) not in (list, tuple, dict) and get_args(kind) else (kind,)
    for inner in kinds:
        if get_origin(inner) in (list, tuple) and isinstance(value, list | tuple):
            return all(sound(element, get_args(inner)[0]) for element in value)
        if get_origin(inner) is dict and isinstance(value, dict):
            return all(isinstance(key, str) and sound(part, get_args(inner)[1]) for key, part in value.items())
        if type(value) is inner:
            return not isinstance(value, float) or math.isfinite(value)
    return False


def is_right(found: Any) -> bool:
    """What a door may give: a refusal in one line (a text, see `through`), or a configuration that is sound."""
    return isinstance(found, str) or sound(found)


@given(st.sampled_from(TEXT_KEYS), TEXTS)
def test_text_stays_text_at_any_depth(key: str, text: str):
    found = through(lambda: override_config(Config(), [f"{key}={text}"]))
    if text == "???":
        assert "which stands for a missing value" in str(found)
        return
    values: Any = text
    for name in reversed(key.split(".")):
        values = {name: values}
    laid = update_config(Config(), values, "here")
    for config in (found, laid):
        value: Any = config
        for name in key.split("."):
            value = getattr(value, name)
        assert value == text or (key == "maybe" and text == "null" and config is found and value is None)
    assert update_config(laid, {"free": 2}, "here") == update_config(Config(), values | {"free": 2}, "here")


@given(st.sampled_from(TEXT_KEYS), PLAIN, TEXTS)
def test_text_in_a_yaml_stays_text(tmp_path_factory: pytest.TempPathFactory, key: str, plain: str, quoted: str):
    names = key.split(".")
    path = tmp_path_factory.getbasetemp() / "text.yaml"
    path.write_text("".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(names))[:-1] + f" {plain}\n")
    value: Any = load_config(Config, path)
    for name in names:
        value = getattr(value, name)
    assert value == plain or (key == "maybe" and plain in ("null", "Null", "NULL") and value is None)

    assume(quoted != "???" and not any("\ud800" <= character <= "\udfff" for character in quoted))
    path.write_text(yaml.safe_dump({"part": {"inner": {"text": quoted, "names": [quoted]}}}), encoding="utf-8")
    assert load_config(Config, path).part.inner == Inner(quoted, [quoted])


@given(st.sampled_from(["flag", "whole", "free", "limit", "ratio", "level", "mode", "scales", "bounds.a"]), NUMBERS)
def test_a_number_is_the_one_that_was_typed(key: str, text: str):
    found = through(lambda: override_config(Config(), [f"{key}={text}"]))
    assert is_right(found), found
    exact = text.isascii() and text.removeprefix("-").isdigit() and len(text) < 15
    if exact and key in ("whole", "free", "limit", "ratio", "scales"):
        least, most = {"whole": (-1000, 1000), "free": (-math.inf, math.inf), "limit": (0, math.inf)}.get(key, (0, 2))
        inside = least <= int(text) <= most
        assert inside == isinstance(found, Config), found
    if isinstance(found, Config) and key in ("whole", "free", "ratio"):
        assert getattr(found, key) == (float if key == "ratio" else int)(text)


@given(st.dictionaries(st.sampled_from(NAMES) | TEXTS, trees(NAMES), max_size=4))
def test_json_trees(values: dict[str, Any]):
    found = through(lambda: update_config(Config(), values, "line 1"))
    assert is_right(found), found
    for key in ("text", "free", "flag"):
        kind = {"text": str, "free": int, "flag": bool}[key]
        if isinstance(found, Config) and key in values:
            assert type(values[key]) is kind
            assert getattr(found, key) == values[key]


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(), trees(NAMES), max_size=4), st.booleans())
def test_yaml_trees(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], flow: bool):
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    text = yaml.safe_dump(values, allow_unicode=True, default_flow_style=flow)
    path.write_text(text, encoding="utf-8", errors="replace")
    assert is_right(through(lambda: load_config(Config, path)))


WORDS = [f"{name}: " for name in NAMES] + ["base: ", "method: ", "&a ", "*a", "<<: *a", "<<: ", "? ", "- ", "  ", "\n"]
WORDS += [
    "!!int ",
    "!!python/object:os.system ",
    '"\\UFFFFFFFF"',
    "%YAML 9.9",
    "---",
    "{",
    "}",
    "[",
    "]",
    "|\n",
    "> ",
    "\t",
]


@given(st.one_of(st.binary(), st.lists(st.sampled_from(WORDS) | st.text(string.printable, max_size=3)).map("".join)))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes | str):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert is_right(through(lambda: load_config(Config, path)))
    assert is_right(through(lambda: read_run([path])))


@given(TEXTS)
def test_any_path_of_a_configuration(tmp_path_factory: pytest.TempPathFactory, text: str):
    assert isinstance(through(lambda: load_config(Config, f"no such folder/{text}")), str)
    path = tmp_path_factory.getbasetemp() / "based.yaml"
    path.write_text(yaml.safe_dump({"base": text}), encoding="utf-8", errors="replace")
    assert is_right(through(lambda: load_config(Config, path)))


@given(
    st.lists(st.tuples(st.sampled_from(RUN_NAMES), st.sampled_from(["", ".", ".k", ".x.y"]), NUMBERS), max_size=3),
    st.dictionaries(st.sampled_from(RUN_NAMES), trees(RUN_NAMES), max_size=3),
    st.sampled_from(["efficientmt", "motionclone"]),
)
def test_runs_and_job_lines(overrides: list[tuple[str, str, str]], values: dict[str, Any], method: str):
    found = through(lambda: read_run([], [f"{name}{more}={text}" for name, more, text in overrides]))
    assert is_right(found), found
    found = through(lambda: lay_over(run_schema(method)(), values, "jobs.jsonl line 1"))
    assert is_right(found), found


def test_keys_that_others_aliases_stand_for_are_not_lost():
    run = run_schema("motionclone")()
    for values in ({"motionclone": 3, "image_index": [0]}, {"motionclone": {"image_index": [1]}, "image_index": [0]}):
        with pytest.raises(UserError):
            lay_over(run, values, "line 1")


def test_merge_keys_give_what_is_not_said(tmp_path: Path):
    (tmp_path / "a.yaml").write_text(
        "part: &p {text: x, inner: {text: y}}\n<<: {text: from above, free: 3}\ntext: own\n"
    )
    config = load_config(Config, tmp_path / "a.yaml")
    assert (config.text, config.free, config.part.inner.text) == ("own", 3, "y")
    nine = "".join(f"k{i}: &k{i} {{<<: [{', '.join([f'*k{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
    (tmp_path / "bomb.yaml").write_text("k0: &k0 {text: x}\n" + nine)
    with pytest.raises(UserError, match="unknown key 'k0'"):
        load_config(Config, tmp_path / "bomb.yaml")


def test_base_in_circles(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    for name in ("a.yaml", "loop.yaml", "\0", "x" * 300, "x/" * 3000):
        with pytest.raises(UserError):
            load_config(Config, tmp_path / name)
