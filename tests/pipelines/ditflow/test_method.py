"""DiTFlow behind inference.py: videos, records, saved positions, and bad input in one line before any work."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.inference import Engine, cli
from animatediff.inference.cli import parse
from animatediff.inference.run import fingerprint, read_run, reference_key, run_schema
from animatediff.pipelines.ditflow import method
from animatediff.pipelines.ditflow.settings import ALIASES, RENAMED
from tests.video_transformers import KINDS

ROWS = ("positions", "smm", "moft", "injection", "backbone")
BACKBONES = {"cogvideox_5b": (20, True), "cogvideox_2b": (15, False), "wan_1.3b": (15, False), "wan_14b": (20, False)}


@pytest.fixture(scope="module")
def loaded_once():
    pipes = {}

    def load(files, settings, device, dtype):
        key = repr([files, settings.backbone, settings.vae_tiling, dtype])
        if key not in pipes:
            pipes[key] = original(files, settings, device, dtype)
        return pipes[key]

    original = method.load_ditflow
    return load


@pytest.fixture
def config(video_layouts, tmp_path, monkeypatch, loaded_once):
    """kind -> a configuration on its tiny layout: 9 frames of 32x48, 4 steps of which 2 guided."""
    monkeypatch.setattr(method, "load_ditflow", loaded_once)
    monkeypatch.chdir(tmp_path)

    def write(kind, **changes):
        section = {"guidance_blocks": [1], "guidance_steps": 2, "optimization_steps": 2, "dynamic_cfg": kind == "5b"}
        run = {
            "method": "ditflow",
            "pretrained_model_path": str(video_layouts(kind)),
            "num_frames": 9,
            "height": 32,
            "width": 48,
            "num_inference_steps": 4,
            "negative_prompt": "grey",
            "device": "cpu",
            "dtype": "fp32",
            "ditflow": section | changes.pop("ditflow", {}),
        }
        path = tmp_path / f"{kind}.yaml"
        path.write_text(json.dumps(run | changes))
        return path

    return write


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A square that moves to the right: a folder of 12 frames of 32x48."""
    folder = tmp_path_factory.mktemp("moving")
    for i in range(12):
        frame = np.full((32, 48, 3), 40, np.uint8)
        frame[8:24, 2 * i : 2 * i + 16] = (220, 60, 30)
        Image.fromarray(frame).save(folder / f"{i:02}.png")
    return folder


def infer(path, clip, *arguments, prompt="a red star"):
    return cli.main(["--config", str(path), "--ref_video_path", str(clip), "--prompt", prompt, *arguments])


def only(folder, pattern):
    (found,) = Path(folder).rglob(pattern)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_and_its_record(kind, config, moving):
    assert infer(config(kind), moving) == 0
    record = json.loads(only("outputs", "*.json").read_text())
    assert (record["num_frames"], record["height"], record["width"]) == (9, 32, 48)
    assert record["reference_frames"]["indices"] == list(range(9))  # the first, at the clip's own rate
    assert method.STATIC not in record
    assert len(read_frames(only("outputs", "*.mp4"), None).frames) == 9
    assert any(name.startswith("base model: transformer diffusion") for name in record["weights"])


@pytest.mark.parametrize("kind", KINDS)
def test_positions_saved_once_serve_another_prompt(kind, config, moving, capsys):
    path = config(kind, ditflow={"variable": "positions", "save_positions": True})
    assert infer(path, moving) == 0
    saved = only("outputs", f"*{method.POSITIONS}")
    assert saved.name == "a-red-star-1.positions.safetensors"
    zero_shot = ["ditflow.save_positions=false", f"ditflow.positions_path={saved}"]
    assert infer(path, moving, *zero_shot, prompt="a blue car") == 0
    assert len(list(Path("outputs").rglob("*.mp4"))) == 2
    for change, message in [
        ("num_frames=17", "num_frames 9, this run has 17"),
        ("width=32", "width 48, this run has 32"),
        ("num_inference_steps=5", "num_inference_steps 4, this run has 5"),
        ("ditflow.guidance_steps=1", "guidance_steps 2, this run has 1"),
    ]:
        with pytest.raises(UserError, match=f"were saved with {message}"):
            infer(path, moving, *zero_shot, change)
    other = config({"2b": "5b", "5b": "2b", "wan": "2b"}[kind])
    with pytest.raises(UserError, match="were saved with transformer"):
        infer(other, moving, f"ditflow.positions_path={saved}")


def test_a_static_clip_is_told_and_still_gives_a_video(config, moving, tmp_path, capsys):
    # 16x16 pixels are one token: nothing can move.
    assert infer(config("2b"), moving, "height=16", "width=16") == 0
    assert "nothing moves in the reference" in capsys.readouterr().err
    assert json.loads(only("outputs", "*.json").read_text())[method.STATIC] is True


def test_the_clip_gives_its_size_alone_without_use_reference(config, moving):
    engine = Engine(read_run([config("2b")], ["use_reference=false"], {"ref_video_path": str(moving), "prompt": "x"}))
    reference = engine.extract({})
    assert reference.motion.motion is None
    assert engine.generate({}, reference).shape == (9, 32, 48, 3)


def test_one_reference_serves_what_it_does_not_depend_on(config, moving):
    def key(*overrides):
        return reference_key(read_run([config("2b")], overrides, {"ref_video_path": str(moving)}))

    assert key() == key("seed=7", "guidance_scale=3", "ditflow.variable=positions", "ditflow.guidance_steps=1")
    changes = (
        "ditflow.loss=moft",
        "ditflow.guidance_blocks=[2]",
        "ditflow.temperature=1",
        "take=spread",
        "ref_prompt=x",
    )
    assert len({key(), *(key(change) for change in changes)}) == 1 + len(changes)


def test_what_saves_memory_leaves_jobs_finished(config, moving):
    def of(*overrides):
        return fingerprint(read_run([config("2b")], overrides, {"ref_video_path": str(moving), "prompt": "x"}))

    assert of() == of("ditflow.batched_cfg=false", "ditflow.gradient_checkpointing=false", "offload=model")
    assert of() != of("ditflow.temperature=1")


def test_frames_are_resized_as_the_published_program_does(config, moving):
    engine = Engine(read_run([config("2b")], ["height=48", "width=64"], {"ref_video_path": str(moving), "prompt": "x"}))
    pixels = engine.extract({}).pixels
    first = Image.open(moving / "00.png").resize((64, 48), Image.Resampling.BICUBIC)
    assert np.array_equal(pixels[0], np.asarray(first))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["ditflow.guidance_steps=5"], "guidance_steps is 5, expected 0 to num_inference_steps, 4"),
        (["ditflow.learning_rate=[0.1]"], "learning_rate is .*, expected two numbers"),
        (["ditflow.learning_rate=[0.1, -1]"], "ditflow.learning_rate is -1.0, expected 0 or more"),
        (["ditflow.guidance_blocks=[7]"], "ditflow.guidance_blocks holds 7; this transformer has blocks 0 to 2"),
        (["ditflow.injection_blocks=[3]"], "ditflow.injection_blocks holds 3; this transformer has blocks 0 to 2"),
        (["ditflow.injection_blocks=[0,1]"], "block 1 is in ditflow.guidance_blocks and ditflow.injection_blocks"),
        (["ditflow.guidance_blocks=[]"], "ditflow.guidance_blocks is empty"),
        (["num_frames=12"], "num_frames is 12, which the VAE cannot give back; the nearest is 9"),
        (["scheduler=euler"], "scheduler is 'euler', expected auto, ddim or dpm for cogvideox_2b"),
        (["scheduler=pndm"], "scheduler is 'pndm'"),
        (["reference_timestep=3"], "reference_timestep is 3, which method=ditflow has no use for"),
        (["attention=xformers"], "attention is 'xformers', which method=ditflow has no use for"),
        (["ditflow.save_positions=true"], "ditflow.save_positions is true, but none are optimised"),
        (["ditflow.published_gradient=true"], "acts on the positions of CogVideoX-5b alone"),
        (["ditflow.positions_path=nowhere"], "no saved positions at nowhere"),
        (["ditflow.backbone=wan"], "is cogvideox_2b, but these settings are for wan"),
        (["ditflow.loss=flows"], "ditflow.loss is 'flows'; did you mean 'flow'"),
    ],
)
def test_bad_values_are_one_line_before_anything_is_loaded(overrides, message, config, moving, monkeypatch):
    monkeypatch.setattr(method, "load_ditflow", None)
    with pytest.raises(UserError, match=message):
        infer(config("2b"), moving, *overrides)
    assert not Path("outputs").exists()


def test_another_model_s_folder_is_refused(config, moving, tiny_weights):
    with pytest.raises(UserError, match="no transformer/config.json, expected a CogVideoX folder; .* Stable Diffusion"):
        method.METHOD.load(
            method.VideoTransformerFiles(tiny_weights.pretrained_model_path), method.DiTFlowSettings(), "cpu", None
        )


@pytest.mark.parametrize("name", list(BACKBONES))
def test_configurations_and_their_rows(name, repository):
    folder = repository / "configs" / "inference" / "ditflow"
    run = read_run([folder / f"{name}.yaml"])
    block, dynamic = BACKBONES[name]
    assert run.ditflow.guidance_blocks == [block]
    assert run.ditflow.dynamic_cfg == dynamic
    assert run.ditflow.backbone == ("wan" if name.startswith("wan") else name)
    rows = {row: read_run([folder / f"{name}.yaml", folder / f"{row}.yaml"]) for row in ROWS}
    assert rows["positions"].ditflow.variable == "positions"
    assert [rows[row].ditflow.loss for row in ("smm", "moft", "injection")] == ["smm", "moft", "none"]
    assert not rows["backbone"].use_reference
    assert all(row.ditflow.guidance_blocks == [block] for row in rows.values())


def test_the_defaults_are_the_published_run_on_5b(repository):
    published = read_run([repository / "configs" / "inference" / "ditflow" / "cogvideox_5b.yaml"])
    plain = run_schema("ditflow")()
    for name in method.DiTFlowMethod.defaults:
        assert getattr(published, name) == getattr(plain, name), name
    published.ditflow.backbone = "auto"
    assert published.ditflow == plain.ditflow


def test_names_of_the_published_program():
    run = read_run(
        given={"method": "ditflow", "lr": [0.1, 0.2], "motion_temp": 3.0, "video_length": 8, "source_prompt": "x"}
    )
    assert (run.ditflow.learning_rate, run.ditflow.temperature) == ([0.1, 0.2], 3.0)
    assert (run.num_frames, run.ref_prompt) == (8, "x")
    section = vars(run.ditflow)
    assert all(target.removeprefix("ditflow.") in section or target in vars(run) for target in ALIASES.values())
    for name, ours in RENAMED.items():
        with pytest.raises(UserError, match=f"'{name}' in .* is an old name; write {ours[:12]}"):
            read_run(given={"method": "ditflow", name: 1})


@pytest.mark.parametrize("name", [*ALIASES, *RENAMED])
def test_flags_of_the_published_program_are_answered(name):
    ours = RENAMED.get(name) or f"{ALIASES[name]}=value"
    with pytest.raises(UserError) as error:
        parse([f"--{name}", "1"], None)
    assert str(error.value) == f"'--{name}' is another program's; with method=ditflow write {ours}"
