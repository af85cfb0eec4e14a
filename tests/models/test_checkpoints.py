"""Published files: every key in its place, and one line for every file that is not what it should be."""

import pytest
import torch
from accelerate import init_empty_weights

from animatediff.errors import UserError
from animatediff.models import Adapter, EfficientMT, build_unet
from animatediff.models.checkpoints import (
    adapter_sites,
    load_original_adapter,
    load_original_motion_modules,
    load_original_unet,
    original_adapter_state,
    original_unet_state,
    split_adapter,
)
from animatediff.models.key_names import diffusers_name, original_name
from tests.goldens import keys
from tests.models.test_adapter import SMALL, inputs, plain

SD15 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}


@pytest.fixture(scope="module")
def full_size():
    with init_empty_weights():
        return build_unet(SD15)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return build_unet(SMALL).eval()


def shapes(state):
    return {key: list(value.shape) for key, value in state.items()}


def on_meta(listed):
    return {key: torch.empty(shape, device="meta") for key, shape in listed.items()}


def test_full_size_backbone_has_exactly_the_published_keys(full_size):
    listed = keys("keys_unet_plain")
    assert shapes(original_unet_state(full_size)) == listed
    assert all(original_name(diffusers_name(key)) == key for key in listed)


def test_full_size_motion_module_file(full_size):
    listed = keys("keys_motion_module_ckpt_with_pe")
    tables = {key for key in listed if key.endswith(".pos_encoder.pe")}
    assert len(tables) == 40
    own = {key for key in original_unet_state(full_size) if ".motion_modules." in key}
    assert listed.keys() - tables == own


def test_full_size_adapter(full_size):
    with init_empty_weights():
        adapter = Adapter(adapter_sites(on_meta(keys("keys_adapter"))))
    listed = keys("keys_adapter")
    assert shapes(original_adapter_state(adapter)) == listed
    assert len(listed) == 144
    assert round(sum(p.numel() for p in adapter.parameters()) / 1e6, 2) == 120.95
    own, rest = split_adapter(adapter, on_meta(listed))
    assert own.keys() == adapter.sites.state_dict().keys()
    assert rest == {}


@pytest.mark.parametrize(
    ("listed", "others"), [("keys_adapter_broad_substring_match", 54), ("keys_unet_with_scaler", 1206 - 72)]
)
def test_full_size_contents_beyond_the_adapter_are_backbone_parameters(full_size, listed, others):
    with init_empty_weights():
        adapter = Adapter(adapter_sites(on_meta(keys(listed))))
    own, rest = split_adapter(adapter, on_meta(keys(listed)))
    assert own.keys() == adapter.sites.state_dict().keys()
    assert len(rest) == others
    parameters = shapes(dict(full_size.named_parameters()))
    assert shapes(rest) == {key: parameters[key] for key in rest}


def test_wrapper_prefix_and_position_tables_make_no_difference(unet):
    state = {key: torch.randn_like(value) for key, value in original_unet_state(unet).items()}
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "global_step": 3, "epoch": 1}
    load_original_unet(unet, wrapped)
    assert all(torch.equal(value, state[key]) for key, value in original_unet_state(unet).items())
    motion = {key: value + 1 for key, value in state.items() if ".motion_modules." in key}
    site = "up_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"
    load_original_motion_modules(unet, motion | {f"{site}.pos_encoder.pe": torch.zeros(1, 32, 64)}, "mm.ckpt")
    assert torch.equal(original_unet_state(unet)[f"{site}.to_q.weight"], state[f"{site}.to_q.weight"] + 1)


class TestThreeContents:
    """An adapter alone, with spatial projections, or a whole UNet: all load; what equals the backbone is dropped."""

    @staticmethod
    def state(unet, names=(), shift=0.1):
        torch.manual_seed(3)
        adapter = Adapter.for_unet(unet, scaler_bias=5.0)
        own = {key: value + 0.01 for key, value in original_adapter_state(adapter).items()}
        backbone = original_unet_state(unet)
        return {name: backbone[name] + shift for name in names} | own

    SPATIAL = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_v.weight"

    def outputs(self, unet, state):
        model, (latents, text) = EfficientMT(unet), inputs()
        load_original_adapter(model, state)
        reference = model.extract(latents, 400, text)
        with torch.no_grad():
            return model, reference, model(latents, 601, text, reference)

    def test_equal_entries_are_dropped(self, unet):
        model, _, alone = self.outputs(unet, self.state(unet))
        assert not model.adapter.overrides
        broad, _, out = self.outputs(unet, self.state(unet, [self.SPATIAL], shift=0))
        assert not broad.adapter.overrides
        assert torch.equal(out, alone)
        half, _, out = self.outputs(
            unet, {k: v.half() for k, v in original_unet_state(unet).items()} | self.state(unet)
        )
        assert not half.adapter.overrides
        assert torch.equal(out, alone)

    def test_differing_entries_act_in_generation_only(self, unet):
        latents, text = inputs()
        before = plain(unet, latents, text)
        _, reference, alone = self.outputs(unet, self.state(unet))
        model, other_reference, out = self.outputs(unet, self.state(unet, [self.SPATIAL]))
        assert [name for name, _ in model.adapter.named_overrides()] == [self.SPATIAL]
        assert all(
            torch.equal(a, b)
            for path in reference.sites
            for a, b in zip(reference.sites[path].features, other_reference.sites[path].features, strict=True)
        )
        assert not torch.equal(out, alone)
        assert torch.equal(plain(unet, latents, text), before)

    def test_an_override_is_that_backbone(self, unet):
        """Generation with an override equals generation on a backbone that has the value itself."""
        state = self.state(unet, [self.SPATIAL, "up_blocks.0.resnets.0.conv1.weight"])
        _, _, out = self.outputs(unet, state)
        model, (latents, text) = EfficientMT(unet), inputs()
        load_original_adapter(model, self.state(unet))
        reference = model.extract(latents, 400, text)
        for name in (self.SPATIAL, "up_blocks.0.resnets.0.conv1.weight"):
            unet.get_parameter(name).data.copy_(state[name])
        with torch.no_grad():
            assert torch.equal(model(latents, 601, text, reference), out)

    def test_they_round_trip(self, unet, tmp_path):
        state = self.state(unet, [self.SPATIAL])
        model, _, out = self.outputs(unet, state)
        exported = original_adapter_state(model.adapter)
        assert exported.keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in exported.items())
        model.adapter.save_pretrained(tmp_path)
        again = EfficientMT(unet, adapter=Adapter.from_pretrained(tmp_path))
        latents, text = inputs()
        with torch.no_grad():
            assert torch.equal(again(latents, 601, text, again.extract(latents, 400, text)), out)


class TestRefused:
    def test_missing_unknown_and_wrong_shape_in_one_line(self, unet):
        state = dict(original_unet_state(unet))
        state["conv_in.weight"] = torch.zeros(3, 3)
        del state["conv_out.bias"]
        state["extra.weight"] = torch.zeros(1)
        with pytest.raises(UserError) as error:
            load_original_unet(unet, state, "unet.ckpt")
        message = str(error.value)
        assert "\n" not in message
        for part in (
            "unet.ckpt",
            "lacks conv_out.bias",
            "unknown extra.weight",
            "conv_in.weight [3, 3] (expected [32, 4",
        ):
            assert part in message

    def test_a_refused_file_changes_nothing(self, unet):
        before = {key: value.clone() for key, value in unet.state_dict().items()}
        state = {key: value + 1 for key, value in original_unet_state(unet).items()} | {"extra.weight": torch.zeros(1)}
        with pytest.raises(UserError):
            load_original_unet(unet, state)
        assert all(torch.equal(value, before[key]) for key, value in unet.state_dict().items())

    def test_swapped_files_are_named(self, unet):
        motion = {k: v for k, v in original_unet_state(unet).items() if ".motion_modules." in k}
        with pytest.raises(UserError, match=r"adapter.ckpt lacks .* and \d+ more.*looks like motion modules"):
            load_original_adapter(
                EfficientMT(unet), {k: v for k, v in motion.items() if "to_q" not in k}, "adapter.ckpt"
            )
        adapter = original_adapter_state(Adapter.for_unet(unet))
        with pytest.raises(UserError, match="mm.ckpt lacks .*looks like an EfficientMT adapter"):
            load_original_motion_modules(unet, adapter, "mm.ckpt")

    def test_an_unknown_key_in_an_adapter(self, unet):
        state = original_adapter_state(Adapter.for_unet(unet)) | {"up_blocks.9.x": torch.zeros(1)}
        with pytest.raises(UserError, match="has unknown up_blocks.9.x"):
            load_original_adapter(EfficientMT(unet), state)
