"""Sites, sizes, lengths; the backbone untouched; what is constant over steps computed once."""

import pytest
import torch
from einops import rearrange

from animatediff.errors import UserError
from animatediff.models import Adapter, EfficientMT, VideoUNet, build_unet
from animatediff.models.adapter import integrated, site_paths
from animatediff.models.integration import IntegratedBlock
from animatediff.models.motion_module import MotionModule
from animatediff.models.scaler import Scaler

SMALL = {
    "block_out_channels": [32, 64, 64, 64],
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 8,
    "sample_size": 8,
}


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet(SMALL).eval()


def trained(unet, sites="up", bias=5.0):
    """A fresh adapter with weights that differ from the backbone's and an open scale map."""
    torch.manual_seed(1)
    model = EfficientMT(unet, adapter=Adapter.for_unet(unet, sites, scaler_bias=bias))
    with torch.no_grad():
        for parameter in model.adapter.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def inputs(batch=1, frames=4, height=8, width=8):
    torch.manual_seed(2)
    return torch.randn(batch, 4, frames, height, width), torch.randn(batch, 5, 16)


def plain(unet, latents, text):
    with torch.no_grad():
        return unet(latents, 601, text.repeat_interleave(latents.shape[2], dim=0)).sample


@pytest.mark.parametrize(
    ("sites", "blocks"),
    [
        ("up", ["up_blocks.0"] * 2 + ["up_blocks.1"] * 2 + ["up_blocks.2"] * 2 + ["up_blocks.3"] * 2),
        ("up_1", ["up_blocks.1"] * 2),
        ("up_2", ["up_blocks.1"] * 2 + ["up_blocks.2"] * 2),
        ("midup", [f"up_blocks.{i}" for i in (0, 0, 1, 1, 2, 2, 3, 3)]),
        ("full", [f"down_blocks.{i}" for i in range(4)] + [f"up_blocks.{i}" for i in (0, 0, 1, 1, 2, 2, 3, 3)]),
    ],
)
def test_sites(unet, sites, blocks):
    assert [".".join(path.split(".")[:2]) for path in site_paths(unet, sites)] == blocks
    model, (latents, text) = trained(unet, sites), inputs()
    out = model(latents, 601, text, model.extract(latents, 400, text))
    assert out.shape == latents.shape
    assert not torch.allclose(out, plain(unet, latents, text), atol=1e-4)


def test_midup_takes_the_middle_where_it_has_motion_modules():
    unet = VideoUNet(
        block_out_channels=(32, 32), down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), cross_attention_dim=16, layers_per_block=1,
    )  # fmt: skip
    assert site_paths(unet, "midup")[0] == "mid_block.motion_modules.0.transformer_blocks.0"


def test_unknown_sites_are_refused_by_name(unet):
    with pytest.raises(UserError, match="sites 'up_3' does not exist"):
        site_paths(unet, "up_3")


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (7, 10), (5, 9)])
def test_any_size(unet, height, width):
    model, (latents, text) = trained(unet), inputs(height=height, width=width)
    reference = model.extract(latents, 400, text)
    assert reference.latent_size == (height, width)
    assert model(latents, 601, text, reference).shape == latents.shape


@pytest.mark.parametrize("frames", [1, 3, 32])
def test_any_length(unet, frames):
    model, (latents, text) = trained(unet), inputs(frames=frames, height=4, width=4)
    assert model(latents, 601, text, model.extract(latents, 400, text)).shape == latents.shape


def test_square_is_no_special_case():
    """Transposing height and width of everything spatial transposes the scale map: none is read as a square."""
    torch.manual_seed(0)
    height, width = 3, 5
    scaler = Scaler(16)
    torch.nn.init.normal_(scaler.spatial_convs[-1].weight)
    y, r = torch.randn(2, 2 * height * width, 4, 16).unbind()  # ((b h w) f c) each

    def transposed(tokens):
        return rearrange(tokens, "(b h w) f c -> (b w h) f c", h=height, w=width)

    wide = scaler(y, r, (height, width))
    for conv in scaler.spatial_convs:
        conv.weight.data = conv.weight.data.transpose(2, 3).contiguous()
    tall = scaler(transposed(y), transposed(r), (width, height))
    assert wide.std() > 1e-3, "a map that varies"
    assert torch.allclose(tall, transposed(wide), rtol=1e-4, atol=1e-6)


def test_every_site_is_read_in_its_own_size(unet):
    model, (latents, text) = trained(unet), inputs(height=4, width=8)
    wide = model.extract(latents, 400, text)
    assert {site.size for site in wide.sites.values()} == {(1, 1), (1, 2), (2, 4), (4, 8)}


def test_extraction_and_generation_leave_the_backbone_as_it_was(unet):
    model, (latents, text) = trained(unet), inputs()
    modules, before = dict(unet.named_modules()), plain(unet, latents, text)
    model(latents, 601, text, model.extract(latents, 400, text))
    assert dict(unet.named_modules()) == modules
    assert not any(module._forward_hooks for module in unet.modules())
    assert torch.equal(plain(unet, latents, text), before)
    assert not any(parameter.requires_grad for parameter in unet.parameters())


def test_the_backbone_comes_back_when_sampling_fails(unet):
    model, (latents, text) = trained(unet), inputs()
    modules, reference = dict(unet.named_modules()), model.extract(latents, 400, text)
    with pytest.raises(ZeroDivisionError), integrated(unet, model.adapter, reference):
        raise ZeroDivisionError
    assert dict(unet.named_modules()) == modules


def test_a_closed_scale_map_and_the_backbones_projections_give_the_backbone(unet):
    """a = 0 leaves of the reference its positions: attention over [y + p, p], computed here by the backbone's block."""
    model, (latents, text) = EfficientMT(unet, adapter=Adapter.for_unet(unet, scaler_bias=-100.0)), inputs()
    reference = model.extract(latents, 400, text)
    path, site = next(model.adapter.named_sites())
    features, block = reference.sites[path], unet.get_submodule(path)
    tokens = torch.randn_like(features.features[0])  # (b h w) f c
    with torch.no_grad():
        x = tokens
        for norm, attention in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
            y, p = block.pos_embed(norm(x)), block.pos_embed(torch.zeros_like(x))
            x = x + attention(y, torch.cat([y, p], dim=1))
        want = x + block.ff(block.norm3(x))
        got = IntegratedBlock(block, site, features)(tokens)
    assert torch.allclose(got, want, atol=1e-5)
    assert (want - block(tokens)).norm() > 1e-3 * want.norm(), "silent frames do take attention"


def test_a_closed_scale_map_leaves_nothing_of_what_the_reference_shows(unet):
    """As against the backbone: with an open map the two references differ by more than the tolerance."""
    latents, text = inputs()
    shown = [latents, torch.randn_like(latents)]
    for bias, same in ((-100.0, True), (5.0, False)):
        model = trained(unet, bias=bias)
        first, second = (model(latents, 601, text, model.extract(clip, 400, text)) for clip in shown)
        assert torch.allclose(first, second, atol=1e-5) == same
        assert not torch.allclose(first, plain(unet, latents, text), atol=1e-4), "trained projections act either way"


def test_computed_once_equals_computed_every_step(unet):
    model, (latents, text) = trained(unet), inputs()
    reference = model.extract(latents, 400, text)
    every_step = [model(latents, t, text, reference) for t in (801, 601, 401)]
    with torch.no_grad(), integrated(unet, model.adapter, reference):
        once = [unet(latents, t, text.repeat_interleave(4, dim=0)).sample for t in (801, 601, 401)]
    assert all(torch.equal(a, b) for a, b in zip(every_step, once, strict=True))


def test_one_reference_serves_any_batch_and_a_batch_serves_both_halves_of_guidance(unet):
    model, (latents, text) = trained(unet), inputs(batch=2)
    references = [model.extract(latents[i : i + 1], 400, text[i : i + 1]) for i in range(2)]
    both = model.extract(latents, 400, text)
    x, c = latents.flip(2), text.flip(0)
    alone = [model(x[i : i + 1], 601, c[i : i + 1], references[i]) for i in range(2)]
    assert torch.allclose(model(x, 601, c, both), torch.cat(alone), atol=1e-4)
    doubled = model(torch.cat([x, x]), 601, torch.cat([c, c]), both)  # [all unconditional, all conditional]
    assert torch.allclose(doubled, torch.cat(alone + alone), atol=1e-4)
    served = model(x, 601, c, references[0])
    assert torch.allclose(served[0:1], alone[0], atol=1e-4)
    assert not torch.allclose(served[1:2], alone[1], atol=1e-3)


def test_the_order_of_the_references_frames_matters(unet):
    model, (latents, text) = trained(unet), inputs()
    forward = model(latents, 601, text, model.extract(latents, 400, text))
    backward = model(latents, 601, text, model.extract(latents.flip(2), 400, text))
    assert not torch.allclose(forward, backward, atol=1e-4)


def test_gradients_reach_the_adapter_only(unet):
    model, (latents, text) = trained(unet), inputs()
    model(latents, 601, text, model.extract(latents, 400, text)).square().mean().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.adapter.parameters()
    )
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_parts_partition_the_adapter(unet):
    adapter = Adapter.for_unet(unet)
    parts = [id(p) for part in ("to_q", "to_k", "to_v", "scaler") for p in adapter.part(part)]
    assert sorted(parts) == sorted(id(p) for p in adapter.parameters())


def test_without_a_scaler_the_reference_enters_whole(unet):
    adapter = Adapter.for_unet(unet, use_scaler=False)
    assert adapter.part("scaler") == []
    model, (latents, text) = EfficientMT(unet, adapter=adapter), inputs()
    assert model(latents, 601, text, model.extract(latents, 400, text)).shape == latents.shape


def test_save_and_load(unet, tmp_path):
    adapter = trained(unet, "up_2").adapter
    adapter.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = Adapter.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == adapter.state_dict().keys()
    assert all(torch.equal(value, adapter.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_a_reference_for_other_sites_is_refused(unet):
    (latents, text), small, large = inputs(), trained(unet, "up_1"), trained(unet, "up")
    with pytest.raises(UserError, match="no features for up_blocks.0"):
        large(latents, 601, text, small.extract(latents, 400, text))


def test_frames_are_normalised_one_by_one():
    """With temporal attention silenced a frame does not depend on the others; under the stock norm it does."""
    unet = build_unet(SMALL).eval()
    module = unet.up_blocks[1].motion_modules[0]
    for attention in (module.transformer_blocks[0].attn1, module.transformer_blocks[0].attn2):
        attention.to_out[0].weight.data.zero_()
    frames = torch.randn(4, 64, 3, 3)
    louder = torch.cat([frames[:3], 50 * frames[3:]])
    with torch.no_grad():
        assert torch.equal(module(frames, num_frames=4)[:3], module(louder, num_frames=4)[:3])
        stock = super(MotionModule, module).forward
        assert not torch.allclose(stock(frames, num_frames=4)[:3], stock(louder, num_frames=4)[:3], atol=1e-3)


def test_motion_in_the_middle_runs_over_all_frames():
    """The middle block passes the number of frames by position, the others by name: both are one call."""
    torch.manual_seed(0)
    unet = build_unet(SMALL, motion_in_middle=True).eval()
    assert site_paths(unet, "midup")[0] == "mid_block.motion_modules.0.transformer_blocks.0"
    module, seen = unet.mid_block.motion_modules[0], []
    module.register_forward_hook(lambda _module, inputs, out: seen.append((inputs[0], out)))
    latents, text = inputs()
    plain(unet, latents, text)
    ((hidden, got),) = seen
    with torch.no_grad():
        assert torch.equal(got, module(hidden, num_frames=4))
        assert not torch.allclose(got, module(hidden, num_frames=1), atol=1e-4)
    assert not hasattr(build_unet(SMALL).mid_block, "motion_modules")


@pytest.mark.parametrize("middle", [False, True])
def test_gradient_checkpointing_changes_no_gradient(middle):
    torch.manual_seed(0)
    unet = build_unet(SMALL, motion_in_middle=middle).eval().requires_grad_(False)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        latents, text = inputs(frames=2)
        latents.requires_grad_()
        unet(latents, 601, text.repeat_interleave(2, dim=0)).sample.square().mean().backward()
        gradients.append(latents.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients, atol=1e-7)
