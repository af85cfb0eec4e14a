"""scripts/make_miniature.py: stages that resume, and a base model that the common loader takes."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from animatediff.config import load_config
from animatediff.errors import UserError
from animatediff.miniature.base import (
    NEIGHBOURS,
    SUBJECT_WEIGHT,
    build_image_unet,
    subject_importance,
    to_video_unet,
    velocity_loss,
)
from animatediff.miniature.loop import one_cycle, train
from animatediff.miniature.stages import camera_chances, save_model
from animatediff.miniature.text import build_text_encoder, build_tokenizer, encode_text, tokenize, world_words
from animatediff.miniature.world import Clip, sample_content, sample_motion
from animatediff.pipelines.backbones.sd15 import load_components
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles as Files
from tests.miniature.shares import learn

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_miniature.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_miniature", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_shipped_config_is_the_default(script):
    assert load_config(script.MiniatureConfig, script.CONFIG) == script.MiniatureConfig()


def test_a_small_run_gives_what_the_loader_takes_and_repeating_it_changes_nothing(script, tmp_path):
    overrides = ["clips=3", "latents=3", "vae.steps=1", "vae.batch=1", "frames.steps=1", "frames.batch=2"]
    overrides += ["motion.steps=1", "motion.batch=1", f"work={tmp_path / 'work'}", f"output={tmp_path / 'out'}"]
    config = load_config(script.MiniatureConfig, script.CONFIG, overrides)
    script.make(config)
    weights = Files(
        pretrained_model_path=str(tmp_path / "out" / "StableDiffusion"),
        motion_module_path=str(tmp_path / "out" / "Motion_Module" / "mm.safetensors"),
        ckpt_path="",
    )
    assert not [path for path in (tmp_path / "out").rglob("*.json") if str(tmp_path) in path.read_text()]
    first = load_components(weights)
    trained = script.VideoUNet.from_pretrained(tmp_path / "work" / "video")
    assert first.vae.config.scaling_factor == 0.5
    assert first.tokenizer.model_max_length == 32
    assert first.prediction_type == "v_prediction"
    script.make(config)
    second = load_components(weights)
    for name, value in first.unet.named_parameters():
        assert torch.equal(value, second.unet.get_parameter(name))
        assert torch.equal(value.half(), trained.get_parameter(name).half())


def test_the_motion_stage_goes_on_from_a_model_made_before(script, tmp_path):
    made = str(Path(script.__file__).parents[1] / "models" / "miniature")
    overrides = ["clips=2", "latents=2", "motion.steps=1", "motion.batch=1", f"start={made}"]
    overrides += [f"work={tmp_path / 'work'}", f"output={tmp_path / 'out'}"]
    script.make(load_config(script.MiniatureConfig, script.CONFIG, overrides))
    assert not (tmp_path / "work" / "vae").exists()
    weights = [
        Files(str(folder / "StableDiffusion"), str(folder / "Motion_Module" / "mm.safetensors"), ckpt_path="")
        for folder in (Path(made), tmp_path / "out")
    ]
    before, after = map(load_components, weights)
    for same in ("vae", "text_encoder"):
        left, right = getattr(before, same).state_dict(), getattr(after, same).state_dict()
        assert all(torch.equal(left[name], right[name]) for name in left)
    moves = [
        (value - after.unet.get_parameter(name)).abs().max().item() for name, value in before.unet.named_parameters()
    ]
    assert 0 < max(moves) < 0.01  # one step of AdamW from there, not from anew


def test_a_start_that_cannot_be_gone_on_from_is_refused(script, tmp_path):
    made = Path(script.__file__).parents[1] / "models" / "miniature"
    (tmp_path / "from_nothing" / "vae").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run from nothing"):
        script._load_start(made, tmp_path / "from_nothing")
    with pytest.raises(UserError, match="no base model folder"):
        script._load_start(tmp_path / "missing", tmp_path)
    shutil.copytree(made, tmp_path / "made")
    scheduler = tmp_path / "made" / "StableDiffusion" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("v_prediction", "epsilon"))
    with pytest.raises(UserError, match="whose UNet has epsilon"):
        script._load_start(tmp_path / "made", tmp_path)


def test_a_stage_that_is_interrupted_while_it_is_written_is_not_done(script, tmp_path, monkeypatch, capsys):
    class Interrupted:
        def save_pretrained(self, folder):
            (folder / "config.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_model(Interrupted(), tmp_path / "vae")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("sys.argv", ["make_miniature.py", "--dry-run", f"work={tmp_path}"])
    assert script.main() == 0
    assert capsys.readouterr().out.count("to do") == len(script.STAGES) == 6
    monkeypatch.setattr("sys.argv", ["make_miniature.py", "--dry-run", f"work={tmp_path}", "start=models/miniature"])
    assert script.main() == 0
    assert capsys.readouterr().out.count("to do") == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["clips=2", "latents=3"], "latents is 3"),
        (["camera_share=1.5"], "camera_share is 1.5"),
        (["star_weight=0"], "star_weight is 0"),
    ],
)
def test_values_that_cannot_be_are_refused(script, monkeypatch, keys, message):
    monkeypatch.setattr("sys.argv", ["make_miniature.py", *keys])
    with pytest.raises(UserError, match=message):
        script.main()


def test_moving_cameras_make_up_their_share_of_the_draws(script):
    chances = camera_chances([True, False, False, False, False], 0.5)
    assert torch.equal(chances, torch.tensor([0.5, 0.125, 0.125, 0.125, 0.125]))
    assert torch.equal(camera_chances([False, False], 0.0), torch.tensor([0.5, 0.5]))
    with pytest.raises(UserError, match="camera_share is 1.0, but 0 of 2 clips"):
        camera_chances([False, False], 1.0)


def test_the_loss_is_nothing_at_v_and_each_place_weighs_what_it_should():
    clean, noise = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).unbind()
    alphas = torch.tensor([0.9, 0.5, 0.01])
    scale = alphas.view(-1, 1, 1, 1)
    wanted = scale.sqrt() * noise - (1 - scale).sqrt() * clean
    assert velocity_loss(wanted, clean, noise, alphas) == 0
    weights = torch.zeros(3, 4, 5, 6)
    weights[1, 2] = 2.0
    assert velocity_loss(wanted + 3.0, clean, noise, alphas, weights) == pytest.approx(2 * 9 / 12)


def test_backgrounds_weigh_what_is_asked():
    """`ground` far from the subject, SUBJECT_WEIGHT near it, whether the camera moves or not."""
    content = sample_content(0)
    clips = [Clip(content, sample_motion(0, family=family)) for family in ("pan", "line")]
    for ground in (1.0, 3.0):
        for weights in subject_importance(clips, (16, 16), ground):
            assert set(weights.unique().tolist()) == {ground, SUBJECT_WEIGHT}


def test_fresh_heads_look_at_their_neighbours_and_add_nothing():
    module = to_video_unet(build_image_unet()).up_blocks[3].motion_modules[0]
    frames = torch.randn(16, 32, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(frames, num_frames=16), frames)
    block = module.transformer_blocks[0]
    stages = ((block.norm1, block.attn1), (block.norm2, block.attn2))
    for (norm, attention), offsets in zip(stages, NEIGHBOURS, strict=True):
        tokens = block.pos_embed(norm(frames.flatten(2).permute(2, 0, 1)))  # (h w) f c
        q, k = (part(tokens).unflatten(-1, (8, 4)) for part in (attention.to_q, attention.to_k))
        seen = (torch.einsum("nhd,nghd->nhg", q[:, 8], k) / 2).softmax(-1).mean(0)  # by frame 8: heads f
        for head, offset in enumerate(offsets):
            assert seen[head, 8 + offset] > 0.5


def test_an_interrupted_stage_ends_with_the_weights_of_an_unbroken_one(tmp_path):
    def run(path, steps, until=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)

        def loss_of(step, generator):
            if step == until:
                raise KeyboardInterrupt
            return (model(torch.randn(8, 4, generator=generator)) - 1).square().mean()

        train("test", [{"params": list(model.parameters()), "lr": 1e-2}], loss_of, steps, path, 0, save_every=2)
        return model.state_dict()

    whole = run(tmp_path / "a.pt", 9)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.pt", 9, until=5)
    resumed = run(tmp_path / "b.pt", 9)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_learn_from_both_shares(tmp_path, repository):
    """Gradients are averaged: both end with the weights of one process that sees both shares, up to rounding."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "tests.miniature.shares", str(tmp_path / "both")]
    runs = [
        subprocess.Popen(
            command,
            cwd=repository,
            env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in ("0", "1")
    ]
    assert [run.wait(timeout=240) for run in runs] == [0, 0]
    first, second = (torch.load(tmp_path / f"both.{rank}.pt", weights_only=True) for rank in (0, 1))
    alone, one_share = learn(tmp_path / "alone", [0, 1]), learn(tmp_path / "one", [0])
    for name in alone:
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], alone[name], atol=1e-6)
        assert not torch.allclose(one_share[name], alone[name], atol=1e-2)


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path):
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="nan at step 0"):
        train(
            "test", [{"params": [weight], "lr": 1.0}], lambda *_: weight.sum() * float("nan"), 2, tmp_path / "x.pt", 0
        )


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path):
    for size in (1, 2):
        weight = torch.nn.Parameter(torch.zeros(size))
        arguments = ("test", [{"params": [weight], "lr": 1.0}], lambda *_, w=weight: w.sum(), 1, tmp_path / "x.pt", 0)
        if size == 1:
            train(*arguments)
        else:
            with pytest.raises(UserError, match="other shapes"):
                train(*arguments)


def test_one_cycle_rises_and_falls():
    rates = [one_cycle(step, 100) for step in range(100)]
    assert max(rates) == 1
    assert rates[0] < 0.2
    assert rates[-1] < 0.02
    assert rates[8:] == sorted(rates[8:], reverse=True)


def test_every_word_is_one_token_and_any_text_can_be_spelled():
    tokenizer = build_tokenizer()
    for word in world_words():
        assert len(tokenizer(word).input_ids) == 3
    text = "Ein Bär 🐻 tanzt"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text.lower()
    assert tokenize(tokenizer, ["a red star", ""]).shape == (2, 32)


def test_captions_differ_in_the_text_encoder():
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    first, second = encode_text(build_text_encoder(tokenizer), tokenizer, ["a red star", "a blue star"])
    assert not torch.equal(first, second)


def test_fresh_motion_modules_leave_the_image_unet_as_it_was():
    torch.manual_seed(0)
    image = build_image_unet().eval()
    video = to_video_unet(image).eval()
    x, text = torch.randn(1, 4, 2, 16, 16), torch.randn(2, 32, 64)
    with torch.no_grad():
        together = video(x, 300, text).sample[0].transpose(0, 1)
        apart = image(x[0].transpose(0, 1), 300, text).sample
    assert torch.allclose(together, apart, atol=1e-5)
