"""The nodes over a toy method registered from outside: nothing in apps/ knows its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from animatediff.apps import comfyui, forms
from animatediff.apps.comfyui import running
from animatediff.config import option
from animatediff.data.video import read_frames, sample_indices
from animatediff.errors import UserError
from animatediff.inference import Engine
from animatediff.inference.run import run_of
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import Input, WeightFile
from tests.apps.comfyui.standin import Interrupted, Server, VideoComponents, VideoFromComponents, VideoFromFile

SIDE, FRAMES = 16, 4


@dataclass
class ToyFiles:
    toy_path: str = option("toy.bin", "one number", once=True)


@dataclass
class ToySettings:
    gain: float = option(1.0, "of the brightness", least=0, most=2)
    at: list[int] = option([0, 1], "two numbers", least=0, most=9)
    mode: str = option("soft", "how", choices=("soft", "hard"), once=True)


class Toy:
    """Its video is the reference's by `gain`, then what the job brings; its model is one number and one network."""

    name, title, Files, Settings = "toy", "Toy", ToyFiles, ToySettings
    defaults = {"num_frames": FRAMES, "num_inference_steps": 3, "height": SIDE, "width": SIDE, "reference_seed": None}
    inputs = (
        Input("picture_paths", "images", help="pictures"),
        Input("pose_path", "video", help="skeletons"),
        Input("mask_path", "masks", help="masks"),
    )
    needs_prompt = True
    reference_keys = frozenset({"ref_prompt"})
    objective = None
    extracted = 0

    def check(self, run, settings): ...

    def weights(self, files):
        return [WeightFile("toy", Path(files.toy_path), by_content=True)]

    def load(self, files, settings, device, dtype):
        self.device = device
        self.network = torch.nn.Linear(1, 1)
        return type("Pipe", (), {"components": {"network": self.network}, "mode": settings.mode})()

    def extract(self, pipe, video, inputs, run, settings, rng):
        self.extracted += 1
        return (video + 1) / 2

    def generate(self, pipe, reference, inputs, run, settings, rng, on_step):
        self.inputs_seen = dict(inputs)
        for step in range(run.num_inference_steps):
            on_step(step, run.num_inference_steps, reference)
        return (settings.gain * reference).clamp(0, 1).permute(0, 2, 3, 1).numpy()  # f 3 h w -> f h w 3

    def facts(self, pipe, reference):
        return {}


@pytest.fixture
def toy(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """The method and a preset of it; the server's nodes taken again."""
    method = Toy()
    monkeypatch.setattr(METHODS, "_entries", METHODS._entries | {"toy": method})
    (tmp_path / "toy.bin").write_text("1")
    run = run_of([("toy", {"method": "toy", "toy_path": str(tmp_path / "toy.bin"), "fps": 12.0})])
    preset = forms.Preset("toy", "small", tmp_path / "small.yaml", run, "", ())
    preset.path.write_text(f"method: toy\ntoy_path: {tmp_path / 'toy.bin'}\nfps: 12.0\n")
    known = {preset.key: preset, **running.presets()}
    monkeypatch.setattr(running, "presets", lambda: known)
    running.examples.cache_clear()
    server.start(comfyui.comfy_entrypoint)
    yield method
    running.examples.cache_clear()


@pytest.fixture
def model(server: Server, toy: Toy):
    return server.execute("EfficientMT_Load", preset="toy/small").args[0]


def batch(frames: int = FRAMES, side: int = SIDE, channels: int = 3) -> torch.Tensor:
    """Images (f h w c) whose values are whole levels."""
    levels = torch.randint(0, 256, (frames, side, side, channels), generator=torch.Generator().manual_seed(frames))
    return levels / 255


def generate(server: Server, reference, **given):
    return server.execute("EfficientMT_Generate", **{"reference": reference, "prompt": "a cat", "seed": 1} | given)


def test_ids_and_types(server: Server):
    methods = [f"EfficientMT_Settings_{name}" for name in METHODS]
    parts = [f"EfficientMT_{name}" for name in ("Load", "Extract", "Generate", "Evaluate", "Save")]
    assert set(server.nodes) == {*methods, *parts}
    outputs = {name: [slot.type for slot in node.define_schema().outputs] for name, node in server.nodes.items()}
    assert outputs["EfficientMT_Extract"] == ["REFERENCE"]
    assert outputs["EfficientMT_Generate"][:2] == ["IMAGE", "VIDEO"]
    assert outputs["EfficientMT_Evaluate"][0] == "IMAGE"
    for name in methods:
        assert outputs[name] == ["EFFICIENTMT_SETTINGS"]
        assert server.execute(name).args[0].method == name.rpartition("_")[2]  # all defaults are taken


def test_a_new_method_brings_its_own_inputs(server: Server, toy: Toy):
    settings = {slot.id: slot for slot in server.nodes["EfficientMT_Settings_toy"].define_schema().inputs}
    assert (settings["gain"].type, settings["gain"].said["min"], settings["gain"].said["max"]) == ("FLOAT", 0, 2)
    assert (settings["at"].type, settings["at"].said["default"]) == ("STRING", "[0, 1]")
    assert "mode" not in settings
    assert not {"seed", "prompt", "toy_path", "output_dir", "device"} & set(settings)
    asked = {slot.id: slot.type for slot in server.nodes["EfficientMT_Generate"].define_schema().inputs}
    assert (asked["picture"], asked["pose"], asked["mask"]) == ("IMAGE", "IMAGE", "MASK")
    once = {
        slot.id: slot.said["options"]
        for slot in server.nodes["EfficientMT_Load"].define_schema().inputs[1:]
        if slot.type == "COMBO"
    }
    assert once["mode"] == ["as the preset", "soft", "hard"]
    assert "toy_path" in once


def test_images_in_images_out(server: Server, toy: Toy, model):
    images = batch()
    reference = server.execute("EfficientMT_Extract", model=model, images=images).args[0]
    made, video, _ = generate(server, reference).args
    assert made.dtype == torch.float32
    assert torch.allclose(made, images, atol=1e-6)
    assert video.get_components().frame_rate == Fraction(12)
    assert torch.equal(video.get_components().images, made)
    assert server.progress[-3:] == [(1, 3), (2, 3), (3, 3)]


def test_of_a_long_batch_the_frames_that_files_give(server: Server, toy: Toy, model):
    images = batch(11)
    reference = server.execute("EfficientMT_Extract", model=model, images=images).args[0]
    chosen = images[sample_indices(11, FRAMES)]
    assert torch.equal(torch.from_numpy(reference.extracted.pixels) / 255, chosen)
    first = server.execute("EfficientMT_Settings_toy", take="first", num_frames=3).args[0]
    reference = server.execute("EfficientMT_Extract", model=model, images=images, settings=first).args[0]
    assert torch.equal(torch.from_numpy(reference.extracted.pixels) / 255, images[:3])


def test_alpha_grey_and_a_video(server: Server, toy: Toy, model, clip: Path):
    images = batch(channels=4)
    reference = server.execute("EfficientMT_Extract", model=model, images=images).args[0]
    over_black = (images[..., :3] * images[..., 3:] * 255).round()
    assert torch.equal(torch.from_numpy(reference.extracted.pixels).float(), over_black)
    cut = VideoFromFile(str(clip), seconds=1.0)
    cut.components = VideoComponents(batch(), Fraction(8))
    for video, path in (
        (VideoFromFile(str(clip)), str(clip)),
        (cut, None),
        (VideoFromComponents(cut.components), None),
    ):
        run = server.execute("EfficientMT_Extract", model=model, video=video).args[0].run
        assert (run.ref_video_path == str(clip)) is (path is not None)
        if path is None:
            assert np.array_equal(read_frames(run.ref_video_path, None).frames, (batch() * 255).round().byte().numpy())


def test_what_a_job_brings(server: Server, toy: Toy, model):
    reference = server.execute("EfficientMT_Extract", model=model, images=batch()).args[0]
    mask = (batch()[..., 0] > 0.5).float()
    generate(server, reference, picture=batch(2), pose=batch(9), mask=mask)
    assert torch.equal(toy.inputs_seen["picture_paths"], batch(2).permute(0, 3, 1, 2))
    pose = batch(9)[sample_indices(9, FRAMES)].permute(0, 3, 1, 2)
    assert torch.allclose(toy.inputs_seen["pose_path"], pose * 2 - 1, atol=1e-6)
    assert torch.equal(toy.inputs_seen["mask_path"][:, 0], mask)


def test_a_reference_is_read_once(server: Server, toy: Toy, model):
    first = server.execute("EfficientMT_Extract", model=model, images=batch()).args[0]
    server.execute("EfficientMT_Extract", model=model, images=batch())
    assert toy.extracted == 1
    generate(server, first, seed=first.run.seed)
    assert toy.extracted == 1
    generate(server, first, seed=7)  # reference_seed is null: the noise of the reference pass is the job's
    assert toy.extracted == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 32}, "height is 32, and the reference was extracted with 16; connect the same settings"),
        ({"ref_prompt": "x"}, "ref_prompt is 'x', and the reference was extracted with ''"),
    ],
)
def test_settings_that_are_not_the_references_are_refused(server: Server, toy: Toy, model, change, words):
    reference = server.execute("EfficientMT_Extract", model=model, images=batch()).args[0]
    settings = server.execute("EfficientMT_Settings_toy", **change).args[0]
    with pytest.raises(UserError, match=words):
        generate(server, reference, settings=settings)
    kept = server.execute("EfficientMT_Settings_toy", gain=0.5).args[0]
    assert torch.allclose(generate(server, reference, settings=kept).args[0], batch() * 0.5, atol=1e-6)


def test_mistakes_are_one_line(server: Server, toy: Toy, model):
    extract, other = "EfficientMT_Extract", server.execute("EfficientMT_Settings_efficientmt").args[0]
    for given, words in (
        ({}, "no reference; connect images or a video"),
        ({"images": batch(), "video": VideoFromFile("x")}, "more than one of images, video and example"),
        ({"images": batch()[:0]}, "the batch is empty"),
        ({"images": batch(), "settings": other}, "settings are for method=efficientmt, the model is method=toy"),
    ):
        with pytest.raises(UserError, match=words):
            server.execute(extract, model=model, **given)
    reference = server.execute(extract, model=model, images=batch()).args[0]
    with pytest.raises(UserError, match="condition_image is connected, which method=toy has no use for"):
        generate(server, reference, condition_image=batch())
    with pytest.raises(UserError, match=r"at is 12, expected 0 to 9"):
        server.execute("EfficientMT_Settings_toy", at="3, 12")
    with pytest.raises(UserError, match="backbone is 'wan', which method=toy has no use for"):
        server.execute("EfficientMT_Load", preset="toy/small", backbone="wan")
    (Path(model.engine.run.toy_path)).unlink()
    with pytest.raises(UserError, match="no weights at .*toy.bin"):
        server.execute("EfficientMT_Load", preset="toy/small")


def test_files_come_from_comfyuis_folders(server: Server, toy: Toy, tmp_path: Path):
    load, own = "EfficientMT_Load", server.base / "models" / "efficientmt"
    (own / "deep").mkdir(parents=True)
    (own / "deep" / "other.safetensors").write_text("2")
    (own / "folder").mkdir()
    (own / "folder" / "config.json").write_text("{}")
    named = {slot.id: slot for slot in server.nodes[load].define_schema().inputs}["toy_path"].said["options"]
    assert named == ["as the preset", "none", "efficientmt/deep/other.safetensors", "efficientmt/folder"]
    chosen = server.execute(load, preset="toy/small", toy_path="efficientmt/deep/other.safetensors", mode="hard").args[
        0
    ]
    assert chosen.engine.run.toy_path == str(own / "deep" / "other.safetensors")
    assert chosen.engine.load().mode == "hard"
    elsewhere = tmp_path / "extra"  # as extra_model_paths.yaml adds one
    server.folders["efficientmt"][0].append(str(elsewhere))
    elsewhere.mkdir()
    (tmp_path / "toy.bin").rename(elsewhere / "toy.bin")
    found = server.execute(load, preset="toy/small").args[0]
    assert found.engine.run.toy_path == str(elsewhere / "toy.bin")  # by its bare name


def test_comfyui_moves_the_networks(server: Server, toy: Toy, monkeypatch):
    server.device = torch.device("cpu:0")  # stands for the accelerator
    model = server.execute("EfficientMT_Load", preset="toy/small").args[0]
    moves = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: moves.append(str(device)))
    assert toy.device == "cpu"
    assert not server.loaded
    reference = server.execute("EfficientMT_Extract", model=model, images=batch()).args[0]
    generate(server, reference)
    assert moves == ["cpu:0"]
    assert [held.size for held in server.loaded] == [8]  # a weight and a bias in float32
    server.unload()
    assert moves == ["cpu:0", "cpu"]
    generate(server, reference)
    assert moves == ["cpu:0", "cpu", "cpu:0"]
    assert toy.extracted == 3  # for the preset's seed, for the job's, and again: unloading let go of it


def test_cancel_stops_and_leaves_the_model_usable(server: Server, toy: Toy, model):
    reference = server.execute("EfficientMT_Extract", model=model, images=batch()).args[0]
    server.progress.clear()
    server.interrupt_at = 2
    with pytest.raises(Interrupted):
        generate(server, reference)
    assert server.progress == [(1, 3), (2, 3)]
    assert torch.allclose(generate(server, reference).args[0], batch(), atol=1e-6)


def test_evaluate_draws_and_measures(server: Server, toy: Toy, model):
    moving = torch.full((FRAMES, SIDE * 4, SIDE * 4, 3), 0.2)
    for k in range(FRAMES):
        moving[k, 20:40, 10 + 3 * k : 30 + 3 * k] = torch.tensor([0.9, 0.3, 0.1])
    settings = server.execute("EfficientMT_Settings_toy", height=64, width=64).args[0]
    reference = server.execute("EfficientMT_Extract", model=model, images=moving, settings=settings).args[0]
    output = server.execute("EfficientMT_Evaluate", images=moving, reference=reference)
    overlay, fidelity, distance, camera, text = output.args
    assert overlay.shape == (FRAMES, 256, 512, 3)
    assert (overlay.min() >= 0, overlay.max() <= 1) == (True, True)
    assert (fidelity, distance, camera) == pytest.approx((1, 0, 0), abs=1e-6)
    assert text.splitlines()[0] == "motion fidelity: 1.000 (higher is better)"
    assert output.ui == {"text": (text,)}
    still = server.execute("EfficientMT_Evaluate", images=torch.zeros_like(moving), reference=reference).args
    assert np.isnan(still[1])
    assert "not to be had" in still[-1]


def test_save_writes_a_sidecar_that_runs_again(server: Server, toy: Toy, model):
    settings = server.execute("EfficientMT_Settings_toy", gain=0.5, fps="12").args[0]
    reference = server.execute("EfficientMT_Extract", model=model, images=batch(), settings=settings).args[0]
    images, _, result = generate(server, reference, pose=batch()).args
    output = server.execute("EfficientMT_Save", result=result, filename_prefix="mine/cat", gif=True)
    folder = server.base / "output" / "mine"
    assert output.args == (str(folder / "cat_00001_.mp4"),)
    assert output.ui["images"] == [{"filename": "cat_00001_.mp4", "subfolder": "mine", "type": "output"}]
    names = {path.name for path in folder.iterdir()}
    assert names == {"cat_00001_.mp4", "cat_00001_.gif", "cat_00001_.json", "cat_00001_ref_video", "cat_00001_pose"}
    sidecar = json.loads((folder / "cat_00001_.json").read_text())
    config = sidecar["config"]
    assert (sidecar["prompt"], sidecar["fps"], config["toy"]["gain"]) == ("a cat", 12.0, 0.5)
    assert config["ref_video_path"] == str(folder / "cat_00001_ref_video")
    again = Engine(run_of([("sidecar", config)])).generate({})
    assert np.allclose(again, images.numpy())
