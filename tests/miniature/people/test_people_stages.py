"""scripts/make_miniature.py --people: stages that resume, and files that MotionFollower's loader takes."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

from animatediff.config import load_config
from animatediff.miniature.people import stages, training
from animatediff.miniature.people.data import cache
from animatediff.miniature.people.networks import build_people_networks, build_people_vae, build_vision_encoder
from animatediff.miniature.stages import StageConfig
from animatediff.pipelines.motionfollower.loading import MotionFollowerFiles, load_motionfollower

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "make_miniature.py"
TINY = ["scenes=2", "start=", *(f"{stage}.steps=1" for stage in ("vae", "vision", "decoder", "images", "clips"))]
TINY += [*(f"{stage}.batch=1" for stage in ("vae", "decoder", "images", "clips")), "vision.batch=2"]


def files(folder):
    return MotionFollowerFiles(
        pretrained_model_path=str(folder / "base"),
        vae_path=str(folder / "vae"),
        motion_module_path=str(folder / "motion_module.safetensors"),
        unet_path=str(folder / "denoising_unet.safetensors"),
        pose_controller_path=str(folder / "pose_controller.safetensors"),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole run of one step each: its config and folder."""
    folder = tmp_path_factory.mktemp("people")
    spec = importlib.util.spec_from_file_location("make_miniature_people", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    overrides = [*TINY, f"work={folder / 'work'}", f"output={folder / 'out'}"]
    config = load_config(stages.PeopleConfig, script.PEOPLE_CONFIG, overrides)
    stages.make_people(config)
    return config, folder


def test_a_run_gives_what_the_loader_takes_and_repeating_it_changes_nothing(made):
    config, folder = made
    assert not [path for path in (folder / "out").rglob("*.json") if str(folder) in path.read_text()]
    pipe = load_motionfollower(files(folder / "out"))
    assert pipe.unet.config.in_channels == pipe.vae.config.latent_channels == 8
    first = {path: path.read_bytes() for path in (folder / "out").rglob("*.safetensors")}
    assert sum(map(len, first.values())) < 12e6
    shutil.rmtree(folder / "out")
    stages.make_people(config)
    assert first == {path: path.read_bytes() for path in (folder / "out").rglob("*.safetensors")}


def test_the_files_hold_the_networks_that_were_trained(made):
    config, folder = made
    trained = stages.load_file(Path(config.work) / "clips.safetensors")
    pipe = load_motionfollower(files(folder / "out"))
    for name, network in training.all_of(pipe.networks).items():
        for key, value in network.named_parameters():
            torch.testing.assert_close(value, trained[f"networks.{name}.{key}"].half().float(), rtol=0, atol=0)


@pytest.mark.parametrize("stage", ["images", "clips"])
def test_a_stage_trains_its_part_alone_and_resumes_to_the_bit(stage, tmp_path):
    train = getattr(training, f"train_{stage}")

    def run(checkpoint, steps):
        torch.manual_seed(0)
        networks, encoder = build_people_networks(), build_vision_encoder().requires_grad_(False)
        start = {key: value.clone() for key, value in training.all_of(networks).state_dict().items()}
        dataset = cache(tmp_path / "latents", build_people_vae().requires_grad_(False), 1)
        train(networks, encoder, dataset, StageConfig(steps, 1, 1e-3), checkpoint, seed=3)
        return start, training.all_of(networks).state_dict()

    start, through = run(tmp_path / "through.pt", 2)
    changed = {key for key in start if not torch.equal(start[key], through[key])}
    assert changed
    assert {"motion_modules" in key for key in changed} == {stage == "clips"}
    if stage == "images":
        assert {key.split(".")[0] for key in changed} == {"unet", "pose_controller", "appearance_controller"}
    _interrupt(run, tmp_path / "twice.pt")
    _, resumed = run(tmp_path / "twice.pt", 2)
    for key, value in through.items():
        assert torch.equal(value, resumed[key]), key


def _interrupt(run, checkpoint):
    """A run of two steps that is stopped after the first has been saved."""
    with pytest.MonkeyPatch.context() as patch:
        train = training.train

        def stopped(name, groups, loss_of, *rest, **options):
            def loss(step, generator):
                if step == 1:
                    raise KeyboardInterrupt
                return loss_of(step, generator)

            train(name, groups, loss, *rest, **options | {"save_every": 1})

        patch.setattr(training, "train", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(checkpoint, 2)
    assert checkpoint.exists()
