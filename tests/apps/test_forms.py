"""The forms' fields are those of the methods: complete, with the ranges the configuration checks."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields

import pytest
import yaml

from animatediff.apps import forms
from animatediff.config import option
from animatediff.errors import UserError
from animatediff.inference import cli
from animatediff.inference.run import read_run, run_schema
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import Input
from animatediff.project import PROJECT


@pytest.mark.parametrize("method", list(METHODS))
def test_each_key_of_a_run_is_one_field(method):
    run = run_schema(method)()
    unused = getattr(METHODS[method], "unused", frozenset())
    assert {field.key for field in forms.fields_of(method)} == set(forms.values_of(run)) - unused
    for field in forms.fields_of(method):
        assert field.kind in forms.KINDS
        assert field.place in forms.PLACES
        assert field.default == forms.values_of(run)[field.key]
        assert field.help, field.key


def test_a_new_method_brings_its_own_fields(monkeypatch):
    @dataclass
    class Files:
        pretrained_model_path: str = option("", "weights", once=True)

    @dataclass
    class Settings:
        sharpness: float = option(0.5, "how sharp", least=0, most=1)
        edges: list[int] = option([1, 2], "where edges are", least=0, most=9)
        mode: str = option("soft", "how", choices=("soft", "hard"))
        bound: int | None = option(None, "at most")

    class NewMethod:
        name, needs_prompt, reference_keys, objective, defaults = "newest", True, frozenset(), None, {"num_frames": 4}
        inputs = (Input("masks", "masks", True, "of the subject"),)

    NewMethod.Files, NewMethod.Settings = Files, Settings
    monkeypatch.setattr(METHODS, "_entries", METHODS._entries | {"newest": NewMethod()}, raising=True)
    found = {field.key: field for field in forms.fields_of("newest")}
    assert found["num_frames"].default == 4
    assert (found["masks"].place, found["masks"].names_file) == ("inputs", True)
    assert (found["pretrained_model_path"].place, found["pretrained_model_path"].once) == ("files", True)
    sharp = found["newest.sharpness"]
    assert (sharp.kind, sharp.least, sharp.most, sharp.help, sharp.name) == ("number", 0, 1, "how sharp", "sharpness")
    assert (found["newest.edges"].kind, found["newest.edges"].of) == ("list", "whole")
    assert (found["newest.mode"].kind, found["newest.mode"].choices) == ("choice", ("soft", "hard"))
    assert (found["newest.bound"].kind, found["newest.bound"].optional) == ("whole", True)


def test_presets_run_by_themselves_and_say_what_is_missing():
    found = {preset.key: preset for preset in forms.presets()}
    assert not found["efficientmt/miniature"].missing
    assert "download" in found["efficientmt/sd15"].missing[0]
    assert found["efficientmt/miniature"].about.startswith("The bundled miniature")
    for preset in found.values():  # one laid over another names no weights
        named = [getattr(preset.run, entry.name) for entry in fields(METHODS[preset.method].Files)]
        assert any(named), preset.key
    ready = [not preset.missing for preset in forms.presets()]
    assert ready == sorted(ready, reverse=True)


TEXTS = {
    "num_inference_steps": "3",
    "guidance_scale": "2.25",
    "start": "0.5",
    "reference_seed": "null",
    "efficientmt.guidance_interval": "[0, 500]",
    "fps": "source",
    "gif": "true",
}


def test_the_line_and_the_yaml_are_the_same_run(tmp_path):
    preset = next(preset for preset in forms.presets() if preset.key == "efficientmt/miniature")
    prompt = 'it\'s a "star" = ${x} null\n#1'
    given = {"prompt": prompt, "ref_video_path": "assets/references/00-line.mp4"}
    run = forms.run_with(preset, TEXTS, given)
    words = shlex.split(forms.command_of(preset, run))
    assert words[:2] == ["python", "inference.py"]
    assert cli.read_config(cli.parse(words[2:], None)) == run
    path = tmp_path / "run.yaml"
    path.write_text(forms.yaml_of(preset, run))
    assert read_run([path]) == run
    assert set(yaml.safe_load(path.read_text())) == {"base", "efficientmt", *given, *list(TEXTS)} - {
        "efficientmt.guidance_interval"
    }


@pytest.mark.parametrize("text", ["1.5", "nan", "0", "", "true"])
def test_a_value_outside_is_refused_by_name(text):
    preset = next(preset for preset in forms.presets() if preset.key == "efficientmt/miniature")
    with pytest.raises(UserError, match="num_inference_steps"):
        forms.run_with(preset, {"num_inference_steps": text})


def test_a_clip_of_the_project_is_named_by_its_place_in_it():
    preset = next(preset for preset in forms.presets() if preset.key == "efficientmt/miniature")
    clip = PROJECT / "assets/references/00-line.mp4"
    run = forms.run_with(preset, {}, {"prompt": "a star", "ref_video_path": str(clip)})
    words = shlex.split(forms.command_of(preset, run))
    assert words[words.index("--ref_video_path") + 1] == "assets/references/00-line.mp4"
    assert yaml.safe_load(forms.yaml_of(preset, run))["ref_video_path"] == "assets/references/00-line.mp4"
