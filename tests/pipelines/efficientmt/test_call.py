"""The call, with and without a reference, as diffusers' pipelines behave; and what it refuses."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import AnimateDiffPipeline
from diffusers.models.attention import FreeNoiseTransformerBlock

from animatediff.errors import UserError
from animatediff.models.integration import IntegratedBlock
from animatediff.models.motion_module import TemporalAttnProcessor
from animatediff.pipelines.backbones.schedulers import build_scheduler
from animatediff.pipelines.efficientmt import EfficientMTPipeline
from tests.pipelines.small import extract, sample, small_components, small_pipeline


@pytest.fixture(scope="module")
def pipe():
    return small_pipeline()


@pytest.fixture
def fresh():
    """A pipeline of its own, for tests that change it."""
    return small_pipeline()


@pytest.fixture(scope="module")
def reference(pipe):
    return extract(pipe)


@pytest.fixture(params=["with a reference", "without"])
def given(request, reference):
    return reference if request.param == "with a reference" else None


def test_every_argument_of_animatediffs_call_is_spelled_out_in_its_order():
    stock = [name for name in inspect.signature(AnimateDiffPipeline.__call__).parameters if name != "kwargs"]
    ours = inspect.signature(EfficientMTPipeline.__call__).parameters
    assert list(ours)[: len(stock)] == stock
    assert list(ours)[len(stock) :] == ["reference", "guidance_interval"]
    assert not [p for p in ours.values() if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


class TestBatches:
    def test_a_prompt_of_a_batch_is_what_it_is_alone(self, pipe, given):
        prompts = ["a cat", "a dog"]
        size = {} if given else {"num_frames": 4, "height": 8, "width": 8}

        def draw(texts, seeds):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            options = {"num_inference_steps": 2, "output_type": "latent", **size}
            return pipe(texts, reference=given, generator=generators, **options).frames

        both = draw(prompts, [1, 2])
        for i, prompt in enumerate(prompts):
            assert torch.allclose(both[i : i + 1], draw([prompt], [i + 1]), atol=1e-4)

    def test_num_videos_per_prompt_gives_so_many_of_each_prompt(self, pipe, given):
        size = {} if given else {"num_frames": 4, "height": 8, "width": 8}
        latents = torch.randn(4, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        options = {"reference": given, "num_inference_steps": 2, "output_type": "latent", **size}
        got = pipe(["a cat", "a dog"], num_videos_per_prompt=2, latents=latents, **options).frames
        want = pipe(["a cat", "a cat", "a dog", "a dog"], latents=latents, **options).frames
        assert torch.equal(got, want)
        one = pipe("a cat", num_videos_per_prompt=2, latents=latents[:2], negative_prompt="a dog", **options).frames
        assert torch.allclose(one, pipe(["a cat"] * 2, latents=latents[:2], negative_prompt=["a dog"] * 2,
                                        **options).frames)  # fmt: skip
        positive, negative = pipe.encode_prompt(["a cat", "a dog"], "cpu", 1, True)
        embeds = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        assert torch.equal(pipe(num_videos_per_prompt=2, latents=latents, **embeds, **options).frames, want)

    def test_prompt_embeds_stand_for_the_prompt(self, pipe, given):
        positive, negative = pipe.encode_prompt("a cat", "cpu", 1, True, "a dog")
        want = sample(pipe, given, "a cat", negative_prompt="a dog")
        assert torch.equal(sample(pipe, given, None, prompt_embeds=positive, negative_prompt_embeds=negative), want)


class TestParts:
    def test_text_parts_alone_encode_prompts_and_the_others_alone_generate(self, pipe, reference):
        parts = small_components()
        text = ("text_encoder", "tokenizer")
        encoder = EfficientMTPipeline(**{name: parts[name] if name in text else None for name in parts})
        others = EfficientMTPipeline(**{name: None if name in text else parts[name] for name in parts})
        others.set_progress_bar_config(disable=True)
        positive, negative = encoder.encode_prompt("a cat", "cpu", 1, True)
        embeds = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        assert torch.equal(sample(others, reference, None, **embeds), sample(pipe, reference))

    def test_latents_are_given_and_taken_without_a_vae(self, pipe, reference):
        without = EfficientMTPipeline(**(small_components() | {"vae": None}))
        assert without.vae_scale_factor == 8
        without.set_progress_bar_config(disable=True)
        latents = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        assert torch.equal(sample(without, reference, latents=latents), sample(pipe, reference, latents=latents))


class TestPrecision:
    def test_a_reference_from_before_the_pipeline_changed_its_precision(self, fresh, reference):
        fresh.to(torch.bfloat16)
        low = sample(fresh, reference)
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, sample(fresh, reference.to(dtype=torch.bfloat16)))

    @pytest.mark.parametrize("also", ["unet alone", "adapter too"])
    def test_layerwise_casting(self, fresh, given, also):
        fresh.to(torch.bfloat16)
        want = sample(fresh, given)
        options = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.bfloat16}
        fresh.unet.enable_layerwise_casting(**options)
        if also == "adapter too":
            fresh.adapter.enable_layerwise_casting(**options)
            assert (
                next(site for _, site in fresh.adapter.named_sites()).attentions[0].to_q.weight.dtype
                == options["storage_dtype"]
            )
        got = sample(fresh, given)
        assert got.dtype == torch.bfloat16
        assert torch.isfinite(got).all()
        assert (got - want).norm() < 0.3 * want.norm()  # float8 has 3 bits of mantissa
        assert torch.isfinite(extract(fresh).sites[next(iter(fresh.adapter.config.site_channels))].features[0]).all()

    def test_overrides_under_layerwise_casting(self, fresh, reference):
        """The bias, which no override replaces, is stored in float8; the copy that generates has it in bfloat16."""
        norm = fresh.unet.down_blocks[0].attentions[0].proj_in
        fresh.adapter.set_overrides({"down_blocks.0.attentions.0.proj_in.weight": 2 * norm.weight})
        fresh.to(torch.bfloat16)
        want = sample(fresh, reference)
        fresh.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        assert (sample(fresh, reference) - want).norm() < 0.3 * want.norm()


class TestVae:
    def test_slicing_and_tiling(self, fresh, given):
        """Tiles of 4x4 latents, of 8x8."""
        wide, options = given and extract(fresh, size=16), {"output_type": "pt"}
        options |= {} if given else {"height": 16, "width": 16}
        want = sample(fresh, wide, **options)
        fresh.vae.enable_slicing()
        assert torch.allclose(sample(fresh, wide, **options), want, atol=1e-5)
        fresh.vae.disable_slicing()
        fresh.vae.enable_tiling()
        tiled = sample(fresh, wide, **options)
        assert tiled.shape == want.shape
        assert not torch.equal(tiled, want)


class TestFreeInit:
    def test_it_changes_the_result_until_it_is_off(self, fresh, given):
        want = sample(fresh, given)
        for fast in (False, True):
            fresh.enable_free_init(num_iters=2, use_fast_sampling=fast)
            assert not torch.allclose(sample(fresh, given), want, atol=1e-3)
        fresh.disable_free_init()
        assert torch.equal(sample(fresh, given), want)


class TestCallbacks:
    def test_tensors_that_a_callback_asks_for_and_changes(self, pipe, given):
        seen = []

        def change(_pipe, i, _t, values):
            seen.append(sorted(values))
            return values | {"latents": torch.zeros_like(values["latents"])} if i == 1 else values

        names = pipe._callback_tensor_inputs
        options = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": names}
        assert not sample(pipe, given, **options).any()
        assert seen == [sorted(names)] * 2


class TestFreeNoise:
    def test_windows_change_the_result_until_they_are_off(self, fresh, given):
        want, before = sample(fresh, given), {k: v.clone() for k, v in fresh.unet.state_dict().items()}
        blocks = [m.transformer_blocks for m in fresh.unet.down_blocks[0].motion_modules]
        for length, stride in ((2, 1), (3, 2)):
            fresh.enable_free_noise(length, stride)
            assert all(isinstance(b[0], FreeNoiseTransformerBlock) for b in blocks)
            assert isinstance(blocks[0][0].attn1.processor, TemporalAttnProcessor)
            assert not any(p.requires_grad for p in fresh.unet.parameters())
            assert not torch.allclose(sample(fresh, given), want, atol=1e-3)
        fresh.disable_free_noise()
        assert not any(isinstance(b[0], FreeNoiseTransformerBlock) for b in blocks)
        assert all(torch.equal(value, before[key]) for key, value in fresh.unet.state_dict().items())
        assert isinstance(blocks[0][0].attn1.processor, TemporalAttnProcessor)
        assert torch.equal(sample(fresh, given), want)

    def test_split_inference_computes_the_same_until_it_is_off(self, fresh, given):
        fresh.enable_free_noise(2, 1)
        want, names = sample(fresh, given), set(fresh.unet.state_dict())
        for sizes in ((4, 2), (5, 3)):
            fresh.enable_free_noise_split_inference(*sizes)
            assert torch.allclose(sample(fresh, given), want, atol=1e-4)
        with pytest.raises(UserError, match="split inference is on; call disable_free_noise first"):
            fresh.enable_free_noise(2, 1)
        fresh.disable_free_noise()
        assert set(fresh.unet.state_dict()) == names

    def test_a_window_as_long_as_the_clip_is_no_window(self, fresh, reference):
        want = sample(fresh, reference)
        fresh.enable_free_noise(4, 1, noise_type="random")
        assert torch.allclose(sample(fresh, reference), want, atol=1e-4)

    def test_the_reference_pass_sees_the_whole_clip(self, fresh, reference):
        fresh.enable_free_noise(2, 1)
        fresh.enable_free_noise_split_inference(4, 2)
        again = extract(fresh)
        assert again.sites.keys() == reference.sites.keys()
        for path, site in reference.sites.items():
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(site.features, again.sites[path].features,
                                                                       strict=True))  # fmt: skip

    def test_a_site_sees_the_references_frames_of_its_own_window(self, fresh):
        """Windows 0-1 and 2-3: the reference's last frames do not reach the first ones of a single block."""
        fresh.enable_free_noise(2, 2)
        features = extract(fresh).sites["up_blocks.1.motion_modules.0.transformer_blocks.0"]
        other = features.__class__(tuple(f.clone() for f in features.features), features.size)
        for f in other.features:
            f[:, 2:] = 1.0
        sites = dict(fresh.adapter.named_sites())
        block = fresh.unet.up_blocks[1].motion_modules[0].transformer_blocks[0]
        site = sites["up_blocks.1.motion_modules.0.transformer_blocks.0"]
        x = torch.randn(16, 4, 16)
        with torch.no_grad():
            first, second = (IntegratedBlock(block, site, f)(x) for f in (features, other))
        assert torch.equal(first[:, :2], second[:, :2])
        assert not torch.allclose(first[:, 2:], second[:, 2:], atol=1e-3)

    def test_a_video_longer_than_the_position_table(self, fresh):
        fresh.enable_free_noise(16, 8)
        assert sample(fresh, None, num_frames=40, num_inference_steps=1).shape[2] == 40
        with pytest.raises(UserError, match="num_frames is 40, expected 1 to 32"):
            extract(fresh, frames=40)

    def test_prompts_over_time(self, fresh, given):
        fresh.enable_free_noise(2, 1)
        changing = sample(fresh, given, {0: "a cat", 3: "a dog"})
        assert not torch.allclose(changing, sample(fresh, given, "a cat"), atol=1e-4)
        with pytest.raises(ValueError, match="must be lesser than"):
            sample(fresh, given, {0: "a cat", 4: "a dog"})

    def test_overrides_find_their_place_behind_split_inference(self, fresh, reference):
        path = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
        fresh.adapter.set_overrides({path: 2 * fresh.unet.get_parameter(path)})
        fresh.enable_free_noise(2, 1)
        want = sample(fresh, reference)
        fresh.enable_free_noise_split_inference(4, 2)
        assert torch.allclose(sample(fresh, reference), want, atol=1e-4)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"context_length": 33}, "context_length is 33, expected 1 to 32"),
            ({"context_stride": 0}, "context_stride is 0, expected 1 or more"),
        ],
    )
    def test_windows_that_cannot_be(self, fresh, arguments, message):
        with pytest.raises(UserError, match=message):
            fresh.enable_free_noise(**arguments)

    def test_what_a_call_cannot_do_with_windows(self, fresh, reference):
        fresh.enable_free_noise(None, 4)
        with pytest.raises(UserError, match="num_frames is 4, less than FreeNoise's window of 32"):
            sample(fresh, reference)
        fresh.enable_free_noise(4, 1)
        with pytest.raises(UserError, match="num_videos_per_prompt is 2, expected 1 .FreeNoise"):
            sample(fresh, reference, num_videos_per_prompt=2)
        fresh.enable_free_noise_split_inference()
        with pytest.raises(UserError, match="call disable_free_noise before saving"):
            fresh.save_pretrained("nowhere")


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"eta": 0.5, "scheduler": "euler"}, "eta is 0.5, which EulerDiscreteScheduler does not take"),
            ({"negative_prompt": "x", "guidance_scale": 1.0}, "a negative prompt has no effect at guidance_scale 1.0"),
            ({"num_videos_per_prompt": 0}, "num_videos_per_prompt is 0, expected 1 or more"),
            ({"ip_adapter_image": object()}, "no IP-Adapter is loaded; call load_ip_adapter first"),
            ({"prompt": {0: "a cat"}}, "prompts over time .* need FreeNoise; call enable_free_noise first"),
            ({"prompt": None, "prompt_embeds": torch.zeros(1, 77, 16), "clip_skip": 1}, "clip_skip is 1, which has no"),
            ({"latents": torch.zeros(1, 4, 3, 4, 4)}, r"latents are \[1, 4, 3, 4, 4\], expected \[b, 4, 4, 4, 4\]"),
            ({"height": 16}, "height is 16, but the reference was extracted with 8; extract it again"),
        ],
    )
    def test_what_would_have_no_effect_or_contradicts_itself(self, pipe, reference, options, message):
        scheduler = pipe.scheduler
        pipe.scheduler = build_scheduler(options.pop("scheduler", "ddim"))
        try:
            with pytest.raises(UserError, match=message):
                sample(pipe, reference, **options)
        finally:
            pipe.scheduler = scheduler

    def test_the_size_of_latents(self, pipe):
        latents = torch.randn(1, 4, 3, 4, 8)
        options = {"num_inference_steps": 1, "output_type": "latent", "latents": latents}
        assert pipe("a cat", **options).frames.shape == latents.shape
        with pytest.raises(UserError, match="width is 8, but the latents have 16; leave it out"):
            pipe("a cat", width=8, **options)

    def test_an_unknown_argument_is_no_argument(self, pipe):
        with pytest.raises(TypeError, match="callback_steps"):
            sample(pipe, None, callback_steps=1)

    def test_default_size(self, pipe):
        assert pipe("a cat", num_inference_steps=1, output_type="latent").frames.shape == (1, 4, 16, 4, 4)
