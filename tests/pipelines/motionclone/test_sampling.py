"""MotionClone's schedule, step and loop against the published numbers; what a run refuses."""

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from animatediff.data.conditions import read_conditions
from animatediff.errors import UserError
from animatediff.models import build_unet
from animatediff.models.sparsectrl import load_original_sparsectrl, place_condition
from animatediff.pipelines.motionclone import (
    extract_motion,
    guidance_ramp,
    motion_loss,
    sample,
    uneven_timesteps,
)
from animatediff.pipelines.motionclone.sampling import add_noise, alpha_at, alphas_cumprod, ddim_step
from tests.goldens import MOTIONCLONE, TINY, fill, filled_unet, golden, keys, relative_error

TEXT_RUN = {"num_inference_steps": 8, "guidance_steps": 5, "guidance_scale": 0.4}
IMAGE_RUN = {"num_inference_steps": 6, "guidance_steps": 4, "guidance_scale": 0.3}
RAMPS = {
    "t2v_camera": (50, 10),
    "t2v_object": (180, 10),
    "i2v_rgb": (40, 10),
    "i2v_sketch": (120, 10),
    "this_t2v": (5, 2),
    "this_i2v": (4, 2),
}


def number(name):
    return golden(name, MOTIONCLONE)


def error(out, name):
    return relative_error(out, name, MOTIONCLONE)


def stored(start):
    with safe_open(MOTIONCLONE / "golden.safetensors", "pt") as file:
        return [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118


def motion_of(name):
    names = [
        f"up_blocks.1.motion_modules.{i}.temporal_transformer.transformer_blocks.0.attention_blocks.{j}"
        for i in range(3)
        for j in range(2)
    ]
    pairs = zip(number(f"motion.{name}.values"), number(f"motion.{name}.indices").long(), strict=True)
    return dict(zip(names, pairs, strict=True))


@pytest.fixture(scope="module")
def unet():
    return filled_unet()


class TestSchedule:
    def test_noise_levels(self):
        assert torch.equal(alphas_cumprod(), number("schedule.alphas_cumprod"))
        assert alpha_at(None) == number("schedule.final_alpha_cumprod") == 1

    @pytest.mark.parametrize("name", stored("schedule.timesteps."))
    def test_timesteps(self, name):
        steps, guided, share = (part[1:] for part in name.removeprefix("schedule.timesteps.").split("_"))
        assert uneven_timesteps(int(steps), int(guided), float(share)) == number(name).tolist()

    @pytest.mark.parametrize(("share", "boundary"), [(0.9, 99), (0.8, 199), (1 / 3, 666)])
    def test_boundary_is_truncated(self, share, boundary):
        assert uneven_timesteps(1, 1, share) == [boundary]
        assert uneven_timesteps(3, 1, share) == [boundary, boundary - 1, 0]

    def test_all_guided_and_none_guided(self):
        assert uneven_timesteps(3, 3, 1.0) == [999, 500, 0]  # 499.5 rounds to even
        assert uneven_timesteps(3, 0, 0.0) == [999, 500, 0]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0, 0, 0.3), "num_inference_steps is 0, expected 1 to 1000"),
            ((1001, 5, 0.3), "num_inference_steps is 1001"),
            ((10, 11, 0.3), "guidance_steps is 11, expected 0 to num_inference_steps, 10"),
            ((10, -1, 0.3), "guidance_steps is -1"),
            ((10, 5, 1.5), r"guidance_scale is 1\.5, expected 0 to 1"),
            ((10, 5, 1.0), r"guidance_scale is 1\.0, which leaves no noise range to the 5 unguided steps"),
            ((10, 5, float("nan")), "guidance_scale is nan"),
        ],
    )
    def test_no_schedule(self, arguments, message):
        with pytest.raises(UserError, match=message):
            uneven_timesteps(*arguments)

    @pytest.mark.parametrize("run", RAMPS)
    def test_ramp(self, run):
        steps, ramp = RAMPS[run]
        values = torch.tensor([guidance_ramp(i, steps, ramp, ramp) for i in range(steps)])
        assert torch.allclose(values, number(f"schedule.ramp.{run}"), atol=1e-7)

    def test_ramps_of_no_length_and_overlapping(self):
        assert [guidance_ramp(i, 3, 0, 0) for i in range(3)] == [1, 1, 1]
        assert guidance_ramp(1, 3, 4, 4) == pytest.approx(2 / 4 * 2 / 4)


class TestStep:
    def test_every_index_with_and_without_score(self):
        latents, noise, score = (number(f"step.{name}") for name in ("sample", "eps", "score"))
        timesteps = [*number("step.timesteps").tolist(), None]
        for i in range(8):
            plain = ddim_step(latents, noise, timesteps[i], timesteps[i + 1])
            guided = ddim_step(latents, noise, timesteps[i], timesteps[i + 1], score)
            assert error(plain, f"step.prev.plain.{i}") < 1e-6
            assert error(guided, f"step.prev.guided.{i}") < 1e-6

    def test_noise_is_taken_out_again(self):
        clean, noise = torch.randn(1, 4, 2, 3, 3), torch.randn(1, 4, 2, 3, 3)
        assert torch.allclose(ddim_step(add_noise(clean, noise, 600), noise, 600, None), clean, atol=1e-5)


class TestPublishedRuns:
    def test_text_to_video(self, unet):
        initial, states = torch.randn(1, 4, 16, 16, 16, generator=torch.manual_seed(42)), []
        text, motion = number("text.pair"), motion_of("t2v")
        keep = lambda i, latents: states.append((i, latents))  # noqa: E731
        final = sample(unet, initial, text, motion, **TEXT_RUN, warm_up=2, cool_down=2, callback=keep)
        assert [i for i, _ in states] == list(range(8))
        assert torch.equal(final, states[-1][1])
        for i, latents in states:
            assert error(latents, f"sampling.t2v.latents.{i}@61") < 1e-4

    @pytest.mark.parametrize("kind", ["rgb", "sketch"])
    def test_first_steps_of_image_and_sketch_to_video(self, unet, kind, tmp_path):
        state = {key: fill(key, tuple(shape)) for key, shape in keys(f"keys_sparsectrl_{kind}", MOTIONCLONE).items()}
        encoder, states = load_original_sparsectrl(unet, state), []
        images = number("sampling.rgb.condition")
        if kind == "sketch":
            Image.fromarray(number("sampling.sketch.image")[0].numpy()).save(tmp_path / "sketch.png")
            images, _ = read_conditions([tmp_path / "sketch.png"], 128, 128)
            assert error(images[0][None, :, None], "sampling.sketch.condition@61") < 1e-7
        control = place_condition(encoder, images, [0], 16)
        initial, text = number(f"sampling.{kind}.initial"), number("text.pair")
        options = {"warm_up": 2, "cool_down": 2, "control": control}

        def keep_two(i, latents):
            states.append(latents)
            if i == 1:
                raise StopIteration

        with pytest.raises(StopIteration):
            sample(unet, initial, text, motion_of(kind), **IMAGE_RUN, **options, callback=keep_two)
        for i, latents in enumerate(states):
            assert error(latents, f"sampling.{kind}.latents.{i}@61") < 1e-4


class OfVelocity(torch.nn.Module):
    """A backbone that predicts v where `unet` predicts the noise."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.dtype = unet, unet.dtype
        self.up_blocks, self.down_blocks, self.mid_block = unet.up_blocks, unet.down_blocks, unet.mid_block

    def forward(self, latents, timestep, text):
        out, abar = self.unet(latents, timestep, text), alpha_at(timestep)
        out.sample = (out.sample - (1 - abar) ** 0.5 * latents) / abar**0.5
        return out


class TestLoop:
    @pytest.fixture(scope="class")
    def case(self):
        torch.manual_seed(0)
        small = build_unet(TINY | {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}).requires_grad_(False)
        latents, text = torch.randn(1, 4, 3, 5, 6), torch.randn(2, 3, 64)
        motion = extract_motion(small, torch.randn(1, 4, 3, 5, 6), 400, torch.randn(1, 3, 64))
        return small, latents, text, motion

    def test_touches_no_global_random_state(self, case):
        before = torch.random.get_rng_state()
        first = sample(*case, num_inference_steps=2, guidance_steps=1, guidance_scale=0.3)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(sample(*case, num_inference_steps=2, guidance_steps=1, guidance_scale=0.3), first)

    def test_a_backbone_that_predicts_v_gives_the_same(self, case):
        unet, *rest = case
        options = {"num_inference_steps": 3, "guidance_steps": 1, "guidance_scale": 0.3}
        want = sample(unet, *rest, **options)
        found = sample(OfVelocity(unet), *rest, **options, prediction_type="v_prediction")
        assert (found - want).norm() / want.norm() < 1e-3  # single precision: v divides by 0.04 at t = 999

    def test_guidance_brings_the_motion_nearer(self, case):
        unet, _, text, motion = case
        options = {"num_inference_steps": 4, "guidance_steps": 3, "guidance_scale": 0.6, "warm_up": 0, "cool_down": 0}
        losses = [
            motion_loss(unet, sample(*case, **options, weight=weight), 0, text[1:], motion) for weight in (0.0, 2000.0)
        ]
        assert losses[1] < losses[0]

    def test_callback_may_replace_the_latents(self, case):
        zero = sample(*case, **TEXT_RUN, callback=lambda i, latents: torch.zeros_like(latents) if i == 7 else None)
        assert zero.abs().max() == 0

    def test_bfloat16_latents_come_back_as_such(self, case):
        unet, latents, text, motion = case
        result = sample(
            unet, latents.bfloat16(), text, motion, num_inference_steps=1, guidance_steps=1, guidance_scale=0.3
        )
        assert result.dtype == torch.bfloat16

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_stops_at_the_step_where_nan_arises(self, case, bad):
        unet, latents, text, motion = case
        seen = []

        def spoil(i, latents):
            seen.append(i)
            return latents * bad if i == 1 else None

        with pytest.raises(UserError, match=r"step 3 of 8 gave NaN .*motion guidance; try a smaller .* or dtype=fp32"):
            sample(unet, latents, text, motion, **TEXT_RUN, callback=spoil)
        assert seen == [0, 1]

    def test_nan_of_an_unguided_step(self, case):
        spoil = lambda i, latents: latents * float("nan") if i == 5 else None  # noqa: E731
        with pytest.raises(UserError, match=r"step 7 of 8 gave NaN .*predicted noise; try dtype=fp32 or dtype=bf16"):
            sample(*case, **TEXT_RUN, callback=spoil)
