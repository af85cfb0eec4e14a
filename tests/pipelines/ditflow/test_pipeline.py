"""The pipelines on tiny folders of the real layouts: references, calls, frame counts, offloading, threads."""

import threading

import numpy as np
import pytest
import torch

from animatediff.errors import UserError
from animatediff.pipelines.backbones.folders import VideoTransformerFiles
from animatediff.pipelines.ditflow.method import load_ditflow
from animatediff.pipelines.ditflow.pipeline import DiTFlowPipeline, DiTFlowWanPipeline
from animatediff.pipelines.ditflow.settings import DiTFlowSettings
from tests.video_transformers import KINDS, left_as_it_was

SHORT = {"num_inference_steps": 4, "guidance_steps": 2, "optimization_steps": 2, "negative_prompt": "grey"}


def load(folder, dtype=torch.float32, **settings):
    pipe = load_ditflow(VideoTransformerFiles(str(folder)), DiTFlowSettings(**settings), dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(kind, video_layouts):
    return load(video_layouts(kind))


@pytest.fixture(scope="module")
def video():
    return torch.rand(9, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def reference(pipe, video):
    return pipe.extract(video, [1], generator=torch.Generator().manual_seed(1))


def call(pipe, reference, **settings):
    generator = torch.Generator().manual_seed(settings.pop("seed", 3))
    return pipe("a red star", reference, generator=generator, **SHORT | settings)


def test_latents_are_those_of_diffusers_and_come_back(pipe, kind, video, reference):
    batch = video.transpose(0, 1)[None]
    posterior = pipe.vae.encode(batch).latent_dist
    latents = posterior.sample(torch.Generator().manual_seed(1))
    if kind == "wan":
        mean, std = (
            torch.tensor(x).view(1, 4, 1, 1, 1) for x in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
        )
        assert torch.allclose(reference.latents, (latents - mean) / std, atol=1e-6)
    else:
        assert torch.equal(reference.latents, latents.transpose(1, 2) * pipe.vae.config.scaling_factor)
    decoded = pipe.decode_video(reference.latents)
    assert decoded.shape == batch.shape
    want = pipe.vae.decode(latents).sample
    assert (decoded - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize("variable", ["latents", "positions"])
def test_a_call(pipe, kind, reference, variable):
    steps = []
    with left_as_it_was(pipe.transformer):
        output = call(pipe, reference, variable=variable, on_step=lambda i, n, latents: steps.append((i, n)))
    assert output.frames.shape == (9, 32, 48, 3)
    assert output.frames.dtype == np.float32
    assert 0 <= output.frames.min() < output.frames.max() <= 1
    assert steps == [(i, 4) for i in range(4)]
    assert [len(losses) for losses in output.losses] == [2, 2]
    keys = {"wan": [0, 1]}.get(kind, [999, 749])
    assert list(output.positions) == (keys if variable == "positions" else [])
    again = call(pipe, reference, variable=variable)
    assert np.array_equal(output.frames, again.frames)


def test_what_may_cost_less_changes_nothing(pipe, reference):
    plain = call(pipe, reference, output_type="latent").frames
    thrifty = call(pipe, reference, output_type="latent", gradient_checkpointing=False, batched_cfg=False).frames
    assert torch.allclose(plain, thrifty, atol=2e-4)


def test_saved_positions_serve_without_the_reference_s_motion(pipe, reference, video):
    first = call(pipe, reference, variable="positions", output_type="latent")
    plain = pipe.extract(video, [], "none", generator=torch.Generator().manual_seed(1))
    assert plain.motion is None
    assert torch.equal(plain.latents, reference.latents)
    again = call(pipe, plain, positions=first.positions, output_type="latent")
    assert torch.equal(again.frames, first.frames)


def test_the_paper_s_rows_differ(pipe, reference, video):
    injection = pipe.extract(video, [], "none", generator=torch.Generator().manual_seed(1))
    rows = [
        call(pipe, reference, output_type="latent", learning_rate=(0.1, 0.1)).frames,
        call(pipe, injection, output_type="latent").frames,
        call(pipe, injection, output_type="latent", injection_blocks=()).frames,
    ]
    for i, one in enumerate(rows):
        for other in rows[:i]:
            assert (one - other).abs().max() > 1e-3


def test_frame_counts_that_the_vae_gives_back(pipe, kind):
    taken = [n for n in range(1, 34) if pipe.nearest_frames(n) == n]
    assert taken == ([1, 5, 9, 13, 17, 21, 25, 29, 33] if kind == "wan" else [1, 8, 9, 16, 17, 24, 25, 32, 33])
    for n in range(1, 60):
        distance = min(abs(n - m) for m in range(1, 80) if pipe.nearest_frames(m) == m)
        assert abs(pipe.nearest_frames(n) - n) == distance
    for n in (taken[1], taken[3]):
        with torch.no_grad():
            latents = pipe.encode_video(torch.zeros(n, 3, 16, 16))
            assert pipe.decode_video(latents).shape[2] == n


def test_what_it_refuses(pipe, kind, video):
    with pytest.raises(UserError, match="num_frames is 7, .* the nearest is 8|num_frames is 7, .* the nearest is 9"):
        pipe.extract(video[:7], [1])
    with pytest.raises(UserError, match="the size is 40x32, expected multiples of 16"):
        pipe.extract(video[..., :40], [1])
    with pytest.raises(UserError, match="guidance_blocks holds 9; this transformer has blocks 0 to 2"):
        pipe.extract(video, [9])
    with pytest.raises(UserError, match="output_type is 'pil', expected np or latent"):
        call(pipe, None, output_type="pil")


def test_a_static_clip_is_told(pipe, reference):
    """A reference at 16x16 pixels is one token a frame: nothing can move."""
    still = pipe.extract(torch.zeros(9, 3, 16, 16), [1])
    assert still.is_static
    assert not reference.is_static
    output = call(pipe, still)
    assert output.losses == [[0, 0], [0, 0]]
    assert np.isfinite(output.frames).all()


def test_an_exception_in_on_step_leaves_the_pipeline_usable(pipe, reference):
    def stop(i, n, latents):
        raise KeyboardInterrupt

    want = call(pipe, reference).frames
    with left_as_it_was(pipe.transformer), pytest.raises(KeyboardInterrupt):
        call(pipe, reference, on_step=stop)
    assert np.array_equal(call(pipe, reference).frames, want)


def test_two_threads_get_what_they_get_one_after_the_other(pipe, reference):
    want = {seed: call(pipe, reference, seed=seed, output_type="latent").frames for seed in (1, 2)}
    have = {}

    def work(seed):
        have[seed] = call(pipe, reference, seed=seed, output_type="latent").frames

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(have[seed], want[seed]) for seed in (1, 2))


def test_half_precision(kind, video_layouts, video):
    pipe = load(video_layouts(kind), torch.bfloat16)
    reference = pipe.extract(video, [1], generator=torch.Generator().manual_seed(1))
    assert reference.latents.dtype == torch.float32
    assert np.isfinite(call(pipe, reference).frames).all()
    if kind != "2b":
        with pytest.raises(UserError, match="dtype is fp16, in which .* gives NaN; use dtype=bf16"):
            load(video_layouts(kind), torch.float16)


def test_the_folder_tells_the_pipeline(video_layouts):
    assert isinstance(load(video_layouts("5b")), DiTFlowPipeline)
    assert isinstance(load(video_layouts("wan")), DiTFlowWanPipeline)
    assert load(video_layouts("2b"), vae_tiling=True).vae.use_tiling
    with pytest.raises(UserError, match="is wan, but these settings are for cogvideox_5b"):
        load(video_layouts("wan"), backbone="cogvideox_5b")


def test_wan_2_2_is_refused(video_layouts):
    parts = load(video_layouts("wan")).components
    parts.pop("transformer_2")
    with pytest.raises(UserError, match="this is Wan 2.2"):
        DiTFlowWanPipeline(**parts, boundary_ratio=0.9)
