"""The published numbers, float32: blocks and whole networks below 1e-5, short sampling runs below 1e-4."""

import re

import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention import BasicTransformerBlock

from animatediff.models import Adapter, EfficientMT, build_unet
from animatediff.models.checkpoints import (
    load_exactly,
    load_original_adapter,
    load_original_unet,
    original_adapter_state,
    original_unet_state,
)
from animatediff.models.integration import IntegratedBlock, Site, SiteFeatures
from animatediff.models.scaler import Scaler
from animatediff.models.key_names import diffusers_name
from animatediff.models.hooks import capture
from tests.goldens import TINY, fill, golden, golden_names, relative_error

EXACT, SHORT_RUN = 1e-5, 1e-4
TRAINED_QKV = re.compile(r"^up_blocks\.\d+\.motion_modules\..*\.to_[qkv]\.weight$")


def opened(name, value, variant):
    return value + 5 if variant == "sb5" and name.endswith("spatial_convs.2.bias") else value


def filled(module, prefix, variant="sb0"):
    state = {
        name: opened(name, fill(prefix + name, value.shape), variant) for name, value in module.state_dict().items()
    }
    load_exactly(module, state, "golden rule", expected="a module")
    return module


@pytest.fixture(scope="module")
def backbone():
    unet = build_unet(TINY)
    state = {
        key: fill(key, value.shape, f"{key}#base" if TRAINED_QKV.match(key) else key)
        for key, value in original_unet_state(unet).items()
    }
    load_original_unet(unet, state)
    return unet


def adapted(unet, variant):
    model = EfficientMT(unet)
    state = original_adapter_state(model.adapter)
    load_original_adapter(model, {k: opened(k, fill(k, v.shape), variant) for k, v in state.items()})
    return model.requires_grad_(False)


@pytest.fixture(scope="module", params=["sb0", "sb5"])
def variant_and_model(request, backbone):
    return request.param, adapted(backbone, request.param)


def reference_of(model):
    return model.extract(
        golden("unet.in.ref_noisy_latents"), golden("unet.in.ref_timestep"), golden("unet.in.ref_text_embedding")
    )


@pytest.mark.parametrize("variant", ["sb0", "sb5"])
@pytest.mark.parametrize("dim", [32, 64])
def test_scaler(dim, variant):
    pair = golden(f"scaler.dim{dim}.input")[0].transpose(0, 1)  # f (h w) 2c -> (h w) f 2c
    y, r = pair.chunk(2, dim=-1)
    scale_map = filled(Scaler(dim), "scaler.", variant)(y, r, (4, 4))
    assert scale_map.shape == (16, 16, 1)
    assert relative_error(scale_map.transpose(0, 1)[None], f"scaler.dim{dim}.{variant}.output") < EXACT


class TestBlock:
    """One temporal transformer block of 64 channels, 4x4 positions, 16 frames."""

    @staticmethod
    def block():
        block = BasicTransformerBlock(
            64, 8, 8, activation_fn="geglu", positional_embeddings="sinusoidal", num_positional_embeddings=32,
            double_self_attention=True,
        )  # fmt: skip
        names = {key: f"block.{_original(key)}" for key in block.state_dict() if not key.endswith("pe")}
        load_exactly(block, {k: fill(n, block.state_dict()[k].shape) for k, n in names.items()}, "rule", "a block")
        return block

    @torch.no_grad()
    def test_plain_and_write(self):
        block = self.block()
        plain = block(golden("block.read.input").transpose(0, 1))
        assert relative_error(plain.transpose(0, 1), "block.read.empty_bank.output@4") < EXACT
        with capture({"0": block.norm1, "1": block.norm2}) as kept:
            written = block(golden("block.write.input").transpose(0, 1))
        assert relative_error(written.transpose(0, 1), "block.write.output@4") < EXACT
        for i in "01":
            assert relative_error(kept[i].transpose(0, 1), f"block.write.bank.{i}@4") < EXACT

    @pytest.mark.parametrize("variant", ["sb0", "sb5"])
    @torch.no_grad()
    def test_read(self, variant):
        block, site = self.block(), Site(64)
        for own, attention in zip(site.attentions, (block.attn1, block.attn2), strict=True):
            for name in ("to_q", "to_k", "to_v"):
                getattr(own, name).load_state_dict(getattr(attention, name).state_dict())
        filled(site.scaler, "block.scaler.", variant)
        bank = tuple(golden(f"block.read.bank.{i}").transpose(0, 1) for i in range(2))  # f (h w) c -> (h w) f c
        integrated = IntegratedBlock(block, site, SiteFeatures(bank, (4, 4)))
        x = golden("block.read.input").transpose(0, 1)
        scale = site.scaler(block.norm1(x), bank[0], (4, 4))
        assert relative_error(scale.transpose(0, 1)[None], f"block.read.{variant}.scale_map.0") < EXACT
        assert relative_error(integrated(x).transpose(0, 1), f"block.read.{variant}.output@4") < EXACT


def _original(key):
    whole = f"up_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.{key}"
    for ours, theirs in (("attn1.", "attention_blocks.0."), ("attn2.", "attention_blocks.1."), ("norm1.", "norms.0."),
                         ("norm2.", "norms.1."), ("norm3.", "ff_norm.")):  # fmt: skip
        if key.startswith(ours):
            assert diffusers_name(whole.replace(key, theirs + key.removeprefix(ours))).endswith(key)
            return theirs + key.removeprefix(ours)
    return key


@torch.no_grad()
def test_plain_pass(backbone):
    latents = golden("unet.in.latents").repeat(2, 1, 1, 1, 1)
    text = golden("unet.in.text_embeddings").repeat_interleave(16, dim=0)
    out = backbone(latents, golden("unet.in.timestep"), text).sample
    assert relative_error(out, "unet.plain.base.noise_pred@5") < EXACT


@torch.no_grad()
def test_write_pass(backbone):
    model = EfficientMT(backbone)
    reference = reference_of(model)
    out = backbone(
        golden("unet.in.ref_noisy_latents"), golden("unet.in.ref_timestep"),
        golden("unet.in.ref_text_embedding").repeat_interleave(16, dim=0),
    ).sample  # fmt: skip
    assert relative_error(out, "unet.write.noise_pred@5") < EXACT
    names = golden_names("unet.bank.")
    assert len(names) == 24
    for name in names:
        module, _, index = name.removeprefix("unet.bank.").partition("@")[0].rpartition(".")
        r = reference.sites[diffusers_name(f"{module}.")[:-1]].features[int(index)]
        assert relative_error(r.transpose(0, 1), name) < EXACT  # (h w) f c -> f (h w) c


def test_read_pass(variant_and_model):
    variant, model = variant_and_model
    latents = golden("unet.in.latents").repeat(2, 1, 1, 1, 1)
    out = model(latents, golden("unet.in.timestep"), golden("unet.in.text_embeddings"), reference_of(model))
    assert relative_error(out, f"unet.read.{variant}.fp32bank.noise_pred@5") < EXACT


def test_sampling_loop(variant_and_model):
    variant, model = variant_and_model
    reference, text = reference_of(model), golden("unet.in.text_embeddings")
    if "sampling.in.text_embeddings" in golden_names("sampling.in"):
        text = golden("sampling.in.text_embeddings")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", steps_offset=1, clip_sample=False
    )
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == golden(f"sampling.{variant}.timesteps").tolist()
    latents = golden("sampling.in.latents")
    for i, t in enumerate(scheduler.timesteps):
        uncond, cond = model(latents.repeat(2, 1, 1, 1, 1), t, text, reference).chunk(2)
        latents = scheduler.step(uncond + 6.0 * (cond - uncond), t, latents).prev_sample
        assert relative_error(latents, f"sampling.{variant}.fp32bank.step{i}.latents@5") < SHORT_RUN


def test_adapter_for_unet_starts_as_the_backbone(backbone):
    adapter = Adapter.for_unet(backbone)
    block = backbone.get_submodule(next(iter(dict(adapter.named_sites()))))
    site = next(iter(dict(adapter.named_sites()).values()))
    assert torch.equal(site.attentions[1].to_v.weight, block.attn2.to_v.weight)
