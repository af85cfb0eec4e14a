"""One YAML per run: types, nesting, literal text, and one clear line for each mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import MISSING

from animatediff.config import load_config, option, override_config, save_config, to_dict, to_yaml, update_config
from animatediff.errors import UserError


@dataclass
class Part:
    steps: int = 3
    names: list[str] = field(default_factory=lambda: ["a"])


@dataclass
class Run:
    text: str = ""
    maybe: str | None = None
    seed: int = 42
    scale: float = 6.0
    limit: int | None = 5
    part: Part = field(default_factory=Part)


@dataclass
class Demanding(Run):
    needed: str = MISSING


LITERAL = ["a: b", "{a: b}", "[x]", "", "~", "${oc.env:HOME}", r"\${x}", r"\\${x}", "🦊\n../x", "# no comment", "yes"]


def test_yaml_then_overrides(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("seed: 1\nscale: 2\npart: {steps: 7}\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    config = load_config(
        Run, [tmp_path / "a.yaml", tmp_path / "b.yaml"], ["scale=3", "part.names=[x, y]", "limit=null"]
    )
    assert config == Run(seed=2, scale=3.0, limit=None, part=Part(7, ["x", "y"]))
    assert load_config(Run) == Run()


@pytest.mark.parametrize("text", LITERAL)
def test_text_is_taken_as_it_stands(tmp_path: Path, text: str):
    assert override_config(Run(), [f"text={text}", f"maybe={text}"]) == Run(text=text, maybe=text)
    config = update_config(Run(), {"text": text}, "here")
    assert config.text == text
    assert update_config(config, {"seed": 1}, "here") == Run(text=text, seed=1), "also when laid over once more"
    save_config(config, tmp_path / "run.yaml")
    assert load_config(Run, tmp_path / "run.yaml") == config
    assert to_dict(config)["text"] == text


def test_one_number_is_a_list_of_one(tmp_path: Path):
    @dataclass
    class Lists:
        scales: list[float] = option([1.0], least=0, most=2)
        texts: list[str] = option(["a"])

    (tmp_path / "a.yaml").write_text("scales: 0.5")
    assert load_config(Lists, tmp_path / "a.yaml").scales == [0.5]
    assert override_config(Lists(), ["scales=2"]).scales == [2.0]
    assert update_config(Lists(), {"scales": 1}, "here").scales == [1.0]
    for wrong, message in (("x", "bad value"), ("true", "bad value"), ("3", "scales is 3.0, expected 0 to 2")):
        with pytest.raises(UserError, match=message):
            override_config(Lists(), [f"scales={wrong}"])
    with pytest.raises(UserError, match="scales is True, expected a list"):
        update_config(Lists(), {"scales": True}, "here")
    with pytest.raises(UserError, match="texts is 'a', expected a list"):
        update_config(Lists(), {"texts": "a"}, "here")


def test_null_of_optional_text():
    assert override_config(Run(maybe="x"), ["maybe=null"]).maybe is None


def test_a_copy_is_updated():
    config = Run()
    assert update_config(config, {"part": {"steps": 1}}, "here").part.steps == 1
    assert config == Run()
    assert "steps: 3" in to_yaml(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sead=1", "unknown key 'sead' in sead=1; did you mean 'seed'?"),
        ("part.step=1", "unknown key 'part.step' in part.step=1; did you mean 'steps'?"),
        ("qqqqqqq=1", "known: text, maybe, seed, scale, limit, part"),
        ("seed=many", "bad value in seed=many: seed: Value 'many' of type 'str' could not be converted to Integer"),
        ("seed=1.5", "could not be converted to Integer"),
        ("seed=", "bad value in seed="),
        ("seed.x=1", "'seed' in seed.x=1 takes one value, not keys of its own"),
        ("part=1", "bad value in part=1"),
        ("seed", "'seed' is not an override; write key=value, for example seed=7"),
        ("=1", "'=1' is not an override"),
        ("part.names=[", "'part.names=[' is not a valid key=value override"),
        ("text=???", "text in the command line is '???', which stands for a missing value"),
    ],
)
def test_bad_overrides(override: str, message: str):
    with pytest.raises(UserError) as caught:
        load_config(Run, None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sead: 1", "unknown key 'sead' in {path}; did you mean 'seed'?"),
        ("- 1", "{path} holds a list, expected key: value lines"),
        ("seed: [1", "{path} is not valid YAML ("),
        ("seed: x", "bad value in {path}: seed: "),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_config(Run, path)
    assert message.format(path=path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_values(tmp_path: Path):
    with pytest.raises(UserError, match=r"no configuration file at .*none.yaml; see the files in configs/"):
        load_config(Run, tmp_path / "none.yaml")
    with pytest.raises(UserError, match="the configuration lacks a value for needed"):
        load_config(Demanding)
