"""SparseCtrl and the domain adapter: published key names and numbers, refused files and conditions."""

import re

import pytest
import torch

from animatediff.errors import UserError
from animatediff.models import build_unet
from animatediff.pipelines.motionclone.guidance import extract_motion, predict_noise
from animatediff.models.sparsectrl import load_original_sparsectrl, merge_domain_adapter, place_condition
from tests.goldens import MOTIONCLONE, TINY, fill, filled_unet, golden, keys, relative_error

TABLE = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.pos_encoder.pe"


def number(name):
    return golden(name, MOTIONCLONE)


def error(out, name):
    return relative_error(out, name, MOTIONCLONE)


def published_file(kind):
    """A published encoder's contents as found in the wild: wrapped, prefixed, with a position table and a note."""
    state = {
        f"module.{key}": fill(key, tuple(shape)) for key, shape in keys(f"keys_sparsectrl_{kind}", MOTIONCLONE).items()
    }
    return {"controlnet": state | {TABLE: torch.zeros(1, 32, 32), "animatediff_config": {}}}


def lora_file(unet, rank=4):
    state = {}
    for name, module in unet.named_modules():
        if re.search(r"\.attentions\.\d+\..*\.attn[12]$", name):
            for part in ("to_q", "to_k", "to_v", "to_out"):
                rows, columns = (module.to_out[0] if part == "to_out" else getattr(module, part)).weight.shape
                for side, shape in (("down", (rank, columns)), ("up", (rows, rank))):
                    key = f"{name}.processor.{part}_lora.{side}.weight"
                    state[key] = fill(key, shape)
    return state


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet(TINY).requires_grad_(False)


@pytest.fixture(scope="module")
def encoders(unet):
    return {kind: load_original_sparsectrl(unet, published_file(kind)) for kind in ("rgb", "sketch")}


class TestPublishedNumbers:
    def test_residuals(self, encoders):
        control = place_condition(encoders["rgb"], number("sparsectrl.condition")[0].transpose(0, 1), [0], 16)
        text = number("text.one").repeat_interleave(16, dim=0)
        residuals = control(torch.full((1, 4, 16, 16, 16), 3.0), 611, text)
        down, mid = residuals["down_block_additional_residuals"], residuals["mid_block_additional_residual"]
        assert len(down) == 12
        for i, maps in enumerate(down):  # f c h w -> 1 c f h w, four of the frames
            assert error(maps.transpose(0, 1)[None, :, [0, 1, 7, 15]], f"sparsectrl.down.{i}@31") < 1e-5
        assert error(mid.transpose(0, 1)[None], "sparsectrl.mid@31") < 1e-5

    def test_extraction_from_an_image(self, encoders):
        clean, noise = number("reference.latents"), torch.randn(1, 4, 16, 16, 16, generator=torch.manual_seed(76739))
        abar = number("schedule.alphas_cumprod")[400]
        control = place_condition(encoders["rgb"], clean[0, :, :1].transpose(0, 1), [0], 16)
        noisy = abar.sqrt() * clean + (1 - abar).sqrt() * noise
        motion = extract_motion(filled_unet(), noisy, 400, number("text.empty"), control=control)
        assert error(torch.stack([values for values, _ in motion.values()]), "motion.rgb.values") < 1e-5
        sure = number("motion.rgb.sure").bool()
        indices = torch.stack([indices for _, indices in motion.values()])
        assert torch.equal(indices[sure], number("motion.rgb.indices").long()[sure])

    def test_domain_adapter(self):
        unet = filled_unet()
        merge_domain_adapter(unet, {"state_dict": lora_file(unet)}, scale=1.0)
        weight = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0.weight"
        assert error(unet.get_parameter(weight), f"lora.{weight}@3") < 1e-7
        with torch.no_grad():
            noise = predict_noise(unet, number("lora.sample"), 420, number("text.one"))
        assert error(noise, "lora.noise@7") < 1e-5


class TestEncoder:
    def test_kind_is_told_by_the_file(self, encoders):
        assert encoders["rgb"].takes_latents
        assert not encoders["sketch"].takes_latents

    def test_batch_of_prompts_and_scale(self, encoders):
        random = torch.Generator().manual_seed(0)
        images, text = torch.rand(2, 3, 32, 48, generator=random), torch.randn(2 * 3, 5, 64, generator=random)
        whole = place_condition(encoders["sketch"], images, [2, 0], 3)
        half = place_condition(encoders["sketch"], images, [2, 0], 3, scale=0.5)
        latents = torch.zeros(2, 4, 3, 4, 6)
        both = whole(latents, 9, text)["mid_block_additional_residual"]
        assert torch.allclose(half(latents, 9, text)["mid_block_additional_residual"], both / 2, atol=1e-6)
        second = whole(latents[1:], 9, text[3:])["mid_block_additional_residual"]
        assert torch.allclose(second, both[3:], atol=1e-3)
        assert not torch.allclose(both[:3], both[3:], atol=1e-1)

    def test_condition_stands_at_its_frames(self, encoders):
        images = torch.rand(2, 4, 5, 7)
        control = place_condition(encoders["rgb"], images, [3, 1], 4)
        assert torch.equal(control.condition[0, :, 3], images[0])
        assert torch.equal(control.condition[0, :, 1], images[1])
        assert control.condition[:, :, [0, 2]].abs().max() == 0
        assert control.mask[0, 0, :, 0, 0].tolist() == [0, 1, 0, 1]

    @pytest.mark.parametrize(
        ("images", "index", "message"),
        [
            (0, [], "no condition image is given"),
            (1, [0, 1], r"image_index is \[0, 1\] for 1 condition image; expected one frame number per image"),
            (2, [0], r"image_index is \[0\] for 2 condition images"),
            (1, [4], "image_index has 4, expected frame numbers 0 to 3"),
            (1, [-1], "image_index has -1"),
            (2, [1, 1], "repeats a frame"),
        ],
    )
    def test_indices_that_do_not_fit(self, encoders, images, index, message):
        with pytest.raises(UserError, match=message):
            place_condition(encoders["rgb"], torch.zeros(images, 4, 5, 7), index, 4)


class TestRefusedFiles:
    def test_something_else_as_encoder(self, unet):
        with pytest.raises(UserError, match=r"x\.ckpt is no SparseCtrl encoder .* it looks like a LoRA"):
            load_original_sparsectrl(unet, lora_file(unet), "x.ckpt")

    def test_encoder_of_another_size(self):
        other = build_unet(TINY | {"block_out_channels": [32, 32, 64, 64]})
        with pytest.raises(UserError, match=r"x\.ckpt .* has shapes .*expected a SparseCtrl encoder for this backbone"):
            load_original_sparsectrl(other, published_file("rgb"), "x.ckpt")

    def test_encoder_that_lacks_keys(self, unet):
        state = published_file("rgb")["controlnet"]
        del state["module.conv_in.bias"]
        with pytest.raises(UserError, match=r"x\.ckpt lacks conv_in\.bias; expected"):
            load_original_sparsectrl(unet, state, "x.ckpt")

    def test_adapters_that_do_not_fit_change_nothing(self, unet):
        before = {name: value.clone() for name, value in unet.named_parameters()}
        good = lora_file(unet)
        first = next(iter(good))
        wrong_shape = good | {first: torch.zeros(4, 7)}
        without_up = {key: value for key, value in good.items() if key != first.replace(".down.", ".up.")}
        elsewhere = good | {f"down_blocks.9.{first}": good[first]}
        for state, message in (
            (wrong_shape, "has shapes"),
            (without_up, "has no place for"),
            (elsewhere, "has no place for"),
            ({"conv_in.weight": torch.zeros(1)}, "is no domain adapter"),
            (good | {"conv_in.weight": torch.zeros(1)}, "is no domain adapter"),
        ):
            with pytest.raises(UserError, match=rf"x\.ckpt {message}"):
                merge_domain_adapter(unet, state, source="x.ckpt")
        assert all(torch.equal(value, before[name]) for name, value in unet.named_parameters())
