"""scripts/make_miniature.py --dit: a small CogVideoX of a world with free textures, made by stages that resume."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline
from torch import nn

from animatediff.config import load_config
from animatediff.errors import UserError
from animatediff.evaluation.measures import Sample, load_measure
from animatediff.miniature import dit_stages
from animatediff.miniature.base import take_pieces
from animatediff.miniature.dit import (
    ALIKE,
    Examples,
    alike_layers,
    build_dit,
    build_dit_scheduler,
    piece_corners,
    train_dit,
    video_importance,
)
from animatediff.miniature.heldout import heldout_jobs
from animatediff.miniature.loop import train
from animatediff.miniature.matching import matching_loss, points_followed
from animatediff.miniature.motions import sample_motion
from animatediff.miniature.muon import muon, orthogonalised
from animatediff.miniature.t5 import LENGTH, build_t5_encoder, build_t5_tokenizer, encode_captions
from animatediff.miniature.text import world_words
from animatediff.miniature.token_flow import flow_errors, true_flow
from animatediff.miniature.video_autoencoder import (
    CHANNELS,
    FRAMES,
    build_video_vae,
    encode_video,
    even_out,
    to_clips,
    to_video,
)
from animatediff.miniature.world import Clip, Content, make_clip
from animatediff.pipelines.ditflow.dialects import CogVideoX
from animatediff.pipelines.ditflow.transformer import read_blocks

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "training" / "miniature_dit.yaml"
TINY = {"clips": 2, "first": 3, "latents": 2, "vae.batch": 1, "decoder.batch": 1, "frames.batch": 2, "video.batch": 2}
STEPS = {"vae.steps": 1, "decoder.steps": 1, "frames.steps": 1, "video.steps": 1}


def tiny_config(tmp_path, **changes):
    keys = {**TINY, **STEPS, "camera_share": 0, "work": tmp_path / "work", "output": tmp_path / "out", **changes}
    return load_config(dit_stages.DitConfig, CONFIG, [f"{key}={value}" for key, value in keys.items()])


def background(clip, frame=0):
    """The top row of a frame, which no subject of these tests reaches: [w, 3]."""
    return clip.frames()[frame, 0]


def test_without_anchors_the_ground_is_placed_by_the_content_alone():
    content = Content("circle", "red", "dotted", "grey", texture=11)
    first, second = (sample_motion(seed, family="rotate", frames=2) for seed in (1, 2))
    assert not np.allclose(first.origin, second.origin)
    free = [Clip(content, motion, anchored=False) for motion in (first, second)]
    assert np.array_equal(free[0].origin, free[1].origin)
    assert np.array_equal(background(free[0]), background(free[1]))
    moved = Clip(dataclasses.replace(content, texture=12), first, anchored=False)
    assert not np.array_equal(background(free[0]), background(moved))
    tied = [Clip(content, motion) for motion in (first, second)]
    assert not np.array_equal(background(tied[0]), background(tied[1]))
    assert all(np.array_equal(clip.origin, clip.motion.origin) for clip in tied)


def test_a_free_clip_has_the_motion_of_the_tied_one():
    tied, free = (make_clip(5, frames=3, anchored=anchored) for anchored in (True, False))
    assert np.array_equal(tied.track(), free.track())
    assert np.array_equal(tied.camera(), free.camera())


def test_every_word_is_one_token_and_the_tokenizer_reads_back_what_it_wrote(tmp_path):
    tokenizer = build_t5_tokenizer()
    assert all(len(tokenizer(word).input_ids) == 2 for word in world_words())  # and the end of the sequence
    assert tokenizer.unk_token_id not in tokenizer("a purple Cat").input_ids
    before = tokenizer("a red zebra").input_ids
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path)("a red zebra").input_ids == before


def test_the_text_encoder_is_the_seed_and_tells_captions_apart():
    tokenizer = build_t5_tokenizer()
    state = torch.random.get_rng_state()
    first, again = (build_t5_encoder(tokenizer, 3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    red, blue = encode_captions(first, tokenizer, ["a red star", "a blue star"])
    assert red.shape == (LENGTH, 64)
    assert torch.equal(red, encode_captions(again, tokenizer, ["a red star"])[0])
    assert (red - blue)[1].norm() > red[1].norm() / 2


def test_the_scheduler_leaves_nothing_of_the_picture_at_the_last_timestep():
    scheduler = build_dit_scheduler()
    assert scheduler.alphas_cumprod[-1] < 1e-6
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] == 999


def test_a_clip_of_17_frames_is_five_latent_frames_and_comes_back_as_17():
    vae, clips = build_video_vae().eval(), make_clip(1, frames=FRAMES).frames()[None]
    latents = encode_video(vae, clips)
    assert latents.shape == (1, 5, CHANNELS, 16, 16)
    with torch.no_grad():
        assert vae.decode(latents.transpose(1, 2)).sample.shape == (1, 3, FRAMES, 64, 64)
    assert np.array_equal(to_clips(to_video(clips)), clips)


def test_evening_out_leaves_reconstructions_and_gives_channels_of_deviation_one():
    torch.manual_seed(0)
    vae, clips = build_video_vae().eval(), np.stack([make_clip(seed, frames=9).frames() for seed in (1, 2)])

    def reconstructed():
        with torch.no_grad():
            return vae.decode(vae.encode(to_video(clips)).latent_dist.mean).sample

    before = reconstructed()
    even_out(vae, clips)
    torch.testing.assert_close(reconstructed(), before, rtol=1e-3, atol=1e-3)
    deviation = encode_video(vae, clips).std(dim=(0, 1, 3, 4))
    torch.testing.assert_close(deviation, torch.ones(CHANNELS), rtol=0.02, atol=0)  # bfloat16 read it


def test_importance_of_a_latent_frame_covers_the_frames_it_stands_for():
    clip = Clip(Content("circle", "red", "dotted", "grey"), sample_motion(3, family="line", frames=FRAMES))
    importance = video_importance([clip], (16, 16), 2.0)[0]
    assert importance.shape == (5, 16, 16)
    for frame, (x, y) in enumerate((clip.track() + 0.5) / 4 - 0.5):
        assert importance[(frame + 3) // 4, round(y), round(x)] == 8
    assert importance.min() == 2


def test_an_untrained_transformer_predicts_zero():
    transformer = build_dit()
    latents, text = torch.randn(1, 5, CHANNELS, 16, 16), torch.randn(1, LENGTH, 64)
    with torch.no_grad():
        assert not transformer(latents, text, torch.tensor([500])).sample.any()


def test_tokens_look_at_those_like_them_before_and_after_training(tmp_path):
    torch.manual_seed(0)
    transformer = build_dit()
    before = [parameter.clone() for layer in alike_layers(transformer) for parameter in layer.parameters()]
    generator = torch.Generator().manual_seed(0)
    frames = Examples(
        torch.randn(4, 1, CHANNELS, 16, 16, generator=generator),
        torch.randn(4, LENGTH, 64, generator=generator),
        torch.ones(4, 1, 16, 16),
        torch.ones(4),
    )
    train_dit("frames", transformer, frames, frames, frames.text[0], 2, 2, 0, 1e-2, tmp_path / "x.pt", 0)
    after = [parameter for layer in alike_layers(transformer) for parameter in layer.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert transformer.proj_out.weight.any()

    attention = transformer.transformer_blocks[ALIKE].attn1
    tokens = torch.randn(40, attention.to_q.in_features, generator=generator)
    query, key = (
        norm(part(tokens).unflatten(-1, (3, 64)))
        for norm, part in ((attention.norm_q, attention.to_q), (attention.norm_k, attention.to_k))
    )
    likeness = torch.einsum("ihd,jhd->ij", query, key)
    assert torch.equal(likeness.argmax(dim=1), torch.arange(40))
    torch.testing.assert_close(likeness, likeness.T)


def test_orthogonalised_matrices_have_singular_values_near_one():
    for shape in ((24, 8), (8, 24), (16, 16)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(orthogonalised(matrix))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_muon_takes_the_matrices_and_an_interrupted_run_ends_as_an_unbroken_one(tmp_path):
    def run(path, steps):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))
        both = muon(network, 0.05, lambda name: name.startswith("2"))
        assert [p.shape for p in both.optimizers[0].param_groups[0]["params"]] == [(6, 4)]
        assert len(both.optimizers[1].param_groups[0]["params"]) == 3

        def loss_of(step, generator):
            inputs = torch.randn(16, 4, generator=generator)
            if step >= steps:
                raise KeyboardInterrupt
            return (network(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()

        groups = [{"params": list(network.parameters()), "lr": 0.05}]
        try:
            train("test", groups, loss_of, 40, path, 0, save_every=10, make_optimizer=lambda groups: both)
        except KeyboardInterrupt:
            return None
        return network

    unbroken = run(tmp_path / "unbroken.pt", 40)
    assert run(tmp_path / "broken.pt", 25) is None
    resumed = run(tmp_path / "broken.pt", 40)
    for left, right in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_small_run_gives_a_folder_that_the_pipeline_loads_and_repeating_it_changes_nothing(tmp_path):
    config = tiny_config(tmp_path)
    dit_stages.make_dit(config)
    assert all((tmp_path / "work" / name).exists() for name in dit_stages.STAGES)
    assert not [path for path in (tmp_path / "out").rglob("*.json") if str(tmp_path) in path.read_text()]
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}
    assert len(files) == 3
    pipe = CogVideoXPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "num_frames": FRAMES, "num_inference_steps": 1}
    video = pipe("a red star", max_sequence_length=LENGTH, output_type="np", **size).frames
    assert video.shape == (1, FRAMES, 64, 64, 3)
    dit_stages.make_dit(config)
    assert all(path.read_bytes() == content for path, content in files.items())


@pytest.mark.parametrize("change", [{"latents": 0}, {"camera_share": 1.5}, {"star_weight": -1}, {"video.steps": 0}])
def test_values_that_make_no_sense_are_refused(tmp_path, change):
    with pytest.raises(UserError, match=f"{next(iter(change))} is {next(iter(change.values()))}"):
        tiny_config(tmp_path, **change)


def test_the_shipped_config_is_the_default():
    assert load_config(dit_stages.DitConfig, CONFIG) == dit_stages.DitConfig()


def test_true_flow_of_a_pan_is_the_cameras_and_of_a_line_the_subjects():
    content = Content("circle", "red", "dotted", "grey")
    pan, line = (Clip(content, sample_motion(3, family=family, frames=FRAMES)) for family in ("pan", "line"))
    flow, visible, on = true_flow(pan, 8, 8)
    times = np.array([0, 2.5, 6.5, 10.5, 14.5])
    shift = np.stack([np.interp(times, np.arange(FRAMES), axis) for axis in pan.motion.shift.T], axis=1) * 8
    for i in range(5):
        for j in range(5):
            np.testing.assert_allclose(flow[5 * i + j], np.tile(shift[j] - shift[i], (64, 1)), atol=1e-9)
    assert visible[0].sum() > 50
    flow, visible, on = true_flow(line, 8, 8)
    steps = np.stack([np.interp(times, np.arange(FRAMES), axis) for axis in line.track().T], axis=1) / 8
    np.testing.assert_allclose(flow[4][on[4]], np.tile(steps[4] - steps[0], (on[4].sum(), 1)), atol=1e-9)
    assert 1 <= on[4].sum() <= 9
    assert not flow[4][~on[4]].any()
    assert flow_errors(flow, line, 8, 8)["subject_cosine"] == pytest.approx(1)
    assert flow_errors(-flow, line, 8, 8)["subject_error"] == pytest.approx(
        2 * flow_errors(flow, line, 8, 8)["subject_truth"]
    )


def test_points_that_leave_or_stand_still_count_little_and_the_subjects_most():
    content = Content("circle", "red", "dotted", "grey")
    line = Clip(content, sample_motion(3, family="line", frames=FRAMES))
    (flow,), (weight,) = points_followed([line], 8, 8)
    truth, visible, on = true_flow(line, 8, 8)
    np.testing.assert_allclose(flow.numpy(), truth, atol=0.01)
    moving = np.linalg.norm(truth, axis=-1) >= 0.5
    assert set(weight[visible & on & moving].tolist()) == {3.0}
    torch.testing.assert_close(weight[visible & ~on].unique(), torch.tensor([0.2]).half())  # only the subject moves
    assert not weight[~visible].any()


def test_matching_is_the_cross_entropy_with_where_points_go():
    height, width, frames = 3, 4, 2
    places = height * width
    flow = torch.zeros(1, frames * frames, places, 2)
    flow[:, 1] = torch.tensor([1.0, 0.0])  # one token to the right, from frame 0 to frame 1
    flow[:, 2] = torch.tensor([-0.5, 0.0])  # back by half of one
    weight = torch.zeros(1, frames * frames, places)
    weight[:, 0] = 100.0  # a frame with itself: does not count
    weight[0, 1, 4:7] = 1.0
    sharp = 40.0
    query, key = torch.zeros(1, 1, frames * places, 64), torch.zeros(1, 1, frames * places, 64)
    key[0, 0, places:, :places] = torch.eye(places)
    query[0, 0, :places, :places] = sharp * 8 * torch.eye(places).roll(1, dims=1)  # looks one to the right
    assert matching_loss(query, key, flow, weight, height, width).item() == pytest.approx(0, abs=1e-6)
    assert matching_loss(query.roll(1, dims=-1), key, flow, weight, height, width).item() == pytest.approx(sharp)
    even = matching_loss(torch.zeros_like(query), key, flow, weight, height, width).item()
    assert even == pytest.approx(np.log(places))
    weight[0, 1], weight[0, 2, 5:7] = 0.0, 1.0  # from frame 1, whose queries are zero, to frame 0
    key[0, 0, :places, :places] = torch.eye(places)
    query[0, 0, places:, :places] = sharp * 8 * (torch.eye(places) + torch.eye(places).roll(-1, dims=1))
    assert matching_loss(query, key, flow, weight, height, width).item() == pytest.approx(np.log(2), abs=1e-6)


def test_clips_teach_the_attention_to_follow_points(tmp_path):
    def trained(followed, name):
        torch.manual_seed(0)
        transformer = build_dit()
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, 5, CHANNELS, 16, 16, generator=generator)
        clips = Examples(
            latents, torch.randn(2, LENGTH, 64, generator=generator), torch.ones(2, 5, 16, 16), torch.ones(2)
        )
        clips = clips._replace(followed=followed)
        train_dit("video", transformer, clips, clips, clips.text[0], 8, 2, 0, 3e-3, tmp_path / f"{name}.pt", 0)
        with torch.no_grad():
            read = read_blocks(transformer, latents[:1], 0, clips.text[:1], [ALIKE])[ALIKE]
        flow, weight = points_followed([make_clip(1, frames=FRAMES)], 8, 8)
        return matching_loss(read.query[None], read.key[None], flow, weight, 8, 8)

    assert trained(points_followed([make_clip(1, frames=FRAMES)] * 2, 8, 8), "with") < 0.9 * trained(None, "without")


def test_the_measure_tells_the_worlds_reversed_references_apart():
    job = heldout_jobs(12, frames=FRAMES, anchored=False)[9]
    assert job.reference.motion.family == "pan"
    measure = load_measure("miniature")
    wanted, reference = job.wanted.frames(), job.reference.frames()
    for frames, shown in ((wanted, reference), (wanted[::-1], reference[::-1])):
        sample = Sample(frames, {"reference": f"{job.name}.mp4"}, job.prompt, reference=shown)
        assert measure(sample).values["camera_cosine"] > 0.9


def test_pieces_begin_between_patches_and_hold_the_subject():
    importance = torch.ones(200, 16, 16)
    importance[:, 8:14, 1:7] = 8.0
    rows, columns = piece_corners(importance, 2, torch.Generator().manual_seed(0))
    assert not (rows % 2).any()
    assert not (columns % 2).any()
    held = take_pieces(importance, rows, columns).eq(8).flatten(1).sum(dim=1)
    assert held.shape == (200,)
    assert held.ge(18).float().mean() > 0.95  # half of it
    assert len({*zip(rows.tolist(), columns.tolist(), strict=True)}) > 4


def test_a_piece_has_the_positions_of_its_place():
    torch.manual_seed(0)
    transformer = build_dit()
    for parameter in transformer.parameters():
        parameter.data.add_(0.02 * torch.randn(parameter.shape))
    dialect = CogVideoX(transformer)
    table = dialect.default_positions(1, 16, 16).unflatten(1, (8, 8))[0]  # h w c
    places = torch.stack([table[y : y + 4, x : x + 4].flatten(0, 1) for y, x in ((0, 0), (3, 1))])
    latents, text = torch.randn(1, 1, CHANNELS, 8, 8), torch.randn(1, LENGTH, 64)
    with torch.no_grad():
        with dialect.table_in_force(places, LENGTH):
            both = transformer(latents.expand(2, -1, -1, -1, -1), text.expand(2, -1, -1), torch.tensor([5, 5])).sample
        corner = transformer(latents, text, torch.tensor([5])).sample
    torch.testing.assert_close(both[:1], corner)  # a small frame has the table's first places
    assert (both[1] - both[0]).norm() > 0.01 * both[0].norm()
