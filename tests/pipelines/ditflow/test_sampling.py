"""Sampling: the published runs, diffusers' own pipelines, solvers, and what must be refused."""

import pytest
import torch
from diffusers import CogVideoXPipeline, UniPCMultistepScheduler, WanPipeline

from animatediff.errors import UserError
from animatediff.pipelines.ditflow import dynamic_scale, extract_motion, sample, sampling
from animatediff.pipelines.ditflow.sampling import Solver, check_schedule
from tests.video_transformers import (
    KINDS,
    PUBLISHED,
    change_error,
    default_positions,
    latents_of,
    left_as_it_was,
    number,
    positions_of,
    published_network,
    scheduler_of,
    text_of,
    tiny,
)

SHORT = {"num_inference_steps": 4, "guidance_steps": 2, "optimization_steps": 2}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def network(kind):
    return tiny(kind)


def run(network, kind, **settings):
    """A short run from the same noise under the same text, with CogVideoX's DPM noise of seed 5."""
    settings = SHORT | settings
    generator = torch.Generator().manual_seed(5)
    return sample(network, scheduler_of(kind), latents_of(kind), text_of(2), generator=generator, **settings)


def motion_of(network, kind, **settings):
    return extract_motion(network, latents_of(kind, 7), text_of(), [1], **settings)


def unipc():
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


class TestPublishedNumbers:
    @pytest.fixture(scope="class")
    def network(self):
        return published_network()

    @pytest.mark.parametrize("name", list(PUBLISHED["runs"]))
    def test_a_run(self, network, name):
        published = PUBLISHED["runs"][name]
        prompt = number("inputs.prompt_embeds_2" if published.get("prompt") == "b" else "inputs.prompt_embeds")
        clean = number("inputs.motion_latent")
        positions = motion = None
        if published.get("inject_embeds"):
            positions = {t: number(f"runs.flow_emb.embeds.posemb_{t}") for t in (999, 874, 749)}
        elif not published.get("no_guidance"):
            kind = {"smm": "smm_published"}.get(published.get("loss_type"), published.get("loss_type", "flow"))
            motion = extract_motion(network, clean, number("inputs.source_embeds"), [2], kind)
        states, optimised, losses, saved = {}, {}, [], {}

        def guided(i, timestep, latents, positions, before):
            optimised[i], saved[timestep] = latents.clone(), positions
            losses.extend(before)

        sample(
            network,
            scheduler_of("2b"),
            number("inputs.init_latents"),
            torch.cat([number("inputs.negative_embeds"), prompt]),
            motion,
            "positions" if published.get("opt_mode") == "emb" else "latents",
            positions,
            None if published.get("no_injection") else clean,
            injection_blocks=(0, 1),
            num_inference_steps=8,
            guidance_steps=3,
            callback=lambda i, latents: states.update({i: latents.clone()}),
            guided=guided,
        )
        stored = {f"step{i}.latents": states[i] for i in (0, 2, 7)}
        if motion is not None and published.get("opt_mode") != "emb":
            stored |= {f"step{i}.latents_guided": optimised[i] for i in range(3)}
        for key, latents in stored.items():
            want = number(f"runs.{name}.{key}@2")
            assert (latents.flatten()[::2] - want).abs().max() < 2e-4, key
        assert losses == pytest.approx(published["opt_losses"], rel=1e-4)
        if published.get("opt_mode") == "emb":
            own = default_positions(network, 6, 8, 12)
            if not positions:
                assert list(saved) == [999, 874, 749]
            for t, values in saved.items():
                assert change_error(values, own, f"runs.flow_emb.embeds.posemb_{t}") < 5e-3

    def test_dynamic_scale(self):
        published = PUBLISHED["defaults_50_steps"]["5b"]
        have = [dynamic_scale(7.0, t, 50) for t in published["timesteps"]]
        assert have == pytest.approx(published["cfg_scales"], abs=1e-6)


class TestAgainstDiffusers:
    """Without motion and injection a run is that of diffusers' pipeline, its noise and its guidance scale included."""

    @pytest.mark.parametrize("kind", ["2b", "5b"])
    @pytest.mark.parametrize("batched", [True, False])
    def test_cogvideox(self, kind, batched):
        network, text = tiny(kind), text_of(2)
        pipe = CogVideoXPipeline(None, None, None, network, scheduler_of(kind))
        pipe.set_progress_bar_config(disable=True)
        want = pipe(
            height=64,
            width=96,
            num_frames=9,
            num_inference_steps=5,
            guidance_scale=7.0,
            use_dynamic_cfg=kind == "5b",
            generator=torch.Generator().manual_seed(5),
            latents=latents_of(kind),
            prompt_embeds=text[1:],
            negative_prompt_embeds=text[:1],
            output_type="latent",
        ).frames
        have = run(network, kind, num_inference_steps=5, dynamic_cfg=kind == "5b", batched_cfg=batched)
        assert torch.allclose(have, want, atol=1e-4)

    @pytest.mark.parametrize("scheduler", [lambda: scheduler_of("wan"), unipc])
    def test_wan(self, scheduler):
        network, text = tiny("wan"), text_of(2)
        pipe = WanPipeline(None, None, None, scheduler(), network)
        pipe.set_progress_bar_config(disable=True)
        want = pipe(
            height=64,
            width=96,
            num_frames=9,
            num_inference_steps=5,
            guidance_scale=5.0,
            latents=latents_of("wan"),
            prompt_embeds=text[1:],
            negative_prompt_embeds=text[:1],
            output_type="latent",
        ).frames
        have = sample(
            network, scheduler(), latents_of("wan"), text, num_inference_steps=5, guidance_scale=5.0, guidance_steps=2
        )
        assert torch.allclose(have, want, atol=1e-5)


class TestRuns:
    @pytest.mark.parametrize("variable", ["latents", "positions"])
    def test_a_learning_rate_of_zero_guides_nothing(self, network, kind, variable):
        plain = run(network, kind, motion_latents=latents_of(kind, 7))
        motion = motion_of(network, kind)
        still = run(
            network, kind, motion=motion, variable=variable, motion_latents=latents_of(kind, 7), learning_rate=(0, 0)
        )
        assert torch.allclose(plain, still, atol=2e-4)
        settings = {"variable": variable, "learning_rate": (0.02, 0.02)}
        moved = run(network, kind, motion=motion, motion_latents=latents_of(kind, 7), **settings)
        assert (plain - moved).abs().max() > 1e-3

    @pytest.mark.parametrize("variable", ["latents", "positions"])
    def test_it_is_a_function_of_its_arguments(self, network, kind, variable):
        motion, scheduler = motion_of(network, kind), scheduler_of(kind)
        before = dict(vars(scheduler))
        with left_as_it_was(network):
            outs = [
                sample(
                    network,
                    scheduler,
                    latents_of(kind),
                    text_of(2),
                    motion,
                    variable,
                    motion_latents=latents_of(kind, 7),
                    generator=torch.Generator().manual_seed(5),
                    **SHORT,
                )
                for _ in range(2)
            ]
        assert torch.equal(*outs)
        assert not outs[0].requires_grad
        assert all(vars(scheduler)[key] is value for key, value in before.items())

    def test_saved_positions_repeat_the_run_that_made_them(self, network, kind):
        saved = {}
        first = run(
            network,
            kind,
            motion=motion_of(network, kind),
            variable="positions",
            motion_latents=latents_of(kind, 7),
            guided=lambda i, t, latents, positions, losses: saved.update({i if kind == "wan" else t: positions}),
        )
        assert torch.equal(run(network, kind, positions=saved, motion_latents=latents_of(kind, 7)), first)

    def test_injection_acts_in_guided_steps(self, network, kind):
        plain = run(network, kind, guidance_steps=0, motion_latents=latents_of(kind, 7))
        assert torch.equal(plain, run(network, kind))
        assert torch.equal(plain, run(network, kind, motion_latents=latents_of(kind, 7), injection_blocks=()))
        assert (plain - run(network, kind, motion_latents=latents_of(kind, 7))).abs().max() > 1e-3

    def test_a_guidance_scale_of_one_is_one_pass_under_the_prompt(self, network, kind):
        sizes = []
        handle = network.register_forward_pre_hook(
            lambda _network, given, named: sizes.append(len(given[0])), with_kwargs=True
        )
        one = run(network, kind, guidance_scale=1.0)
        handle.remove()
        assert sizes == [1] * 4
        almost = run(network, kind, guidance_scale=1.0 + 1e-6)
        assert torch.allclose(one, almost, atol=1e-4)

    def test_callbacks(self, network, kind):
        steps, guided = [], []
        out = run(
            network,
            kind,
            motion=motion_of(network, kind),
            callback=lambda i, latents: steps.append((i, latents)),
            guided=lambda i, t, latents, positions, losses: guided.append((i, t, positions, len(losses))),
        )
        assert [i for i, _ in steps] == [0, 1, 2, 3]
        assert torch.equal(steps[-1][1], out)
        timesteps = Solver(scheduler_of(kind), 4).timesteps
        assert guided == [(i, timesteps[i], None, 2) for i in range(2)]
        assert all(isinstance(t, float if kind == "wan" else int) for _, t, _, _ in guided)

    def test_an_exception_in_a_callback_leaves_nothing(self, network, kind):
        def stop(i, latents):
            raise KeyboardInterrupt

        with left_as_it_was(network), pytest.raises(KeyboardInterrupt):
            run(network, kind, motion=motion_of(network, kind), variable="positions", callback=stop)

    def test_numbers_that_are_not_finite_name_the_dtype_to_try(self):
        network = tiny("2b")
        network.proj_out.weight.data[0, 0] = torch.nan
        with pytest.raises(UserError, match="step 1 of 4 gave NaN or infinite latents in float32; try dtype=bf16"):
            run(network, "2b")


class TestUniPC:
    def test_its_corrector_would_undo_an_edit(self):
        """With a constant velocity, of an edit of x_t in a guided step 2 % survive the corrector; all does without."""
        velocity, start = latents_of("wan", 1), latents_of("wan", 2)
        edit = 0.1 * latents_of("wan", 3)
        survived = {}
        for edited in (0, 4):
            ends = []
            for extra in (0, edit):
                solver, latents = Solver(unipc(), 20, edited=edited), start
                for i in range(4):
                    latents = solver.step(i, velocity, latents + extra * (i == 2))
                ends.append(latents)
            survived[edited] = ((ends[1] - ends[0]).norm() / edit.norm()).item()
        assert survived[0] < 0.03
        assert survived[4] == pytest.approx(1, abs=0.02)

    def test_guidance_goes_as_far_as_with_euler_only_without_the_corrector(self, monkeypatch):
        network = tiny("wan")
        motion = motion_of(network, "wan")

        def last_loss(scheduler):
            losses = []
            sample(
                network,
                scheduler,
                latents_of("wan"),
                text_of(2),
                motion,
                num_inference_steps=20,
                guidance_steps=5,
                learning_rate=(0.02, 0.02),
                guidance_scale=1.0,
                guided=lambda i, t, latents, positions, before: losses.append(before),
            )
            return losses[4][0] / losses[0][0]

        euler, without = last_loss(scheduler_of("wan")), last_loss(unipc())
        monkeypatch.setattr(sampling, "Solver", lambda *given, **_: Solver(*given[:4]))
        corrected = last_loss(unipc())
        assert without == pytest.approx(euler, rel=0.05)
        assert corrected > 1.3 * without

    def test_the_corrector_stays_on_where_nothing_is_edited(self):
        assert Solver(unipc(), 20, edited=4).scheduler.disable_corrector == [0, 1, 2]
        assert Solver(unipc(), 20).scheduler.disable_corrector == []


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0, 0, 5, (0.1, 0.1)), "num_inference_steps is 0"),
            ((8, 9, 5, (0.1, 0.1)), "guidance_steps is 9, expected 0 to num_inference_steps, 8"),
            ((8, -1, 5, (0.1, 0.1)), "guidance_steps is -1"),
            ((8, 2, -1, (0.1, 0.1)), "optimization_steps is -1"),
            ((8, 2, 5, (0.1, -0.1)), "learning_rate is .*, expected two numbers of 0 or more"),
            ((8, 2, 5, (0.1,)), "learning_rate is .*, expected two numbers"),
            ((8, 2, 5, (0.1, float("nan"))), "learning_rate is .*, expected two numbers"),
        ],
    )
    def test_schedule(self, arguments, message):
        with pytest.raises(UserError, match=message):
            check_schedule(*arguments)

    def test_what_sample_refuses(self, network, kind):
        motion, positions = motion_of(network, kind), positions_of(network)
        keys = [0, 1] if kind == "wan" else Solver(scheduler_of(kind), 4).timesteps[:2]
        saved = dict.fromkeys(keys, positions)
        for settings, message in [
            ({"guidance_steps": 5}, "guidance_steps is 5"),
            ({"motion": motion, "variable": "emb"}, "variable is 'emb'"),
            ({"motion": motion, "positions": saved}, "are both given; give one"),
            (
                {"motion": motion, "motion_latents": latents_of(kind), "injection_blocks": (1,)},
                "block 1 is in guidance",
            ),
            ({"motion_latents": latents_of(kind), "injection_blocks": (7,)}, "injection_blocks holds 7"),
            ({"positions": {keys[0]: positions}}, f"none for guided step 2 .{keys[1]}., only {keys[0]}"),
            ({"positions": saved | {keys[1]: positions[..., 1:, :]}}, "another size, number of frames or transformer"),
        ]:
            with pytest.raises(UserError, match=message):
                run(network, kind, **settings)
