"""JSON that others wrote: a value of the expected types, or one line with the file's name and the key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from animatediff.errors import UserError
from animatediff.files import (
    check_object,
    keys_of,
    load_json,
    parse_json,
    read_json,
    read_jsonl,
    read_lines,
    to_json,
    write_json,
    write_jsonl,
    wrong_keys,
)
from animatediff.models.adapter import Adapter
from tests.door import through

KEYS = {
    "prompt": str,
    "seed": int | None,
    "seconds": float,
    "gif": bool,
    "site_channels": dict[str, int],
    "indices": list[int],
    "sides": int | list[int],
    "layer": Literal["up", "mid", None],
    "config": {"fps": float, "of": int},
    "rest": Any,
}


def test_json_keeps_every_character(tmp_path: Path):
    value = {"prompt": "a 🦊\n“fox”", "seeds": [1, 2], "none": None, "name": "caf\udce9.mp4"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    write_jsonl(tmp_path / "a.jsonl", [value, {}])
    assert read_jsonl(tmp_path / "a.jsonl") == [(1, value), (2, {})]


def test_what_is_no_number_is_written_as_null():
    assert json.loads(to_json({"a": [math.nan, (1.5, math.inf)]})) == {"a": [None, [1.5, None]]}


def test_a_byte_order_mark_is_no_part_of_anything(tmp_path: Path):
    path = tmp_path / "jobs.jsonl"
    path.write_bytes('\ufeff{"prompt": "one\u2028line"}\r\n\n  \n{"prompt": "two"}'.encode())
    assert read_jsonl(path) == [(1, {"prompt": "one\u2028line"}), (4, {"prompt": "two"})]
    path.write_bytes("\ufeffbear: a fox\r\n\n".encode())
    assert read_lines(path) == [(1, "bear: a fox")]
    path.write_bytes('\ufeff{"a": 1}'.encode())
    assert read_json(path) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a.json is not valid JSON \(Expecting value"),
        (b"{", r"a.json is not valid JSON \("),
        (b"\xff\xfe{\x00}\x00", "a.json is not UTF-8 text"),
        (b"[]", "a.json holds a list, expected an object of keys and values"),
        (b"null", "a.json holds null, expected an object"),
        (b'"text"', "a.json holds a text, expected an object"),
        (b"3", "a.json holds a whole number, expected an object"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', r"a.json is not valid JSON \(key 'c' stands twice\)"),
        (b'{"a": NaN}', r"a.json is not valid JSON \(NaN is no number in JSON\)"),
        (b'{"a": -Infinity}', r"a.json is not valid JSON \(-Infinity is no number in JSON\)"),
        (b'{"a": 1e999}', r"a.json is not valid JSON \('1e999' is too large a number\)"),
        (b'{"a": 1' + b"0" * 5000 + b"}", r"a.json is not valid JSON \(10+ is too large a whole number\)"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", r"a.json is not valid JSON \(more than 64 lists or objects"),
        (b"[" * 100_000, r"a.json is not valid JSON \(more than 64 lists or objects"),
    ],
)
def test_what_is_no_json_object(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(path)


def test_what_cannot_be_read(tmp_path: Path):
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match="reading .*/a.json failed: No such file or directory"):
            read(tmp_path / "a.json")
        with pytest.raises(UserError, match="reading .* failed: Is a directory"):
            read(tmp_path)
        with pytest.raises(UserError, match=r"reading a\\x00b failed: embedded null byte"):
            read("a\0b")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"prompt": 1}, "a.json: prompt is 1, expected a text"),
        ({"prompt": None}, "a.json: prompt is null, expected a text"),
        ({"seed": True}, "a.json: seed is true, expected a whole number or null"),
        ({"seed": 1.0}, "a.json: seed is 1.0, expected a whole number or null"),
        ({"seconds": "1"}, "a.json: seconds is '1', expected a number"),
        ({"gif": 2}, "a.json: gif is 2, expected true or false"),
        ({"gif": []}, "a.json: gif is a list, expected true or false"),
        ({"site_channels": {"up\n0": "x"}}, "a.json: site_channels.up 0 is 'x', expected a whole number"),
        ({"site_channels": [1]}, "a.json: site_channels is a list, expected an object of keys and values"),
        ({"indices": [0, None]}, r"a.json: indices\[1\] is null, expected a whole number"),
        ({"sides": [1, "a"]}, r"a.json: sides\[1\] is 'a', expected a whole number"),
        ({"sides": "a"}, "a.json: sides is 'a', expected a whole number or a list"),
        ({"layer": "down"}, "a.json: layer is 'down', expected up or mid or null"),
        ({"config": {"fps": "8"}}, "a.json: config: fps is '8', expected a number"),
        ({"config": 8}, "a.json: config holds a whole number, expected an object"),
    ],
)
def test_a_value_of_another_type_is_named(value: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        check_object(value, "a.json", KEYS)
    assert list(wrong_keys(value, KEYS)) == list(value)


def test_values_of_the_expected_types_pass():
    good = {"prompt": "", "seed": None, "seconds": 1, "gif": True, "site_channels": {}, "indices": [], "sides": [2]}
    good |= {"layer": None, "config": {"fps": 8.0, "more": "x"}, "rest": [{}], "unknown": 1}
    assert check_object(good, "a.json", KEYS) == good
    assert wrong_keys(good, KEYS) == {}


def test_the_types_of_a_component_are_those_of_its_constructor(repository: Path):
    base = repository / "models" / "miniature" / "StableDiffusion"
    places = {
        UNet2DConditionModel: "unet/config.json",
        AutoencoderKL: "vae/config.json",
        DDIMScheduler: "scheduler/scheduler_config.json",
    }
    for component, place in places.items():
        assert read_json(base / place, keys_of(component.__init__))["_class_name"] == component.__name__
    keys = keys_of(UNet2DConditionModel.__init__)
    for value, message in (
        ({"block_out_channels": "32"}, "block_out_channels is '32', expected a list"),
        ({"block_out_channels": [32, "64"]}, r"block_out_channels\[1\] is '64', expected a whole number"),
        ({"cross_attention_dim": None}, "cross_attention_dim is null, expected a whole number or a list"),
        ({"norm_eps": "1e-5"}, "norm_eps is '1e-5', expected a number"),
    ):
        with pytest.raises(UserError, match=message):
            check_object(value, "config.json", keys)
    with pytest.raises(UserError, match=r"site_channels.up is '8', expected a whole number"):
        check_object({"site_channels": {"up": "8"}}, "config.json", keys_of(Adapter.__init__))


def test_required_and_other_keys():
    with pytest.raises(UserError, match="a.json lacks 'prompt', a text"):
        check_object({}, "a.json", KEYS, required=["prompt"])
    with pytest.raises(UserError, match="a.json lacks 'output'$"):
        check_object({}, "a.json", required=["output"])
    with pytest.raises(UserError, match="a.json has unknown key 'promt'; did you mean 'prompt'?"):
        check_object({"promt": ""}, "a.json", KEYS, others=False)


WORDS = st.text(st.characters(codec=None, categories=None), max_size=6)
NAMES = st.sampled_from(list(KEYS)) | WORDS
TREE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(NAMES, TREE, max_size=4))
def test_any_tree_is_right_or_one_line(value: dict[str, Any]):
    """What passes is what the types say, as plain Python tells them."""
    text = json.dumps(value)
    found = through(lambda: check_object(parse_json(text, "a.json"), "a.json", KEYS))
    if isinstance(found, str):
        assert found.startswith("a.json")
        return
    assert found == value
    assert isinstance(found.get("prompt", ""), str)
    assert type(found.get("seed", 1)) in (int, type(None))
    assert type(found.get("seconds", 1)) in (int, float)
    assert isinstance(found.get("gif", True), bool)
    assert all(type(channels) is int for channels in found.get("site_channels", {}).values())
    assert all(type(index) is int for index in found.get("indices", []))
    assert found.get("layer", None) in ("up", "mid", None)
    assert type(found.get("config", {}).get("fps", 1)) in (int, float)


PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b":",
    b",",
    b'"seed"',
    b'"prompt"',
    b"1",
    b"-",
    b"1e400",
    b"NaN",
    b"\xef\xbb\xbf",
]


@given(st.binary(max_size=60) | st.lists(st.sampled_from(PIECES) | st.binary(max_size=2), max_size=30).map(b"".join))
def test_any_bytes_are_right_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    found = through(lambda: load_json(path))
    if not isinstance(found, str):
        assert found == json.loads(content.decode("utf-8-sig"))
    through(lambda: read_json(path, KEYS, others=False))
    through(lambda: read_jsonl(path, KEYS))
