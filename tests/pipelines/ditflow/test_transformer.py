"""Prediction and reading: the published numbers, the stock forwards, and nothing left behind."""

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel, WanTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import nn

from animatediff.errors import UserError
from animatediff.models.hooks import capture
from animatediff.pipelines.ditflow import (
    attention_motion_flow,
    default_positions,
    moft_channels,
    predict,
    read_blocks,
)
from animatediff.pipelines.ditflow.sampling import Solver
from animatediff.pipelines.ditflow.transformer import read_keys_values
from tests.video_transformers import (
    COGVIDEOX,
    FRAMES,
    HEIGHT,
    KINDS,
    WAN,
    WIDTH,
    error,
    latents_of,
    left_as_it_was,
    number,
    positions_of,
    published_network,
    scheduler_of,
    text_of,
    tiny,
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def network(kind):
    return tiny(kind)


def stock(network, kind, latents, timestep, text):
    """The network's own forward, with the positions that diffusers' pipeline gives it."""
    time = torch.full((len(latents),), timestep)
    if kind == "wan":
        return network(latents, time.float(), text).sample
    rope = None
    if kind == "5b":
        rope = CogVideoXPipeline._prepare_rotary_positional_embeddings(
            _RopeOnly(network), latents.shape[3] * 8, latents.shape[4] * 8, latents.shape[1], "cpu"
        )
    return network(latents, text, time, image_rotary_emb=rope).sample


class _RopeOnly:
    """As much of a pipeline as its rope needs."""

    vae_scale_factor_spatial = 8

    def __init__(self, transformer):
        self.transformer = transformer


class TestPublishedNumbers:
    @pytest.fixture(scope="class")
    def network(self):
        return published_network()

    def test_positions(self, network):
        assert error(default_positions(network, 6, 8, 12), "features.pos.init_pos_embedding@3") < 1e-5

    @pytest.mark.parametrize(
        ("name", "latents", "timestep", "text"),
        [("ref", "motion_latent", 0, "source_embeds"), ("cur", "cur_latents", 874, "prompt_embeds")],
    )
    def test_guided_block(self, network, name, latents, timestep, text):
        latents, text = number(f"inputs.{latents}"), number(f"inputs.{text}")
        state = read_blocks(network, latents, timestep, text, [2])[2]
        assert error(state.query, f"features.{name}.query@3") < 1e-5
        assert error(state.key, f"features.{name}.key@3") < 1e-5
        assert error(attention_motion_flow(state.query, state.key, 6, 4, 6), f"features.{name}.amf_soft") < 1e-5
        output = {"ref": "source", "cur": "prompt"}[name]
        assert error(predict(network, latents, timestep, text), f"features.{name}.model_output_{output}") < 1e-5
        if name == "ref":
            hard = attention_motion_flow(state.query, state.key, 6, 4, 6, hard=True)
            assert torch.equal(hard, number("features.ref.amf_argmax"))
            assert error(state.features, "features.ref.features@3") < 1e-5
            assert set(moft_channels(state.features).tolist()) == set(number("features.ref.moft_channels").tolist())

    def test_injection(self, network):
        noise, clean = number("inputs.init_latents"), number("inputs.motion_latent")
        text = number("inputs.prompt_embeds")
        noised = Solver(scheduler_of("2b"), 8).add_noise(clean, noise, 0)
        stored = read_keys_values(network, noised, 999, text, [0, 1])
        for i, pair in stored.items():
            for part, values in zip(("key", "value"), pair, strict=True):
                assert error(values, f"runs.flow_latent.step0.inject_{part}.block{i}@5") < 1e-5
        whole = read_blocks(network, noised, 999, text, [0, 1])
        assert all(torch.equal(whole[i].key, stored[i][0]) for i in stored)


class TestPredict:
    @pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (6, 16), (12, 4)])
    def test_it_is_the_stock_forward(self, network, kind, size):
        latents = torch.cat([latents_of(kind, seed, *size) for seed in (1, 2)])
        want = stock(network, kind, latents, 500, text_of(2))
        with left_as_it_was(network):
            have = predict(network, latents, 500, text_of(2))
        assert torch.allclose(have, want, atol=1e-6)
        own = default_positions(network, FRAMES, *size)
        assert own.dtype == torch.float32
        assert torch.allclose(predict(network, latents, 500, text_of(2), positions=own), want, atol=1e-5)

    def test_positions_act(self, network, kind):
        plain = predict(network, latents_of(kind), 500, text_of())
        moved = predict(network, latents_of(kind), 500, text_of(), positions=positions_of(network))
        assert (plain - moved).abs().max() > 1e-3

    def test_queries_and_keys_have_positions_of_their_own(self):
        for kind in ("5b", "wan"):
            network = tiny(kind)
            own = default_positions(network, FRAMES, HEIGHT, WIDTH)
            states = {}
            for side in (0, 1):
                positions = own.clone()
                positions[side] += 0.1
                states[side] = read_blocks(network, latents_of(kind), 500, text_of(), [0], positions=positions)[0]
            plain = read_blocks(network, latents_of(kind), 500, text_of(), [0])[0]
            assert torch.allclose(states[0].key, plain.key, atol=1e-6)
            assert torch.allclose(states[1].query, plain.query, atol=1e-6)
            assert not torch.allclose(states[0].query, plain.query, atol=1e-2)
            assert not torch.allclose(states[1].key, plain.key, atol=1e-2)

    def test_injecting_a_video_s_own_keys_and_values_changes_nothing(self, network, kind):
        latents, text = latents_of(kind), text_of()
        own = read_blocks(network, latents, 500, text, [0, 2])
        injected = {i: (state.key, state.value) for i, state in own.items()}
        with left_as_it_was(network):
            have = predict(network, latents, 500, text, injected=injected)
        assert torch.allclose(have, predict(network, latents, 500, text), atol=1e-5)

    def test_injection_serves_every_video_of_a_batch(self, network, kind):
        other = read_blocks(network, latents_of(kind, 5), 500, text_of(), [0])[0]
        injected = {0: (other.key, other.value)}
        latents, text = torch.cat([latents_of(kind, 1), latents_of(kind, 2)]), text_of(2)
        both = predict(network, latents, 500, text, injected=injected)
        for i in range(2):
            alone = predict(network, latents[i : i + 1], 500, text[i : i + 1], injected=injected)
            assert torch.allclose(both[i : i + 1], alone, atol=1e-5)
        assert (both - predict(network, latents, 500, text)).abs().max() > 1e-3

    def test_another_number_of_text_tokens_serves(self, network, kind):
        predict(network, latents_of(kind), 500, text_of()[:, :4])

    def test_dtype(self, kind):
        network = tiny(kind).bfloat16()
        assert predict(network, latents_of(kind), 500, text_of()).dtype == torch.bfloat16


class TestReadBlocks:
    def test_no_later_block_runs(self, network, kind):
        blocks = network.blocks if kind == "wan" else network.transformer_blocks
        with left_as_it_was(network), capture(dict(enumerate(blocks))) as ran:
            states = read_blocks(network, latents_of(kind), 500, text_of(), [1, 0])
        assert list(ran) == list(states) == [0, 1]
        assert states[0].query.shape == (2, FRAMES * 4 * 6, 16)
        assert states[0].features.shape == (FRAMES, 32, 4, 6)

    def test_features_are_the_block_s_output_on_its_grid(self, network, kind):
        block = (network.blocks if kind == "wan" else network.transformer_blocks)[1]
        with capture({"block": block}) as outputs:
            predict(network, latents_of(kind), 500, text_of())
        video = outputs["block"] if kind == "wan" else outputs["block"][0]
        features = read_blocks(network, latents_of(kind), 500, text_of(), [1])[1].features
        assert torch.allclose(features[2, :, 1, 3], video[0, 2 * 24 + 6 + 3], atol=1e-6)

    def test_keys_for_an_injection_need_no_whole_block(self, network, kind):
        blocks = network.blocks if kind == "wan" else network.transformer_blocks
        with left_as_it_was(network), capture(dict(enumerate(blocks))) as ran:
            stored = read_keys_values(network, latents_of(kind), 500, text_of(), [0])
        assert not ran
        whole = read_blocks(network, latents_of(kind), 500, text_of(), [0])[0]
        assert torch.equal(stored[0][0], whole.key)
        assert torch.equal(stored[0][1], whole.value)

    def test_gradients_flow_through_what_is_read(self, network, kind):
        latents = latents_of(kind).requires_grad_()
        state = read_blocks(network, latents, 500, text_of(), [1])[1]
        assert torch.autograd.grad(state.query.sum() + state.features.sum(), latents)[0].abs().max() > 0


class TestNothingStays:
    def test_after_an_exception(self, network, kind):
        block = (network.blocks if kind == "wan" else network.transformer_blocks)[1]

        def fail(*_):
            raise KeyboardInterrupt

        handle = block.register_forward_hook(fail)
        with left_as_it_was(network):
            for arguments in ({}, {"positions": positions_of(network)}):
                with pytest.raises(KeyboardInterrupt):
                    predict(network, latents_of(kind), 500, text_of(), **arguments)
                with pytest.raises(KeyboardInterrupt):
                    read_blocks(network, latents_of(kind), 500, text_of(), [2], **arguments)
        handle.remove()

    def test_the_forward_is_bit_equal_afterwards(self, network, kind):
        before = stock(network, kind, latents_of(kind), 500, text_of())
        states = read_blocks(network, latents_of(kind), 500, text_of(), [0], positions=positions_of(network))
        predict(network, latents_of(kind), 500, text_of(), injected={0: states[0][1:3]})
        assert torch.equal(stock(network, kind, latents_of(kind), 500, text_of()), before)


class TestBadInput:
    def test_a_block_that_does_not_exist(self, network, kind):
        with pytest.raises(UserError, match="guidance_blocks holds 3; this transformer has blocks 0 to 2"):
            read_blocks(network, latents_of(kind), 500, text_of(), [0, 3])
        state = read_blocks(network, latents_of(kind), 500, text_of(), [0])[0]
        with pytest.raises(UserError, match="injection_blocks holds -1; this transformer has blocks 0 to 2"):
            predict(network, latents_of(kind), 500, text_of(), injected={-1: (state.key, state.value)})

    def test_positions_of_another_size(self, network, kind):
        with pytest.raises(UserError, match="another size, number of frames or transformer"):
            predict(network, latents_of(kind, height=6), 500, text_of(), positions=positions_of(network))

    def test_latents_that_patches_do_not_divide(self, network, kind):
        with pytest.raises(UserError, match="latents are 7x12, expected multiples of 2"):
            predict(network, latents_of(kind, height=7), 500, text_of())

    @pytest.mark.parametrize(
        ("network", "message"),
        [
            (lambda: CogVideoXTransformer3DModel(**COGVIDEOX | {"patch_size_t": 2}), "CogVideoX 1.5"),
            (lambda: CogVideoXTransformer3DModel(**COGVIDEOX | {"in_channels": 8}), "image-to-video CogVideoX"),
            (lambda: WanTransformer3DModel(**WAN | {"in_channels": 9}), "image-to-video Wan"),
            (lambda: nn.Linear(1, 1), "the transformer is a Linear, expected a CogVideoXTransformer3DModel or Wan"),
        ],
    )
    def test_networks_that_it_does_not_run_on(self, network, message):
        with pytest.raises(UserError, match=message):
            default_positions(network(), FRAMES, HEIGHT, WIDTH)


def test_rope_positions_follow_the_aspect_of_the_video():
    """The 5b kind's base grid is cropped to the video's shape, as diffusers' pipeline does."""
    network = tiny("5b")
    assert get_resize_crop_region_for_grid((2, 6), 6, 4) == ((1, 0), (3, 6))
    wide, tall = default_positions(network, 1, 4, 12), default_positions(network, 1, 12, 4)
    assert wide.shape == tall.shape == (2, 2, 12, 16)
    assert not torch.allclose(wide, tall)
