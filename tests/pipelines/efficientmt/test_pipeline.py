"""The published program's own run, and everything that comes from diffusers, on tiny models."""

import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import AnimateDiffPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff.errors import UserError
from animatediff.models.checkpoints import original_adapter_state
from animatediff.models.weight_files import read_state_dict
from animatediff.pipelines.backbones.schedulers import SCHEDULERS, build_scheduler
from animatediff.pipelines.efficientmt.loading import load_pipeline
from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline
from tests.goldens import golden, relative_error

PROMPT = "cat walking on the beach."


@pytest.fixture(scope="module")
def pipe(tiny_weights):
    pipe = load_pipeline(tiny_weights)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def fresh(tiny_weights):
    """A pipeline of its own, for tests that change it."""
    pipe = load_pipeline(tiny_weights)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def reference(pipe):
    return pipe.extract(latents=golden("inference.ref_latents"), noise=golden("inference.ref_noise"))


@pytest.fixture(scope="module")
def short(pipe):
    """A reference of four frames, for tests that need no golden."""
    video = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return pipe.extract(video, generator=torch.Generator().manual_seed(1))


def sample(pipe, reference, prompt=PROMPT, seed=42, **options):
    options = {"num_inference_steps": 2, "guidance_scale": 6.0, "output_type": "latent"} | options
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, reference=reference, generator=generator, **options).frames


def ip_adapter_state(unet, tokens=4, image_dim=16):
    """The weights of an IP-Adapter with random values, under the names of the published files."""
    width, draw = unet.config.cross_attention_dim, torch.Generator().manual_seed(0)
    state = {
        "image_proj.proj.weight": torch.randn(tokens * width, image_dim, generator=draw),
        "image_proj.proj.bias": torch.zeros(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    names = [name for name in unet.attn_processors if "motion_modules" not in name and "attn2" in name]
    for number, name in enumerate(names):
        size = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features, width
        for part in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn(size, generator=draw) / 8
    return state


class TestPublishedRun:
    def test_encoders(self, pipe):
        with torch.no_grad():
            posterior = pipe.vae.encode(golden("inference.pixels") / 127.5 - 1).latent_dist
        assert relative_error(posterior.mean, "inference.posterior_mean") < 1e-5
        assert relative_error(posterior.logvar, "inference.posterior_logvar") < 1e-5
        ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
        assert torch.equal(ids, golden("inference.prompt_ids"))
        prompt, empty = pipe.encode_prompt(PROMPT, "cpu", 1, do_classifier_free_guidance=True)
        assert relative_error(torch.cat([empty, prompt]), "inference.text_embeddings@5") < 1e-5

    def test_every_step(self, pipe, reference):
        steps = []

        def keep(_pipe, _i, _t, values):
            steps.append(values["latents"])
            return values

        final = sample(pipe, reference, num_inference_steps=4, callback_on_step_end=keep)
        assert pipe.scheduler.timesteps.tolist() == golden("inference.steps4.timesteps").tolist()
        assert len(steps) == 4
        for i, latents in enumerate(steps):
            assert relative_error(latents, f"inference.steps4.fp32bank.step{i}.latents@5") < 1e-4
        assert relative_error(final, "inference.steps4.fp32bank.final_latents@5") < 1e-4

    def test_features_kept_in_half_precision_as_published(self, pipe, reference):
        halved = reference.to(dtype=torch.float16).to(dtype=torch.float32)
        steps = []
        sample(
            pipe, halved, num_inference_steps=4, callback_on_step_end=lambda p, i, t, v: steps.append(v["latents"]) or v
        )
        for i in range(2):
            assert relative_error(steps[i], f"inference.steps4.fp16bank.step{i}.latents@5") < 1e-5

    def test_video(self, pipe, reference):
        video = sample(pipe, reference, num_inference_steps=4, output_type="pt")[0]  # f 3 h w
        video = video.transpose(0, 1)  # 3 f h w
        assert (video.flatten()[::41] - golden("inference.steps4.fp32bank.video_float@41")).abs().max() < 0.002
        levels = (video.permute(1, 2, 3, 0) * 255).byte().flatten()[::41].int()
        assert (levels - golden("inference.steps4.fp32bank.video_uint8@41").int()).abs().max() <= 1


class TestLoading:
    """Every file holds other values for the same parameter: precedence shows."""

    @pytest.mark.parametrize("left_out", ["dreambooth_path", "ckpt_path"])
    def test_a_file_left_out_changes_the_result(self, tiny_weights, pipe, left_out):
        other = load_pipeline(replace(tiny_weights, **{left_out: ""}))
        same = "text_encoder" if left_out == "ckpt_path" else "adapter"
        states = {name: (getattr(p, same).state_dict()) for name, p in (("full", pipe), ("less", other))}
        assert all(torch.equal(value, states["less"][key]) for key, value in states["full"].items())
        changed = "adapter" if left_out == "ckpt_path" else "text_encoder"
        full, less = getattr(pipe, changed).state_dict(), getattr(other, changed).state_dict()
        assert not any(torch.equal(full[key], less[key]) for key in full if key.endswith("weight"))

    def test_the_files_are_where_they_belong(self, tiny_weights, pipe):
        adapter = read_state_dict(tiny_weights.ckpt_path)
        assert all(torch.equal(v, adapter[k].float()) for k, v in original_adapter_state(pipe.adapter).items())
        motion = read_state_dict(tiny_weights.motion_module_path)
        key = "up_blocks.1.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.to_q.weight"
        block = pipe.unet.up_blocks[1].motion_modules[0].transformer_blocks[0]
        assert torch.equal(block.attn1.to_q.weight, motion[key].float())
        dreambooth = read_state_dict(tiny_weights.dreambooth_path)
        assert torch.equal(
            pipe.unet.conv_in.weight, dreambooth["model.diffusion_model.input_blocks.0.0.weight"].float()
        )

    @pytest.mark.parametrize(
        ("field", "other"),
        [
            ("motion_module_path", "ckpt_path"),
            ("dreambooth_path", "motion_module_path"),
            ("ckpt_path", "motion_module_path"),
            ("ckpt_path", "dreambooth_path"),
        ],
    )
    def test_swapped_files_are_refused_in_one_line(self, tiny_weights, field, other):
        path = getattr(tiny_weights, other)
        with pytest.raises(UserError) as error:
            load_pipeline(replace(tiny_weights, **{field: path}))
        assert path in str(error.value)
        assert "looks like" in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("field", ["pretrained_model_path", "motion_module_path", "dreambooth_path", "ckpt_path"])
    def test_a_missing_file_is_named(self, tiny_weights, field):
        with pytest.raises(UserError, match="nowhere"):
            load_pipeline(replace(tiny_weights, **{field: "nowhere"}))

    def test_no_motion_modules_held_twice(self, pipe):
        assert "motion_adapter" not in pipe.components


class TestFromDiffusers:
    def test_save_and_load(self, pipe, short, tmp_path):
        pipe.save_pretrained(tmp_path)
        assert {f.name for f in (tmp_path / "adapter").iterdir()} == {
            "config.json",
            "diffusion_pytorch_model.safetensors",
            "animatediff__models__adapter.py",
        }
        loaded = EfficientMTPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert torch.equal(sample(loaded, short), sample(pipe, short))

    def test_an_image_prompt_acts_beside_the_reference(self, fresh, short, tmp_path):
        pipe, without = fresh, sample(fresh, short)
        size = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 37}
        vision = CLIPVisionConfig(**size, num_hidden_layers=2, num_attention_heads=4, projection_dim=16)
        pipe.register_modules(
            image_encoder=CLIPVisionModelWithProjection(vision).eval(),
            feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        )
        save_file(ip_adapter_state(pipe.unet), tmp_path / "ip.safetensors")
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name="ip.safetensors", image_encoder_folder=None)
        red, blue = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
        shown_red = sample(pipe, short, ip_adapter_image=red)
        assert torch.equal(sample(pipe, short, ip_adapter_image=red), shown_red)
        assert not torch.equal(sample(pipe, short, ip_adapter_image=blue), shown_red)
        assert not torch.equal(sample(pipe, None, ip_adapter_image=red, num_frames=3, height=32, width=32), shown_red)
        again = pipe.extract(
            torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1,
            generator=torch.Generator().manual_seed(1),
        )
        for path, site in short.sites.items():  # the reference pass takes no image
            assert all(torch.equal(a, b) for a, b in zip(site.features, again.sites[path].features, strict=True))
        with pytest.raises(UserError, match="an IP-Adapter is loaded; give ip_adapter_image"):
            sample(pipe, short)
        pipe.unload_ip_adapter()
        assert torch.equal(sample(pipe, short), without)

    def test_without_a_reference_it_is_the_backbones_pipeline(self, pipe):
        stock = AnimateDiffPipeline(
            pipe.vae, pipe.text_encoder, pipe.tokenizer, pipe.unet, None, build_scheduler("ddim")
        )
        stock.set_progress_bar_config(disable=True)
        options = {"num_frames": 3, "height": 32, "width": 32, "num_inference_steps": 2, "output_type": "latent"}
        want = stock(PROMPT, generator=torch.Generator().manual_seed(42), **options).frames
        assert torch.equal(sample(pipe, None, guidance_scale=7.5, num_frames=3, height=32, width=32), want)

    def test_one_extraction_many_prompts_and_seeds(self, pipe, short):
        both = sample(pipe, short, ["a cat", "a dog"], seed=7)
        assert both.shape == (2, 4, 4, 4, 4)
        assert not torch.allclose(both[0], both[1])
        assert not torch.equal(sample(pipe, short, seed=1), sample(pipe, short, seed=2))

    @pytest.mark.parametrize("name", SCHEDULERS)
    def test_schedulers(self, fresh, short, name):
        fresh.scheduler = build_scheduler(name)
        assert torch.isfinite(sample(fresh, short, num_inference_steps=4)).all()

    def test_a_backbone_that_predicts_v_is_known_by_the_folder(self, tiny_weights, tmp_path):
        folder = tmp_path / "base"
        shutil.copytree(tiny_weights.pretrained_model_path, folder)
        build_scheduler("ddim", "v_prediction").save_pretrained(folder / "scheduler")
        pipe = load_pipeline(replace(tiny_weights, pretrained_model_path=str(folder)), "euler")
        assert pipe.scheduler.config.prediction_type == "v_prediction"
        config = folder / "scheduler" / "scheduler_config.json"
        config.write_text(config.read_text().replace("v_prediction", "sample"))
        with pytest.raises(UserError, match="prediction_type 'sample', expected one of epsilon, v_prediction"):
            load_pipeline(replace(tiny_weights, pretrained_model_path=str(folder)))

    def test_callback_can_stop_and_change(self, pipe, short):
        seen = []

        def stop(p, i, _t, values):
            seen.append(i)
            p._interrupt = True
            return values

        sample(pipe, short, num_inference_steps=5, callback_on_step_end=stop)
        assert seen == [0]

    def test_negative_prompt_and_guidance(self, pipe, short):
        plain = sample(pipe, short)
        assert torch.equal(sample(pipe, short, negative_prompt=""), plain)
        assert not torch.allclose(sample(pipe, short, negative_prompt="blurry"), plain)
        assert torch.equal(sample(pipe, short, guidance_scale=1.0), sample(pipe, short, guidance_scale=0.0))

    def test_guidance_in_an_interval_acts_there_alone_and_costs_nothing_outside(self, pipe, short):
        """Two DDIM steps, at t = 501 and 1."""
        plain, unguided = sample(pipe, short), sample(pipe, short, guidance_scale=1.0)
        assert torch.equal(sample(pipe, short, guidance_interval=(0, 1000)), plain)
        assert torch.equal(sample(pipe, short, guidance_interval=(0, 1)), unguided)
        batches = []
        handle = pipe.unet.conv_in.register_forward_hook(lambda _module, _inputs, out: batches.append(len(out)))
        half = sample(pipe, short, guidance_interval=(0, 501))
        assert batches == [4, 8]  # frames of the text's half, then of both
        other_half = sample(pipe, short, guidance_interval=(501, 502))
        handle.remove()
        assert batches == [4, 8, 8, 4]
        assert not torch.allclose(half, other_half, atol=1e-3)
        assert not torch.allclose(half, plain, atol=1e-3)
        assert not torch.allclose(half, unguided, atol=1e-3)
        assert torch.equal(sample(pipe, short, guidance_scale=1.0, guidance_interval=(0, 501)), unguided)
        assert not pipe.unet._forward_hooks
        for interval in ((0, 0), (-1, 500), (500, 400), (0, 1001)):
            with pytest.raises(UserError, match="guidance_interval is .* expected two rising timesteps from 0 to 1000"):
                sample(pipe, short, guidance_interval=interval)

    def test_free_init(self, fresh, short):
        plain = sample(fresh, short)
        fresh.enable_free_init(num_iters=2)
        assert not torch.allclose(sample(fresh, short), plain)
        fresh.disable_free_init()
        assert torch.equal(sample(fresh, short), plain)

    @pytest.mark.parametrize("target", ["attentions", "motion_modules"])
    def test_lora_and_motion_lora(self, fresh, short, tmp_path, target):
        """LoRA on spatial attention; MotionLoRA on motion modules, where sites keep the adapter's own q, k, v."""
        plain = sample(fresh, short)
        config = LoraConfig(r=2, target_modules=rf".*{target}.*\.to_(q|out\.0)", init_lora_weights=False)
        fresh.unet.add_adapter(config)
        state = convert_state_dict_to_diffusers(get_peft_model_state_dict(fresh.unet))
        fresh.unet.unload_lora()
        save_file(
            {f"unet.{k}": v.contiguous() for k, v in state.items()}, tmp_path / "pytorch_lora_weights.safetensors"
        )
        fresh.load_lora_weights(tmp_path)
        with_lora = sample(fresh, short)
        assert not torch.allclose(with_lora, plain, atol=1e-3)
        fresh.unload_lora_weights()
        assert torch.equal(sample(fresh, short), plain)

    def test_vae_slicing(self, fresh, pipe, short):
        fresh.vae.enable_slicing()
        assert torch.allclose(sample(fresh, short, output_type="pt"), sample(pipe, short, output_type="pt"), atol=1e-5)

    def test_bf16(self, tiny_weights):
        pipe = load_pipeline(tiny_weights, dtype=torch.bfloat16)
        pipe.set_progress_bar_config(disable=True)
        reference = pipe.extract(torch.zeros(2, 3, 32, 32))
        assert sample(pipe, reference).dtype == torch.bfloat16


class TestRefused:
    def test_contradicting_the_reference(self, pipe, short):
        for name in ("num_frames", "height", "width"):
            with pytest.raises(UserError, match=f"{name} is 8, but the reference was extracted with"):
                sample(pipe, short, **{name: 8})

    @pytest.mark.parametrize("frames", [0, 33])
    def test_number_of_frames(self, pipe, frames):
        with pytest.raises(UserError, match=f"num_frames is {frames}, expected 1 to 32"):
            sample(pipe, None, num_frames=frames)

    def test_nothing_to_extract(self, pipe):
        with pytest.raises(UserError, match="needs a video"):
            pipe.extract()

    def test_unknown_scheduler(self):
        with pytest.raises(UserError, match="unknown scheduler 'dddim'; did you mean 'ddim'"):
            build_scheduler("dddim")


@pytest.mark.parametrize(("levels", "multiple"), [((32, 32, 64), 8), ((32, 32, 32, 64), 8), ((32, 32, 32, 32, 64), 16)])
def test_size_multiple(levels, multiple):
    """diffusers asks for multiples of 8 whatever the VAE."""
    pipe = EfficientMTPipeline.__new__(EfficientMTPipeline)
    pipe.__dict__["vae_scale_factor"] = 2 ** (len(levels) - 1)
    assert pipe.size_multiple == multiple


def test_the_miniature_loads_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_pipeline().adapter.config.trained_steps > 0
