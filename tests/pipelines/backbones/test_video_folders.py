"""Folders of CogVideoX and Wan as the hub has them: loaded to the bit, or refused in one line."""

import json
import shutil

import pytest
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, UMT5EncoderModel

from animatediff.errors import UserError
from animatediff.pipelines.backbones import cogvideox, wan
from animatediff.pipelines.backbones.cogvideox import load_cogvideox
from animatediff.pipelines.backbones.folders import build, expected_files
from animatediff.pipelines.backbones.wan import load_wan
from animatediff.pipelines.ditflow import read_blocks
from animatediff.pipelines.ditflow.sampling import Solver
from animatediff.pipelines.ditflow.transformer import check_blocks
from tests.video_transformers import COGVIDEOX_SCHEDULE, KINDS

LOADERS = {"2b": load_cogvideox, "5b": load_cogvideox, "wan": load_wan}
CLASSES = {
    "transformer": (CogVideoXTransformer3DModel, WanTransformer3DModel),
    "vae": (AutoencoderKLCogVideoX, AutoencoderKLWan),
    "text_encoder": (T5EncoderModel, UMT5EncoderModel),
}
# The published networks, by ditflow.md's tables and their configs on the hub: blocks, heads, width of a head.
FULL = {
    "2b": (30, 30, 64, 1_693_783_872),
    "5b": (42, 48, 64, 5_570_283_072),
    "wan 1.3b": (30, 12, 128, 1_418_996_800),
    "wan 14b": (40, 40, 128, 14_288_491_584),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, video_layouts, tmp_path):
    """A copy of the layout, to break."""
    return shutil.copytree(video_layouts(kind), tmp_path / kind)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestLoading:
    def test_every_weight_is_that_of_the_libraries_own_loading(self, kind, video_layouts):
        folder = video_layouts(kind)
        components = LOADERS[kind](folder)
        for part, classes in CLASSES.items():
            own = getattr(components, part)
            want = classes[kind == "wan"].from_pretrained(folder / part)
            state, expected = own.state_dict(), want.state_dict()
            assert state.keys() == expected.keys()
            assert all(torch.equal(value, expected[key]) for key, value in state.items())
            buffers = dict(want.named_buffers())
            assert all(torch.equal(value, buffers[name]) for name, value in own.named_buffers())
            assert not any(parameter.requires_grad or parameter.is_meta for parameter in own.parameters())
            assert not own.training

    def test_half_precision_keeps_what_the_networks_want_in_float32(self, kind, video_layouts):
        for dtype in (torch.float16, torch.bfloat16):
            components = LOADERS[kind](video_layouts(kind), dtype=dtype)
            assert components.transformer.dtype == dtype
            classes = CLASSES["transformer"]
            want = classes[kind == "wan"].from_pretrained(video_layouts(kind) / "transformer", torch_dtype=dtype)
            kept = {name: value.dtype for name, value in want.named_parameters()}
            assert {name: value.dtype for name, value in components.transformer.named_parameters()} == kept
            wo = components.text_encoder.encoder.block[0].layer[1].DenseReluDense.wo.weight
            assert wo.dtype == (torch.float32 if dtype == torch.float16 else dtype)
            assert components.vae.dtype == (torch.float32 if kind == "wan" else dtype)

    def test_schedulers(self, video_layouts):
        assert isinstance(load_cogvideox(video_layouts("2b")).scheduler, CogVideoXDDIMScheduler)
        five = load_cogvideox(video_layouts("5b")).scheduler
        assert isinstance(five, CogVideoXDPMScheduler)
        assert five.config.timestep_spacing == "trailing"
        assert five.config.rescale_betas_zero_snr
        assert isinstance(cogvideox.build_scheduler(video_layouts("5b"), "ddim"), CogVideoXDDIMScheduler)
        assert isinstance(wan.build_scheduler("euler", 5.0), FlowMatchEulerDiscreteScheduler)
        unipc = wan.build_scheduler("unipc", 5.0)
        assert isinstance(unipc, UniPCMultistepScheduler)
        unipc.set_timesteps(10)
        euler = wan.build_scheduler("euler", 5.0)
        euler.set_timesteps(10)
        assert torch.allclose(unipc.sigmas[5], euler.sigmas[5], atol=0.05)
        with pytest.raises(UserError, match="unknown scheduler 'dmp' for CogVideoX; did you mean 'dpm'"):
            cogvideox.build_scheduler(video_layouts("5b"), "dmp")
        with pytest.raises(UserError, match="unknown scheduler 'ddim' for Wan"):
            wan.build_scheduler("ddim")

    @pytest.mark.parametrize("name", ["ddim", "dpm"])
    @pytest.mark.parametrize("steps", [8, 7, 30])
    def test_every_step_lands_on_the_next_timestep(self, name, steps):
        """The clean video at any N, through the noise levels of the list; diffusers' own step where N divides 1000."""
        plain = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}[name]
        ours, theirs = (
            Solver(scheduler(**COGVIDEOX_SCHEDULE), steps, generator=torch.Generator().manual_seed(0))
            for scheduler in (cogvideox.SCHEDULERS[name], plain)
        )
        clean, noise = torch.ones(1, 2), torch.randn(1, 2, generator=torch.Generator().manual_seed(1))
        latents = ours.add_noise(clean, noise, 0)
        for i, t in enumerate(ours.timesteps):
            alpha = ours.scheduler.alphas_cumprod[t]
            velocity = ((alpha.sqrt() * latents - clean) / (1 - alpha).sqrt()).float()  # of a network that knows x0
            other, latents = theirs.step(i, velocity, latents), ours.step(i, velocity, latents)
            assert torch.equal(latents, other) or steps != 8
            if name == "ddim" and i + 1 < steps:
                assert torch.allclose(latents, ours.add_noise(clean, noise, i + 1), atol=1e-3)
        assert torch.allclose(latents, clean, atol=1e-3)

    def test_one_file_and_a_half_precision_variant_serve_too(self, kind, folder):
        state = {}
        for shard in sorted((folder / "transformer").glob("*.safetensors")):
            state |= load_file(shard)
            shard.unlink()
        (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").unlink()
        save_file(state, folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors")
        loaded = LOADERS[kind](folder).transformer.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())

    def test_the_files_that_it_reads(self, kind, video_layouts):
        files = expected_files(video_layouts(kind), (wan if kind == "wan" else cogvideox).PARTS)
        assert all(path.exists() for path in files.values())
        read = set(video_layouts(kind).rglob("*.safetensors"))
        assert {path for path in files.values() if path.is_file()} == read
        nowhere = expected_files(video_layouts(kind) / "not there", cogvideox.PARTS)
        assert not any(path.exists() for path in nowhere.values())
        assert len(nowhere) == 4


class TestBadFolders:
    def test_another_model_s_folder(self, kind, folder, tiny_weights):
        other = {"wan": load_cogvideox}.get(kind, load_wan)
        with pytest.raises(
            UserError, match=r"transformer is a \w+Transformer3DModel, expected a \w+Transformer3DModel"
        ):
            other(folder)
        with pytest.raises(UserError, match="no transformer/config.json, .* a Stable Diffusion model"):
            LOADERS[kind](tiny_weights.pretrained_model_path)
        with pytest.raises(UserError, match="it is the folder of a single"):
            LOADERS[kind](folder / "transformer")
        with pytest.raises(UserError, match="no base model folder at"):
            LOADERS[kind](folder / "nowhere")

    def test_a_2d_unet_as_the_transformer(self, kind, folder, tiny_weights):
        shutil.rmtree(folder / "transformer")
        shutil.copytree(f"{tiny_weights.pretrained_model_path}/unet", folder / "transformer")
        with pytest.raises(UserError, match="transformer is a UNet2DConditionModel, expected a"):
            LOADERS[kind](folder)

    def test_a_shard_that_is_missing(self, kind, folder):
        next((folder / "transformer").glob("*-00002-of-*")).unlink()
        with pytest.raises(UserError, match="transformer lacks diffusion_pytorch_model-00002-of-.*download it again"):
            LOADERS[kind](folder)

    def test_a_shard_that_is_cut(self, kind, folder):
        shard = next((folder / "transformer").glob("*-00002-of-*"))
        shard.write_bytes(shard.read_bytes()[:200])
        with pytest.raises(UserError, match="-00002-of-.* is truncated or corrupt"):
            LOADERS[kind](folder)

    def test_keys_and_shapes(self, kind, folder):
        shard = folder / "vae" / "diffusion_pytorch_model.safetensors"
        state = load_file(shard)
        first = next(iter(state))
        for changed, message in [
            ({key: value for key, value in state.items() if key != first}, f"lack {first}"),
            (state | {"extra": torch.zeros(1)}, "have unknown extra"),
            (state | {first: torch.zeros(7, 7)}, rf"have shapes {first} \[7, 7\]"),
        ]:
            save_file(changed, shard)
            with pytest.raises(UserError, match=message):
                LOADERS[kind](folder)

    def test_a_config_of_other_widths(self, kind, folder):
        key = "ffn_dim" if kind == "wan" else "time_embed_dim"
        edit(folder / "transformer" / "config.json", **{key: 24})
        with pytest.raises(UserError, match="the weights in .*transformer have shapes .* config.json describes"):
            LOADERS[kind](folder)
        edit(folder / "transformer" / "config.json", num_layers="three")
        with pytest.raises(UserError, match="config.json: num_layers is 'three', expected a whole number"):
            LOADERS[kind](folder)
        edit(folder / "transformer" / "config.json", num_layers=3, attention_head_dim=-8)
        with pytest.raises(UserError, match="describes no network that can be built"):
            LOADERS[kind](folder)

    def test_pickles_are_not_read(self, kind, folder):
        torch.save({}, folder / "vae" / "diffusion_pytorch_model.bin")
        (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(UserError, match="vae holds pickles alone"):
            LOADERS[kind](folder)

    def test_parts_of_two_bases(self, kind, folder):
        edit(folder / "text_encoder" / "config.json", d_model=16)
        with pytest.raises(UserError, match="12, text_encoder has d_model 16; take both from one base"):
            LOADERS[kind](folder)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                {"weight_map": {"a": "../a.safetensors"}},
                "names ../a.safetensors, expected .safetensors files beside it",
            ),
            ({"weight_map": {}}, "names no file"),
            ({"weight_map": {"a": 7}}, "has no weight_map of names of files"),
            ({}, "has no weight_map of names of files"),
        ],
    )
    def test_an_index_that_makes_no_sense(self, video_layouts, tmp_path, content, message):
        folder = shutil.copytree(video_layouts("2b"), tmp_path / "2b")
        index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            load_cogvideox(folder)

    def test_a_broken_tokenizer(self, kind, folder):
        place = folder / "tokenizer"
        for file in place.glob("*"):
            file.write_bytes(b"{}")
        with pytest.raises(UserError, match="is not a tokenizer"):
            LOADERS[kind](folder)
        shutil.rmtree(place)
        with pytest.raises(UserError, match="no tokenizer folder at"):
            LOADERS[kind](folder)

    def test_wan_2_2(self, video_layouts, tmp_path):
        folder = shutil.copytree(video_layouts("wan"), tmp_path / "wan")
        (folder / "model_index.json").write_text(json.dumps({"expand_timesteps": True}))
        with pytest.raises(UserError, match="is Wan 2.2; DiTFlow runs on Wan 2.1"):
            load_wan(folder)


@pytest.mark.parametrize("name", list(FULL))
def test_the_published_networks_on_meta_tensors(name, tmp_path):
    """Full size without memory: every key has its place, and a guided block is read at 480p in its shapes."""
    layers, heads, width, parameters = FULL[name]
    shape = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": width}
    if name.startswith("wan"):
        shape["ffn_dim"] = {"wan 1.3b": 8960, "wan 14b": 13824}[name]
        network = build(lambda: WanTransformer3DModel(**shape), tmp_path)
        latents, text, tokens = (1, 16, 6, 60, 104), (1, 512, 4096), 6 * 30 * 52
    else:
        rope = name == "5b"
        network = build(lambda: CogVideoXTransformer3DModel(**shape, use_rotary_positional_embeddings=rope), tmp_path)
        latents, text, tokens = (1, 6, 16, 60, 90), (1, 226, 4096), 6 * 30 * 45
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    guided = {"2b": 15, "5b": 20, "wan 1.3b": 15, "wan 14b": 20}[name]
    check_blocks(network, [guided], [0])
    with torch.no_grad():
        states = read_blocks(
            network.to("meta"), torch.empty(latents, device="meta"), 500, torch.empty(text, device="meta"), [1]
        )
    assert states[1].query.shape == (heads, tokens, width)
    assert states[1].features.shape == (6, heads * width, 30, 52 if name.startswith("wan") else 45)
