"""Both stages of the training through train.py, tiny: 32x32 pixels, clips of two and three frames."""

import json
import re
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import train as program
from animatediff.errors import UserError
from animatediff.pipelines.motionfollower import training_data
from animatediff.pipelines.motionfollower.loading import MotionFollowerFiles, load_motionfollower
from animatediff.pipelines.motionfollower.objective import motion_paths
from animatediff.pipelines.motionfollower.training import Objective
from animatediff.pipelines.motionfollower.training_data import PreparedVideo, draw_clips
from animatediff.training.config import read_config
from animatediff.training.setup import build_accelerator
from tests.goldens import TINY
from tests.pipelines.motionfollower.layout import waving, write_sequences, write_weights
from tests.training.conftest import _fresh_accelerator, equal, run  # noqa: F401
from tests.training.test_train import gradients, start, state

SIDE = 32


@pytest.fixture(scope="session")
def files(tmp_path_factory, states):
    return write_weights(tmp_path_factory.mktemp("weights"), states)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Three prepared folders of 6, 7 and 8 frames; the first has keypoints beside its drawings."""
    root = tmp_path_factory.mktemp("people")
    for name, frames in (("anna", 6), ("bob", 7), ("carl", 8)):
        write_sequences(root / name, frames, SIDE)
    keypoints = np.zeros((6, 60, 3), np.float32)
    keypoints[:, :18, :2], keypoints[:, :18, 2] = waving(1, SIDE), 1
    np.savez(root / "anna" / "keypoints.npz", source=keypoints)
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(files, videos, cache, tmp_path):
    """settings(stage, key=value, ...) -> overrides of a run in tmp_path / "run"; `data__root` stands for data.root."""

    def make(stage=1, **changes):
        values = {
            "method": "motionfollower",
            "stage": stage,
            "output": tmp_path / "run",
            "weights.pretrained_model_path": files["pretrained_model_path"],
            "weights.vae_path": files["vae_path"],
            "pose_channels": "[16,32,48,64]",
            "data.root": videos,
            "data.cache": cache,
            "data.num_frames": stage,
            "data.height": SIDE,
            "data.width": SIDE,
            "data.validation_share": 0,
            "data.workers": 0,
            "mixed_precision": "fp32",
            "learning_rate": 1e-3,
            "validation.every": 0,
            "log_with": "[]",
            **{f"weights.{key}": files[key] for key in ("unet_path", "pose_controller_path")},
        }
        if stage == 2:
            values["weights.motion_module_path"] = files["motion_module_path"]
        values |= {key.replace("__", "."): value for key, value in changes.items()}
        return [f"{key}={value}" for key, value in values.items()]

    return make


def weights(output):
    return {path.name: load_file(path) for path in sorted((output / "adapter").iterdir())}


def test_what_is_saved_is_what_inference_loads_and_only_the_stage_has_moved(settings, files, tmp_path):
    first = run(settings(1, max_steps=2, weight_decay=0, output=tmp_path / "one"))
    assert sorted(weights(first)) == ["denoising_unet.safetensors", "poctr.safetensors"]
    start_of_two = {
        "unet_path": str(first / "adapter" / "denoising_unet.safetensors"),
        "pose_controller_path": str(first / "adapter" / "poctr.safetensors"),
    }
    changes = {f"weights__{key}": value for key, value in start_of_two.items()}
    second = run(settings(2, max_steps=2, image_share=0, weight_decay=0, output=tmp_path / "two", **changes))
    assert sorted(weights(second)) == ["motion_module.safetensors"]

    base = {key: files[key] for key in ("pretrained_model_path", "vae_path")}
    motion = {"motion_module_path": str(second / "adapter" / "motion_module.safetensors")}
    after = parameters(load_motionfollower(MotionFollowerFiles(**base, **start_of_two, **motion)))
    before = parameters(load_motionfollower(MotionFollowerFiles(**files)))
    unmoved = {name for name, value in after.items() if torch.equal(value, before[name])}
    idle = {name for name in after if re.search(r"attn2\.to_[qk]\.|transformer_blocks\.0\.norm2\.", name)}
    assert unmoved <= idle - {name for name in after if ".motion_modules." in name}, "one token asks for no query"
    for output, part in ((first, False), (second, True)):
        learned = state(output, 2)["weights"]
        assert {".motion_modules." in name.replace("/", ".") for name in learned} == {part}
        for name, value in learned.items():
            assert torch.equal(after[name.replace("/", ".")], value), name


def parameters(pipe):
    networks = {name: getattr(pipe, name) for name in ("unet", "pose_controller", "appearance_controller")}
    return {f"{name}.{key}": value for name, part in networks.items() for key, value in part.named_parameters()}


def test_stage_two_moves_motion_modules_alone(settings, files):
    accelerator = build_accelerator(config := read_config([], settings(2)))
    objective = Objective(config, accelerator)
    learned = {name for name, value in objective.network.named_parameters() if value.requires_grad}
    assert learned == {name for name, _ in objective.network.named_parameters() if ".motion_modules." in name}
    assert len(learned) == 26 * len(motion_paths(objective.networks.unet))
    assert sum(len(group["params"]) for group in objective.parameter_groups()) == len(learned)
    assert not any(value.requires_grad for value in objective.vae.parameters())


def test_fresh_parts_change_nothing(settings):
    config = read_config([], settings(2, weights__motion_module_path=""))
    objective = Objective(config, build_accelerator(config))
    afresh = read_config([], settings(1, weights__unet_path="", weights__pose_controller_path=""))
    controller = Objective(afresh, objective.accelerator).networks.pose_controller
    assert not controller(torch.rand(1, 3, SIDE, SIDE)).any()
    assert controller.conv_in.weight.any()
    unet = objective.networks.unet
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 32, 4, 4, generator=rng)
    module = unet.get_submodule(motion_paths(unet)[0])
    assert torch.equal(module(hidden, num_frames=2), hidden)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_resumed_run_ends_with_the_same_weights(settings, tmp_path, stage):
    common = {"checkpoint_every": 1, "ema_decay": 0.5}
    unbroken = run(settings(stage, max_steps=2, output=tmp_path / "unbroken", **common))
    broken = run(settings(stage, max_steps=1, output=tmp_path / "broken", **common))
    before = weights(broken)
    assert run(settings(stage, max_steps=2, output=tmp_path / "broken", **common)) == broken
    for name, expected in weights(unbroken).items():
        assert equal(weights(broken)[name], expected)
        assert not equal(before[name], expected)
    assert equal(state(broken, 2)["weights"], state(unbroken, 2)["weights"])


def test_two_processes_give_the_gradients_of_one_with_the_batch_doubled(settings, repository, tmp_path):
    common = {"max_steps": 1, "max_grad_norm": 0, "data__num_frames": 3, "image_share": 0.5}
    doubled = run(settings(2, **common, batch_size=2))
    again = run(settings(2, **common, batch_size=2, gradient_checkpointing=True, output=tmp_path / "again"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    overrides = settings(2, **common, batch_size=1, output=tmp_path / "two")
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    ranks = [start(repository, overrides, RANK=str(r), LOCAL_RANK=str(r), **world) for r in range(2)]
    outputs = [process.communicate()[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)
    one = gradients(doubled)
    assert one.norm() > 0
    for other in (gradients(tmp_path / "two"), gradients(again)):
        assert (other - one).norm() / one.norm() < 1e-5


def test_everything_is_encoded_once(settings, monkeypatch, tmp_path):
    run(settings(1, max_steps=1, output=tmp_path / "one"))
    monkeypatch.setattr(training_data.VideoCache, "encode", None)
    run(settings(1, max_steps=1, output=tmp_path / "two"))


def test_the_cache_holds_what_the_networks_are_to_see(settings, videos):
    config = read_config([], settings(1))
    objective = Objective(config, build_accelerator(config))
    cache, anna, bob = objective.data.cache, *(PreparedVideo(videos / name) for name in ("anna", "bob"))
    drawn = np.stack([np.asarray(Image.open(videos / "bob" / "source_poses" / f"frame_{j}.png")) for j in (1, 4)])
    assert torch.equal(cache.poses(bob, [1, 4]), torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255)
    assert torch.equal(cache.poses(anna, [2]), cache.poses(bob, [2])), "the same skeleton, from keypoints"
    frame = torch.from_numpy(anna.frames([3])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        posterior = objective.vae.encode(frame).latent_dist
    assert torch.allclose(cache.moments(anna, [3])[0, :, 0], posterior.mean[0], atol=1e-5)
    assert cache.embeds(anna, [1, 2, 5]).shape == (3, TINY["cross_attention_dim"])


def test_validation_says_how_near_held_out_videos_are(settings, tmp_path):
    changes = {"data__validation_share": 0.4, "validation__every": 1, "validation__pairs": 2}
    config = read_config([], settings(2, **changes, validation__videos=1, validation__num_inference_steps=2))
    objective = Objective(config, build_accelerator(config))
    found = objective.validate(tmp_path / "found")
    assert found.keys() == {"validation/loss", "validation/reconstruction_psnr", "validation/pair_psnr"}
    assert objective.validate(tmp_path / "again") == found
    written = json.loads((tmp_path / "found" / "measures.json").read_text())
    assert written["mean"]["pair"] == found["validation/pair_psnr"]
    assert len(list((tmp_path / "found").glob("*.mp4"))) == 1
    held = {video.name for video in objective.data.validation}
    assert held
    assert not held & {video.name for video in objective.data.train}
    run(settings(2, **changes, validation__videos=0, max_steps=1))


def test_dry_run_counts_what_learns_and_what_does_not(settings, capsys):
    for stage, learned, frozen in ((1, "UNet without motion modules", "VAE"), (2, "motion modules", "image encoder")):
        assert program.main([*settings(stage), "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        trained = next(line for line in lines if line.startswith("trained: "))
        still = next(line for line in lines if line.startswith("frozen: "))
        config = read_config([], settings(stage))
        objective = Objective(config, build_accelerator(config))
        count = sum(value.numel() for value in objective.module.parameters() if value.requires_grad)
        assert f"trained: {count:,} parameters" in trained
        assert f"({learned} " in trained
        assert f"{frozen} " in still
        assert "training: 3 videos" in lines
        assert not any("MISSING" in line for line in lines)


def test_dry_run_of_the_published_stages_without_any_file(capsys, repository, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = repository / "configs" / "training"
    for stage, trained, frozen in ((1, "937,976,724", "0"), (2, "453,209,280", "937,976,724")):
        assert program.main(["--config", str(folder / f"motionfollower_stage{stage}.yaml"), "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert f"trained: {trained} parameters" in told
        assert f"frozen: {frozen} parameters" in told
        assert "MISSING  data: no data folder at data/people" in told


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        (1, {"data__num_frames": 24}, "data.num_frames is 24, but stage 1 learns from single frames"),
        (1, {"weights__motion_module_path": "mm.ckpt"}, "stage 1 has no motion modules; leave it empty"),
        (1, {"data__height": 40}, "height x width is 40x32, expected multiples of 16"),
        (3, {}, "stage is 3, expected 1 to 2"),
        (1, {"pose_channels": "[16,32]"}, "pose_channels is [16, 32], expected 4 widths"),
        (2, {"data__num_frames": 1}, "data.num_frames is 1, but stage 2 learns from clips"),
        (2, {"weights__unet_path": ""}, "weights.unet_path is empty, but stage 2 keeps what stage 1 learned"),
        (1, {"snr_gamma": 0}, "snr_gamma is 0.0, expected 1"),
    ],
)
def test_keys_that_contradict_each_other_are_one_line(settings, stage, changes, words):
    with pytest.raises(UserError) as error:
        read_config([], settings(stage, **changes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_videos_are_left_out_with_a_line_each(settings, tmp_path):
    root = tmp_path / "people"
    write_sequences(root / "good", 6, SIDE)
    (root / "empty").mkdir()
    short = write_sequences(root / "short", 2, SIDE)
    assert short.is_dir()
    uneven = write_sequences(root / "uneven", 4, SIDE)
    (uneven / "source_poses" / "frame_3.png").unlink()
    damaged = write_sequences(root / "damaged", 4, SIDE)
    (damaged / "source_images" / "frame_2.png").write_bytes(b"no picture")
    for name, keypoints in (("shape", np.zeros((4, 18, 3), np.float32)), ("count", np.zeros((3, 60, 3), np.float32))):
        np.savez(write_sequences(root / name, 4, SIDE) / "keypoints.npz", source=keypoints)
    (write_sequences(root / "noarray", 4, SIDE) / "keypoints.npz").write_bytes(b"nothing")
    config = read_config([], settings(2, data__root=root, data__cache=tmp_path / "cache", data__num_frames=3))
    objective = Objective(config, build_accelerator(config))
    assert [video.folder.name for video in objective.data.train] == ["good"]
    told = {line.split()[1].removesuffix(":").rpartition("/")[2]: line for line in objective.problems}
    assert told.keys() == {"empty", "short", "uneven", "damaged", "shape", "count", "noarray"}
    for name, words in (
        ("empty", "it has no folder source_images"),
        ("short", "it has 2 frames, expected 3 or more"),
        ("uneven", "has 4 frames, and 3 in source_poses"),
        ("damaged", "frame_2.png"),
        ("shape", "the keypoints have shape [4, 18, 3]"),
        ("count", "has 4 frames, and 3 in keypoints.npz"),
        ("noarray", "keypoints.npz"),
    ):
        assert words in told[name]
        assert "\n" not in told[name]
    (root / "good" / "source_images").rename(root / "good" / "images")
    with pytest.raises(UserError, match="no video is left to train on"):
        Objective(config, objective.accelerator)


def test_no_videos_and_no_weights_are_one_line(settings, tmp_path):
    (tmp_path / "none").mkdir()
    for changes, words in (
        ({"data__root": tmp_path / "missing"}, "no data folder at"),
        ({"data__root": tmp_path / "none"}, "no prepared videos in"),
        ({"weights__pretrained_model_path": tmp_path / "missing"}, "no base model folder at"),
        ({"weights__unet_path": tmp_path / "missing.pth"}, "no weights at"),
    ):
        config = read_config([], settings(1, **changes))
        with pytest.raises(UserError, match=words) as error:
            Objective(config, build_accelerator(config))
        assert "\n" not in str(error.value)


def test_a_checkpoint_of_the_other_stage_is_refused(settings):
    run(settings(1, max_steps=1))
    with pytest.raises(UserError, match="another architecture: stage 1 there, 2 here"):
        run(settings(2, max_steps=2))


def test_clips_are_apart_or_as_far_as_the_video_allows():
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_clips(100, 1, 4, 30, generator) for _ in range(300)]
    assert all(abs(source[0] - target[0]) >= 30 for source, target in drawn)
    assert {frame for source, _ in drawn for frame in source} >= {0, 99} or len({s[0] for s, _ in drawn}) > 60
    for _ in range(20):
        source, target = draw_clips(10, 1, 4, 30, generator)
        assert {source[0], target[0]} & {0, 9}
        assert abs(source[0] - target[0]) >= 5
    for _ in range(20):
        source, target = draw_clips(200, 24, 4, 30, generator)
        assert np.diff(source).tolist() == np.diff(target).tolist() == [4] * 23
        assert min(source + target) >= 0
        assert max(source + target) < 200
        assert abs(source[0] - target[0]) >= 30
    assert draw_clips(24, 24, 4, 30, generator) == (list(range(24)), list(range(24)))
    source, target = draw_clips(60, 24, 4, 30, generator)
    assert np.diff(source).tolist() == [2] * 23
    assert {source[0], target[0]} & {0, 13}


def test_a_step_is_of_one_kind_and_four_in_ten_are_of_images(settings):
    config = read_config([], settings(2, data__num_frames=3))
    objective = Objective(config, build_accelerator(config))
    plan = training_data.BatchPlan(batch_size=2)
    kinds = [batch.frames.shape[1] for batch in objective.batches(plan, 3, 60)]
    assert set(kinds) == {1, 3}
    assert 0.25 < kinds.count(1) / 60 < 0.55
    objective.rule = replace(objective.rule, image_share=0.0)
    assert all(batch.frames.shape[1] == 3 for batch in objective.batches(plan, 3, 10))
