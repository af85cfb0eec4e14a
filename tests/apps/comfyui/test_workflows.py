"""The example workflows: of every preset that runs at once, equal in both formats, and they run (in the stand-in)."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from PIL import Image

from animatediff.apps import forms
from animatediff.apps.comfyui import running, workflows
from animatediff.apps.comfyui.nodes import all_nodes
from animatediff.inference import Engine
from animatediff.inference.run import completed
from animatediff.pipelines import METHODS
from tests.apps.comfyui.standin import Interrupted, Server

EXAMPLES = dict(workflows.example_workflows())


def test_every_preset_that_needs_no_download_has_one():
    ready = {key.replace("/", "_") for key, preset in running.presets().items() if not preset.missing}
    assert {"efficientmt_miniature", "motionclone_miniature"} <= set(EXAMPLES) <= ready
    for key, preset in running.presets().items():
        needed = [each.key for each in METHODS[preset.method].inputs if each.required]
        if not preset.missing and not needed:
            assert key.replace("/", "_") in EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_both_formats_say_the_same(name):
    steps = EXAMPLES[name]
    known = {node.id: node for node in all_nodes(lambda _key: [])}
    api, page = workflows.api_format(steps), workflows.page_format(steps)
    wires = {link[0]: link for link in page["links"]}
    for node in page["nodes"]:
        wanted = api[str(node["id"])]
        assert node["type"] == wanted["class_type"]
        if node["type"] not in known:
            continue
        slots = sorted(known[node["type"]].inputs(), key=lambda slot: slot.optional)
        assert [each["name"] for each in node["inputs"]] == [slot.id for slot in slots]
        values = iter(node["widgets_values"])
        found: dict[str, Any] = {}
        for slot, each in zip(slots, node["inputs"], strict=True):
            if slot.is_widget:
                found[slot.id] = next(values)
                assert not slot.drawn or next(values) == "fixed"
            if each["link"] is not None:
                _, source, output, target, place, kind = wires[each["link"]]
                assert (target, place, kind) == (node["id"], slots.index(slot), slot.type)
                assert page["nodes"][source - 1]["outputs"][output]["links"].count(each["link"]) == 1
                found[slot.id] = [str(source), output]
        assert next(values, None) is None
        assert found == wanted["inputs"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_settings_are_the_presets(name, server: Server):
    prompt = workflows.api_format(EXAMPLES[name])
    made = server.run({number: prompt[number] for number in ("1", "2")})
    model, settings = made["1"].args[0], made["2"].args[0]
    preset = next(each for key, each in running.presets().items() if key.replace("/", "_") == name)
    assert running._with(model.engine.run, settings) == model.engine.run
    assert model.engine.run.method == preset.method


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_starts_in_the_standin(name, server: Server):
    """Up to its second step, in inference mode as in ComfyUI; test_real.py runs the whole of it."""
    prompt = workflows.api_format(EXAMPLES[name])
    server.interrupt_at = 2
    with pytest.raises(Interrupted):
        server.run(prompt)
    assert server.ran[-1] == "EfficientMT_Extract"
    assert server.progress[-1][0] == 2


def test_one_runs_whole_and_is_kept(server: Server):
    prompt = workflows.api_format(EXAMPLES["efficientmt_miniature"])
    prompt["2"]["inputs"]["num_inference_steps"] = 2
    made = server.run(prompt)
    engine = Engine(forms.run_with(running.presets()["efficientmt/miniature"], {"num_inference_steps": "2"}))
    job = {"ref_video_path": "assets/references/00-line.mp4", "prompt": prompt["4"]["inputs"]["prompt"], "seed": 42}
    assert torch.equal(made["4"].args[0], torch.from_numpy(engine.generate(job)))  # what the command line makes
    assert made["5"].args[0].shape == (16, 256, 512, 3)
    assert len(server.previews) == 2
    assert server.previews[0][1].size == (64, 64)
    assert (server.base / "output" / "EfficientMT" / "efficientmt_miniature_00001_.json").is_file()
    prompt["4"]["inputs"]["seed"] = 7
    again = server.run(prompt)
    assert server.ran == ["EfficientMT_Generate", "EfficientMT_Evaluate", "EfficientMT_Save"]
    assert not torch.equal(again["4"].args[0], made["4"].args[0])


@pytest.mark.parametrize("name", EXAMPLES)
def test_files_on_disk(name):
    files = workflows.files_of(name, EXAMPLES[name])
    assert set(files) == {f"{name}.json", f"api/{name}.json", f"{name}.jpg"}
    with Image.open(io.BytesIO(files[f"{name}.jpg"])) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) > 200


def test_examples_are_for_the_methods_that_take_them():
    for name, methods in running.examples().items():
        for method in methods:
            run = completed(running.with_example(running.run_schema(method)(), name))
            assert run.ref_video_path, name
