"""LoRA files: applied exactly whatever the names in them, each at its own scale, or refused in one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from animatediff.errors import UserError
from animatediff.models.key_names import original_name
from animatediff.pipelines.backbones.lora import load_loras, lora_scales, read_lora
from animatediff.pipelines.efficientmt.loading import load_pipeline
from tests.generated import right_or_one_line

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
SPATIAL, OUT = f"{ATTENTION}.to_q", f"{ATTENTION}.to_out.0"
CONV, PROJ = "up_blocks.1.resnets.0.conv1", "down_blocks.0.attentions.0.proj_in"  # 3x3 and 1x1
MOTION = "down_blocks.1.motion_modules.0.transformer_blocks.0.attn2.to_v"
TEXT, TEXT_OUT = "encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.out_proj"
MLP = "encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def loaded(tiny_weights):
    return load_pipeline(replace(tiny_weights, dreambooth_path="", ckpt_path=""))


@pytest.fixture
def pipe(loaded):
    """One pipeline for all tests here; each leaves it as it was."""
    keys = [list(model.state_dict()) for model in (loaded.unet, loaded.text_encoder)]
    yield loaded
    loaded.unload_lora_weights()
    assert [list(model.state_dict()) for model in (loaded.unet, loaded.text_encoder)] == keys


@pytest.fixture(scope="module")
def targets(loaded):
    """A few of the layers that LoRA can change."""
    places = {"unet": (SPATIAL, CONV), "text_encoder": (TEXT,)}
    return {name: {path: layer_of(loaded, name, path) for path in paths} for name, paths in places.items()}


def layer_of(pipe, component, path):
    return getattr(pipe, component).get_submodule(path)


def weights(pipe, places):
    """The weights of layers, before anything is loaded onto them."""
    return {place: layer_of(pipe, *place).weight.clone() for place in places}


def change(pipe, component, path, rank=2, seed=0):
    """Random down and up weights for one layer."""
    weight = layer_of(pipe, component, path).weight
    draw = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *weight.shape[1:], generator=draw) / math.sqrt(weight[0].numel())
    up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=draw)
    return {"down": down, "up": up}


def changes(pipe, unet=(SPATIAL, OUT), text=()):
    places = [("unet", path) for path in unet] + [("text_encoder", path) for path in text]
    return {place: change(pipe, *place, rank=2 + i, seed=i) for i, place in enumerate(places)}


def product(layer, scale=1.0):
    up, down = layer["up"], layer["down"]
    return scale * (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def effective(pipe, component, path):
    """The weight that the layer computes with, told by its answers alone."""
    module = layer_of(pipe, component, path)
    base = getattr(module, "base_layer", module)
    if base.weight.ndim == 2:
        eye = torch.eye(base.in_features)
        return (module(eye) - module(torch.zeros_like(eye))).T
    c, (kh, kw) = base.in_channels, base.kernel_size
    impulse = torch.zeros(c * kh * kw, c, kh, kw).flatten(1)
    impulse.fill_diagonal_(1)
    impulse = impulse.reshape(-1, c, kh, kw)
    answers = module(impulse) - module(torch.zeros_like(impulse))
    return answers[:, :, kh // 2, kw // 2].T.reshape(base.weight.shape)


def saved(folder, state, name="lora.safetensors", **metadata):
    save_file({key: value.contiguous().clone() for key, value in state.items()}, folder / name, metadata or None)
    return str(folder / name)


# The same layers under the names of each program: (component, path) -> the key's beginning, then down's and up's end.


def new_diffusers(layers, _):
    for (component, path), layer in layers.items():
        name = f"{component}.{'text_model.' * (component == 'text_encoder')}{path}"
        yield from ((f"{name}.lora_A.weight", layer["down"]), (f"{name}.lora_B.weight", layer["up"]))


def old_diffusers(layers, _):
    for (component, path), layer in layers.items():
        name = f"{component}.{'text_model.' * (component == 'text_encoder')}{path}"
        if component == "unet":
            owner, _, last = name.removesuffix(".0").rpartition(".")
            name = f"{owner}.processor.{last}_lora"
        else:
            name = (
                name.replace("q_proj", "to_q_lora")
                .replace("out_proj", "to_out_lora")
                .replace("fc1", "fc1.lora_linear_layer")
            )
        yield from ((f"{name}.down.weight", layer["down"]), (f"{name}.up.weight", layer["up"]))


def kohya(layers, alpha):
    for (component, path), layer in layers.items():
        start = "lora_unet_" if component == "unet" else "lora_te_text_model_"
        name = start + path.replace(".", "_")
        yield from ((f"{name}.lora_down.weight", layer["down"]), (f"{name}.lora_up.weight", layer["up"]))
        yield f"{name}.alpha", torch.tensor(alpha)


def animatediff(layers, _):
    for (_component, path), layer in layers.items():
        owner, _, last = original_name(path).removesuffix(".0").rpartition(".")
        name = f"module.{owner}.processor.{last}_lora"
        yield from ((f"{name}.down.weight", layer["down"]), (f"{name}.up.weight", layer["up"]))


class TestExactly:
    @pytest.mark.parametrize(
        ("names", "unet", "text", "alpha"),
        [
            (new_diffusers, (SPATIAL, OUT, MOTION, CONV), (TEXT, TEXT_OUT), None),
            (old_diffusers, (SPATIAL, OUT, MOTION), (TEXT, TEXT_OUT, MLP), None),
            (kohya, (SPATIAL, OUT, CONV, PROJ), (TEXT, MLP), 3.0),
            (kohya, (SPATIAL, OUT), (), 4),
            (animatediff, (MOTION, MOTION.replace("to_v", "to_out.0")), (), None),
        ],
    )
    def test_every_naming(self, pipe, tmp_path, names, unet, text, alpha):
        layers = changes(pipe, unet, text)
        before = weights(pipe, layers)
        assert load_loras(pipe, [saved(tmp_path, dict(names(layers, alpha)))], 0.7) == []
        for place, layer in layers.items():
            rank = len(layer["down"])
            want = before[place] + product(layer, 0.7 * (rank if alpha is None else alpha) / rank)
            torch.testing.assert_close(effective(pipe, *place), want, atol=2e-6, rtol=1e-5)

    def test_layers_that_are_not_named_stay_bit_equal(self, pipe, tmp_path):
        before = {path: module.weight.clone() for path, module in pipe.unet.named_modules() if path.endswith("to_k")}
        load_loras(pipe, [saved(tmp_path, dict(new_diffusers(changes(pipe), None)))])
        assert all(torch.equal(pipe.unet.get_submodule(path).weight, before[path]) for path in before)

    def test_a_linear_layers_change_stored_as_a_convolution_and_the_reverse(self, pipe, tmp_path):
        layers = changes(pipe, (SPATIAL, PROJ))
        places = list(layers)
        before = weights(pipe, layers)
        stored = {
            places[0]: {key: value[..., None, None] for key, value in layers[places[0]].items()},
            places[1]: {key: value.flatten(1) for key, value in layers[places[1]].items()},
        }
        load_loras(pipe, [saved(tmp_path, dict(kohya(stored, 1.0)))])
        for place, layer in layers.items():
            want = before[place] + product(layer, 1 / len(layer["down"]))
            torch.testing.assert_close(effective(pipe, *place), want, atol=2e-6, rtol=1e-5)

    @pytest.mark.parametrize("form", ["metadata", "folder"])
    @pytest.mark.parametrize("rslora", [False, True])
    def test_alphas_of_pefts_settings(self, pipe, tmp_path, form, rslora):
        layers = changes(pipe)
        before = weights(pipe, layers)
        config = {"r": 2, "lora_alpha": 8, "alpha_pattern": {OUT: 5}, "use_rslora": rslora}
        state = dict(new_diffusers(layers, None))
        if form == "metadata":
            packed = json.dumps({f"unet.{key}": value for key, value in config.items()})
            path = saved(tmp_path, state, lora_adapter_metadata=packed)
        else:
            state = {f"base_model.model.{key.removeprefix('unet.')}": value for key, value in state.items()}
            saved(tmp_path, state, "adapter_model.safetensors")
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
            path = str(tmp_path)
        load_loras(pipe, [path])
        for (place, layer), alpha in zip(layers.items(), (8, 5), strict=True):
            rank = len(layer["down"])
            want = before[place] + product(layer, alpha / (math.sqrt(rank) if rslora else rank))
            torch.testing.assert_close(effective(pipe, *place), want, atol=4e-6, rtol=1e-5)

    @pytest.mark.parametrize("names", ["peft", "kohya"])
    def test_dora(self, pipe, tmp_path, names):
        """W' = m (W + up down) / ||W + up down||, the norm of each output (Liu et al. 2024, DoRA, equation 5)."""
        layers = changes(pipe, (SPATIAL, CONV))
        before = weights(pipe, layers)
        wanted, state = {}, dict((new_diffusers if names == "peft" else kohya)(layers, 2.0))
        for place, layer in layers.items():
            rank = len(layer["down"])
            whole = before[place] + product(layer, (2.0 if names == "kohya" else rank) / rank)
            magnitude = torch.linspace(0.5, 1.5, len(whole)).reshape(-1, *[1] * (whole.ndim - 1))
            wanted[place] = magnitude * whole / whole.flatten(1).norm(dim=1).reshape_as(magnitude)
            if names == "kohya":
                state[f"lora_unet_{place[1].replace('.', '_')}.dora_scale"] = magnitude
            else:
                state[f"unet.{place[1]}.lora_magnitude_vector"] = magnitude.flatten()
        load_loras(pipe, [saved(tmp_path, state)])
        for place, want in wanted.items():
            torch.testing.assert_close(effective(pipe, *place), want, atol=4e-6, rtol=1e-4)

    def test_one_scale_for_each(self, pipe, tmp_path):
        """Two for the UNet, one for the text encoder alone, each at its own scale."""
        first, second = changes(pipe, (SPATIAL,)), changes(pipe, (OUT, SPATIAL))
        third = changes(pipe, (), (TEXT,))
        before = weights(pipe, {**second, **third})
        paths = [
            saved(tmp_path, dict(new_diffusers(layers, None)), f"{i}.safetensors")
            for i, layers in enumerate((first, second, third))
        ]
        load_loras(pipe, paths, [0.5, -1.0, 2.0])
        place = ("unet", SPATIAL)
        want = before[place] + product(first[place], 0.5) + product(second[place], -1.0)
        torch.testing.assert_close(effective(pipe, *place), want, atol=4e-6, rtol=1e-5)
        place = ("text_encoder", TEXT)
        torch.testing.assert_close(
            effective(pipe, *place), before[place] + product(third[place], 2.0), atol=4e-6, rtol=1e-5
        )

    def test_nothing_is_trainable_nothing_random_changes_and_the_dtype_stays(self, tiny_weights, tmp_path):
        pipe = load_pipeline(replace(tiny_weights, dreambooth_path="", ckpt_path=""), dtype=torch.bfloat16)
        path = saved(tmp_path, dict(new_diffusers(changes(pipe, text=(TEXT,)), None)))
        state = torch.get_rng_state()
        load_loras(pipe, [path])
        assert torch.equal(torch.get_rng_state(), state)
        for model in (pipe.unet, pipe.text_encoder):
            assert all(not p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters())


class TestRefused:
    """One line each, and no network changed."""

    def refuse(self, pipe, path, match, scale=1.0):
        keys = list(pipe.unet.state_dict())
        with pytest.raises(UserError, match=match) as error:
            load_loras(pipe, [path], scale)
        assert len(str(error.value).splitlines()) == 1
        assert list(pipe.unet.state_dict()) == keys

    def test_other_kinds_by_name(self, pipe, tmp_path):
        name = f"lora_unet_{SPATIAL.replace('.', '_')}"
        half = torch.zeros(32, 4)
        for state, match in (
            (
                {f"{name}.hada_w1_a": half, f"{name}.alpha": torch.tensor(4.0)},
                r"a LoHa \(LyCORIS\).*1 of 2 keys.*hada_w1_a",
            ),
            ({f"{name}.lokr_w1": half}, r"a LoKr \(LyCORIS\), expected LoRA or DoRA: 0 of 1 keys"),
            ({f"{name}.lora_mid.weight": half}, "a LyCORIS other than LoRA, expected"),
            ({"emb_params": torch.zeros(2, 64)}, "a textual inversion, expected LoRA or DoRA"),
            ({"<cat>": torch.zeros(64)}, "a textual inversion, expected LoRA or DoRA"),
            ({f"{MOTION}.weight": half}, "motion modules, expected LoRA or DoRA"),
        ):
            self.refuse(pipe, saved(tmp_path, state, "other.safetensors"), f"other.safetensors looks like {match}")

    def test_another_models(self, pipe, tmp_path):
        wan = {
            f"diffusion_model.blocks.{i}.self_attn.q.lora_{a}.weight": torch.zeros(4, 4) for i in (0, 1) for a in "AB"
        }
        self.refuse(
            pipe,
            saved(tmp_path, wan, "wan.safetensors"),
            "wan.safetensors looks like a LoRA of a Wan video transformer, made for another model: 0 of 2 layers fit; "
            "this model has no diffusion_model.blocks.0.self_attn.q, diffusion_model.blocks.1.self_attn.q",
        )
        wide = dict(new_diffusers(changes(pipe), None))
        wide[f"unet.{OUT}.lora_A.weight"] = torch.zeros(3, 2048)
        self.refuse(
            pipe,
            saved(tmp_path, wide, "wide.safetensors"),
            rf"made for another model: 1 of 2 layers fit; unet.{OUT} is \[32, 3\] @ \[3, 2048\], .*\[32, 32\]",
        )

    def test_incomplete_or_contradicting(self, pipe, tmp_path):
        whole = dict(new_diffusers(changes(pipe), None))
        lacking = {key: value for key, value in whole.items() if key != f"unet.{OUT}.lora_B.weight"}
        self.refuse(pipe, saved(tmp_path, lacking), f"lacks the up weight of unet.{OUT}")
        again = {"A": "down", "B": "up"}
        twice = {
            f"{SPATIAL}.lora.{new}.weight": whole[f"unet.{SPATIAL}.lora_{old}.weight"] for old, new in again.items()
        }
        self.refuse(pipe, saved(tmp_path, whole | twice), f"changes {SPATIAL} twice, under two names")
        mixed = whole | {f"unet.{OUT}.lora_magnitude_vector": torch.ones(32)}
        self.refuse(pipe, saved(tmp_path, mixed), f"is a DoRA without magnitudes for {SPATIAL}")
        inputs = {key.replace(OUT, SPATIAL): value for key, value in mixed.items() if OUT in key}
        inputs[f"unet.{SPATIAL}.lora_magnitude_vector"] = torch.ones(1, 32)
        self.refuse(pipe, saved(tmp_path, inputs), "made for another model: 0 of 1 layers fit")

    @pytest.mark.parametrize(
        ("metadata", "match"),
        [
            ("[", "lora_adapter_metadata is not valid JSON"),
            ("3", "lora_adapter_metadata holds a whole number, expected an object"),
            ('{"unet.lora_alpha": "much"}', "alphas that are no numbers"),
            ('{"unet.lora_alpha": null}', "alphas that are no numbers"),
            ('{"unet.alpha_pattern": {"(": 3}}', "alphas that are no numbers"),
            ('{"unet.alpha_pattern": 3}', "alphas that are no numbers"),
        ],
    )
    def test_settings_that_say_nothing(self, pipe, tmp_path, metadata, match):
        path = saved(tmp_path, dict(new_diffusers(changes(pipe), None)), lora_adapter_metadata=metadata)
        self.refuse(pipe, path, match)

    def test_a_bad_one_among_good_ones_changes_nothing(self, pipe, tmp_path):
        keys = list(pipe.unet.state_dict())
        good = saved(tmp_path, dict(new_diffusers(changes(pipe), None)))
        with pytest.raises(UserError, match="textual inversion"):
            load_loras(pipe, [good, saved(tmp_path, {"emb_params": torch.zeros(1)}, "ti.safetensors")])
        assert list(pipe.unet.state_dict()) == keys

    def test_places(self, pipe, tmp_path):
        self.refuse(pipe, str(tmp_path / "none.safetensors"), "no LoRA at .*none.safetensors")
        self.refuse(pipe, str(tmp_path), "holds no weight file; name the LoRA's own file")
        for name in ("a.safetensors", "b.safetensors"):
            saved(tmp_path, dict(new_diffusers(changes(pipe), None)), name)
        self.refuse(pipe, str(tmp_path), r"holds 2 weight files \(a.safetensors, b.safetensors\); name")
        saved(tmp_path, {"emb_params": torch.zeros(1)}, "pytorch_lora_weights.safetensors")
        self.refuse(pipe, str(tmp_path), "pytorch_lora_weights.safetensors looks like a textual inversion")

    def test_scales(self):
        assert lora_scales(0.5, 2) == [0.5, 0.5]
        assert lora_scales([1, 0.25], 2) == [1.0, 0.25]
        assert lora_scales([0.5], 2) == [0.5, 0.5]
        assert lora_scales([1.0], 0) == []
        with pytest.raises(UserError, match="lora_scale has 2 numbers for 3 LoRAs; give one, or one for each"):
            lora_scales([1.0, 2.0], 3)
        with pytest.raises(UserError, match="lora_scale is nan, expected a number"):
            lora_scales([1.0, float("nan")], 2)


def test_a_part_that_fits_is_used_with_one_warning(pipe, tmp_path):
    layers = changes(pipe)
    before = weights(pipe, layers)
    state = dict(new_diffusers(layers, None))
    for i in range(4):
        state |= {f"unet.up_blocks.9.attentions.{i}.to_q.lora_{part}.weight": torch.zeros(2, 2) for part in "AB"}
    (warning,) = load_loras(pipe, [saved(tmp_path, state)])
    assert warning.endswith(
        "lora.safetensors: 2 of 6 layers of this LoRA fitted and are used; this model has no "
        "unet.up_blocks.9.attentions.0.to_q, unet.up_blocks.9.attentions.1.to_q, unet.up_blocks.9.attentions.2.to_q "
        "and 1 more"
    )
    for place, layer in layers.items():
        torch.testing.assert_close(effective(pipe, *place), before[place] + product(layer), atol=2e-6, rtol=1e-5)


STARTS = [f"unet.{SPATIAL}", SPATIAL, f"unet.{CONV}", f"lora_unet_{SPATIAL.replace('.', '_')}", "lora_te_x", "a", ""]
ENDS = [".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".alpha", ".dora_scale", ".x"]
shapes = st.lists(st.sampled_from([0, 1, 2, 3, 32, 64]), max_size=4)


def test_any_keys_and_shapes(targets, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"

    @given(st.dictionaries(st.tuples(st.sampled_from(STARTS), st.sampled_from(ENDS)), shapes, max_size=5))
    def check(keys):
        save_file({start + end: torch.ones(shape) for (start, end), shape in keys.items()}, path)
        lora = right_or_one_line(lambda: read_lora(path, targets))
        if lora is None:
            return
        for component, layers in lora.layers.items():
            for place, layer in layers.items():
                weight = targets[component][place].weight
                assert (layer.up.flatten(1) @ layer.down.flatten(1)).shape == weight.flatten(1).shape

    check()
