"""MotionClonePipeline on the tiny layout, and behind inference.py."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from animatediff.errors import UserError
from animatediff.inference import cli
from animatediff.inference.jobs import read_jobs
from animatediff.inference.run import check, read_run, reference_key, run_schema
from animatediff.models.key_names import original_name
from animatediff.models.sparsectrl import build_sparsectrl
from animatediff.pipelines.backbones.sd15 import SD15Files, load_components
from animatediff.pipelines.motionclone.method import MotionCloneFiles, load_motionclone
from animatediff.pipelines.motionclone.pipeline import MotionClonePipeline, MotionCloneSettings, uneven_timesteps
from tests.goldens import fill

SETTINGS = MotionCloneSettings(guidance_steps=1, warm_up_steps=1, cool_down_steps=1)
SHORT = {"num_inference_steps": 2, "output_type": "latent"}
PUBLISHED_RUNS = {"camera": (100, 50, 0.3), "object": (300, 180, 0.4), "rgb": (100, 40, 0.3), "sketch": (200, 120, 0.4)}


def seeded(seed=42):
    return torch.Generator().manual_seed(seed)


def load(weights, settings=SETTINGS, **more):
    base = {entry.name: getattr(weights, entry.name) for entry in fields(SD15Files)}
    pipe = load_motionclone(MotionCloneFiles(**base, **more), settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(tiny_weights):
    return load(tiny_weights)


@pytest.fixture(scope="module")
def video():
    return torch.rand(3, 3, 32, 48, generator=seeded(0)) * 2 - 1


@pytest.fixture(scope="module")
def reference(pipe, video):
    return pipe.extract(video, generator=seeded())


@pytest.fixture(scope="module", params=["rgb", "sketch"])
def image_pipe(request, tiny_weights, tmp_path_factory):
    """A pipeline with an encoder of either kind, from a file with the published names."""
    path = tmp_path_factory.mktemp("sparsectrl") / f"{request.param}.ckpt"
    encoder = build_sparsectrl(load_components(tiny_weights).unet, takes_latents=request.param == "rgb")
    names = {original_name(key): tuple(value.shape) for key, value in encoder.named_parameters()}
    torch.save({"controlnet": {key: fill(key, shape) for key, shape in names.items()}}, path)
    return load(tiny_weights, sparsectrl_path=str(path))


@pytest.fixture
def clip(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((32, 48, 3), 80 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


class TestTextToVideo:
    def test_extraction_noise_equals_the_initial_latents_of_the_seed(self, pipe, video, reference):
        noise = torch.randn(1, 4, 3, *reference.latent_size, generator=seeded())
        latents = pipe.encode_video(video, seeded(5))
        given = pipe.extract(latents=latents, noise=noise)
        drawn = pipe.extract(latents=latents, generator=seeded())
        assert all(torch.equal(given.motion[name][0], values) for name, (values, _) in drawn.motion.items())
        made = pipe("a cat", reference=reference, latents=noise, **SHORT).frames
        assert torch.equal(pipe("a cat", reference=reference, generator=seeded(), **SHORT).frames, made)

    def test_order_and_company_of_jobs_do_not_matter(self, pipe, video):
        def job(prompt, seed):
            own = pipe.extract(video, generator=seeded(seed))
            return pipe(prompt, reference=own, generator=seeded(seed), negative_prompt="fog", **SHORT).frames

        first, second = job("a cat", 1), job("a dog", 2)
        torch.randn(3)  # whatever else draws from the global generator
        assert torch.equal(job("a dog", 2), second)
        assert torch.equal(job("a cat", 1), first)
        assert not torch.equal(first, second)

    def test_nothing_is_trainable_with_a_lora(self, tiny_weights, tmp_path):
        """A guided step is a gradient in the latents; weights that want one, too, would cost its memory."""
        layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        save_file({f"{layer}.lora_{part}.weight": torch.ones(32, 32) for part in "AB"}, tmp_path / "l.safetensors")
        base = {key: getattr(tiny_weights, key) for key in ("pretrained_model_path", "motion_module_path")}
        pipe = load(MotionCloneFiles(**base, lora_paths=[str(tmp_path / "l.safetensors")]))
        assert f"{layer.removeprefix('unet.')}.lora_A.lora_0.weight" in dict(pipe.unet.named_parameters())
        assert not [name for name, value in pipe.unet.named_parameters() if value.requires_grad]

    def test_list_of_prompts(self, pipe, reference):
        options = SHORT | {"reference": reference, "negative_prompt": None}
        both = pipe(["a cat", "a dog"], generator=[seeded(1), seeded(2)], **options).frames
        assert torch.equal(both[:1], pipe("a cat", generator=seeded(1), **options).frames)
        assert torch.equal(both[1:], pipe("a dog", generator=seeded(2), **options).frames)

    def test_save_and_load(self, pipe, reference, tmp_path):
        pipe.save_pretrained(tmp_path)
        loaded = MotionClonePipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        assert loaded.settings == SETTINGS
        made, again = (p("a cat", reference=reference, generator=seeded(), **SHORT).frames for p in (pipe, loaded))
        assert torch.equal(made, again)

    def test_callback_and_decoded_frames(self, pipe, reference):
        seen = []

        def see(_pipe, i, t, values):
            seen.append((i, t, tuple(values["latents"].shape)))
            return {}

        options = {"num_inference_steps": 3, "output_type": "np", "callback_on_step_end": see}
        frames = pipe("a cat", reference=reference, generator=seeded(), **options).frames
        shape = (1, 4, 3, *reference.latent_size)
        assert seen == [(i, t, shape) for i, t in enumerate(uneven_timesteps(3, 1, SETTINGS.guidance_range))]
        assert frames.shape == (1, 3, 32, 48, 3)
        assert 0 <= frames.min() <= frames.max() <= 1

    def test_gradient_checkpointing_changes_nothing(self, pipe, tiny_weights, reference):
        other = load(tiny_weights, replace(SETTINGS, gradient_checkpointing=True))
        assert all(block.gradient_checkpointing for block in other.unet.up_blocks)
        results = [p("a cat", reference=reference, generator=seeded(), **SHORT).frames for p in (pipe, other)]
        assert torch.allclose(results[0], results[1], rtol=1e-4, atol=1e-5)

    def test_refusals(self, pipe, reference, tiny_weights):
        with pytest.raises(UserError, match="num_inference_steps is 0, expected 1 to 1000"):
            pipe("a cat", reference=reference, num_inference_steps=0)
        with pytest.raises(UserError, match="condition images are given, but no SparseCtrl weights"):
            pipe("a cat", reference=reference, condition_images=torch.zeros(1, 3, 32, 48))
        with pytest.raises(UserError, match="extract needs a video or its latents"):
            pipe.extract()
        with pytest.raises(UserError, match="num_frames is 33, expected 1 to 32"):
            pipe.extract(latents=torch.zeros(1, 4, 33, 4, 4))
        with pytest.raises(
            UserError, match=r"'up_blocks\.9' is no block with temporal attention; there are down_blocks"
        ):
            load(tiny_weights, MotionCloneSettings(motion_guidance_blocks=["up_blocks.9"]))


class TestImageModes:
    def test_conditions_decide_the_result(self, image_pipe, video):
        reference = image_pipe.extract(video, generator=seeded(), image_index=[2, 0], controlnet_scale=0.7)
        images = torch.rand(2, 3, 32, 48, generator=seeded(3))

        def make(condition):
            options = SHORT | {"reference": reference, "generator": seeded()}
            return image_pipe("a cat", condition_images=condition, **options).frames

        assert not torch.equal(make(images), make(images.flip(0)))

    def test_reference_frames_condition_the_extraction(self, image_pipe, pipe, video, reference):
        first = image_pipe.extract(video, generator=seeded())
        last = image_pipe.extract(video, generator=seeded(), image_index=[2])
        off = image_pipe.extract(video, generator=seeded(), controlnet_scale=0.0)
        name = next(iter(first.motion))
        assert (first.image_index, last.image_index, reference.image_index) == ((0,), (2,), ())
        assert not torch.equal(first.motion[name][0], last.motion[name][0])
        assert torch.allclose(off.motion[name][0], reference.motion[name][0], atol=1e-6)

    def test_refusals(self, image_pipe, video):
        reference = image_pipe.extract(video, generator=seeded())
        for images, message in (
            (None, "needs condition images"),
            (torch.zeros(2, 3, 32, 48), r"image_index is \[0\] for 2 condition images"),
            (torch.zeros(1, 3, 32, 40), "condition images are 40x32, the reference was extracted at 48x32"),
        ):
            with pytest.raises(UserError, match=message):
                image_pipe("a cat", reference=reference, condition_images=images, **SHORT)
        with pytest.raises(UserError, match="image_index has 3, expected frame numbers 0 to 2"):
            image_pipe.extract(video, generator=seeded(), image_index=[3])


class TestCommand:
    @pytest.mark.parametrize("run", PUBLISHED_RUNS)
    def test_published_configurations(self, repository, run):
        config = read_run([repository / f"configs/inference/motionclone/{run}.yaml"])
        own = config.motionclone
        assert (config.num_inference_steps, own.guidance_steps, own.guidance_range) == PUBLISHED_RUNS[run]
        assert (config.method, config.reference_timestep, config.guidance_scale) == ("motionclone", 400, 8.5)
        assert (own.warm_up_steps, own.cool_down_steps, own.motion_guidance_weight, own.k) == (10, 10, 2000, 1)
        assert own.motion_guidance_blocks == ["up_blocks.1"]
        assert (config.num_frames, config.height, config.width) == (16, 512, 512)
        assert bool(config.sparsectrl_path) == bool(config.domain_adapter_path) == (run in ("rgb", "sketch"))
        assert config.negative_prompt.endswith("missing fingers") == (run in ("camera", "object"))

    def test_published_job_lines(self, tmp_path):
        rows = [
            {"video_path": "a.mp4", "new_prompt": "a cat", "seed": 7},
            {
                "video_path": "b.mp4",
                "new_prompt": "a dog",
                "condition_image_paths": ["x.png", "y.png"],
                "image_index": [0, 15],
                "controlnet_scale": 0.5,
            },
        ]
        (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        text, image = (job.run for job in read_jobs(tmp_path / "jobs.jsonl", run_schema("motionclone")()))
        assert (text.ref_video_path, text.prompt, text.seed, text.motionclone.image_index) == ("a.mp4", "a cat", 7, [0])
        assert (image.condition_image_paths, image.motionclone.image_index) == (["x.png", "y.png"], [0, 15])
        assert image.motionclone.controlnet_scale == 0.5

    def test_reference_pass_is_shared_where_it_is_the_same(self):
        config = run_schema("motionclone")(ref_video_path="a.mp4", reference_seed=42)
        assert reference_key(replace(config, prompt="b", seed=1)) == reference_key(config)
        own_seed = replace(config, reference_seed=None)
        assert reference_key(replace(own_seed, seed=1)) != reference_key(own_seed)
        assert reference_key(replace(config, motionclone=MotionCloneSettings(image_index=[3]))) != reference_key(config)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scheduler": "euler"}, "scheduler is 'euler', but MotionClone has timesteps of its own"),
            ({"num_inference_steps": 20}, r"motionclone\.guidance_steps is 50, expected 0 to num_inference_steps, 20"),
            ({"motionclone": MotionCloneSettings(k=17)}, r"motionclone\.k is 17, expected 1 to num_frames, 16"),
            ({"condition_image_paths": ["x.png"]}, "condition_image_paths is given without sparsectrl_path"),
            ({"sparsectrl_path": "x"}, "no condition image is given"),
            (
                {"sparsectrl_path": "x", "condition_image_paths": ["x.png"]},
                r"nothing at x\.png; check condition_image_paths",
            ),
            (
                {
                    "sparsectrl_path": "x",
                    "condition_image_paths": ["x.png"],
                    "motionclone": MotionCloneSettings(image_index=[16]),
                },
                "image_index has 16, expected frame numbers 0 to 15",
            ),
        ],
    )
    def test_bad_settings(self, clip, changes, message):
        good = run_schema("motionclone")(ref_video_path=str(clip), prompt="a cat", num_inference_steps=100)
        check(good)
        with pytest.raises(UserError, match=message):
            check(replace(good, **changes))

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("motionclone.guidance_range=1.5", r"motionclone\.guidance_range is 1\.5, expected 0 to 1"),
            ("motionclone.guided_share=0.3", "is an old name; write motionclone.guidance_range"),
            ("guidance_below=500", "is an old name"),
        ],
    )
    def test_bad_keys(self, given, message):
        with pytest.raises(UserError, match=message):
            read_run((), ["method=motionclone", given])

    @pytest.mark.parametrize(
        "given", ["domain_adapter_path=x", "sparsectrl_path=x", "motionclone.k=2", "image_index=[1]"]
    )
    def test_keys_of_this_method_in_a_run_of_another(self, given):
        with pytest.raises(UserError, match=r"is a key of method=motionclone, and this run's is efficientmt"):
            read_run((), ["method=efficientmt", given])

    def test_keys_that_are_off_belong_to_no_method(self):
        off = ["domain_adapter_path=", "image_index=[0]", "motionclone.k=1"]
        assert read_run((), ["method=efficientmt", *off]) == read_run((), ["method=efficientmt"])

    def test_jobs_end_to_end(self, tiny_weights, clip, tmp_path, capsys):
        """Two good jobs and a bad one; the good ones are whole and not made again."""
        image = tmp_path / "image.png"
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(image)
        rows = [
            {"video_path": str(clip), "new_prompt": "a cat"},
            {"video_path": str(clip), "new_prompt": "a cat", "condition_image_paths": [str(image)]},
            {"video_path": str(clip), "new_prompt": "a dog", "seed": 3},
        ]
        (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        weights = {key: value for key, value in asdict(tiny_weights).items() if value and isinstance(value, str)}
        keys = weights | {"ckpt_path": "", "method": "motionclone", "output_dir": tmp_path / "out", "device": "cpu"}
        keys |= {"num_inference_steps": 2, "motionclone.guidance_steps": 1, "reference_seed": "null"}
        keys |= {"num_frames": 3, "height": 32, "width": 48, "guidance_scale": 8.5}
        keys |= {"scheduler": "ddim"}
        command = ["--jobs", str(tmp_path / "jobs.jsonl"), *(f"{key}={value}" for key, value in keys.items())]
        assert cli.main(command) == 1
        made = sorted(path.name for path in (tmp_path / "out").rglob("*.mp4"))
        assert made == ["a-cat-42.mp4", "a-dog-3.mp4"]
        sidecar = json.loads(next((tmp_path / "out").rglob("a-dog-3.json")).read_text())
        assert sidecar["method"] == "motionclone"
        assert sidecar["config"]["motionclone"]["guidance_steps"] == 1
        assert "condition_image_paths is given without sparsectrl_path" in capsys.readouterr().out
        times = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "out").rglob("*.mp4")}
        assert cli.main(command) == 1
        assert times == {path: path.stat().st_mtime_ns for path in Path(tmp_path / "out").rglob("*.mp4")}


def test_the_miniature_loads_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_motionclone().unet.config.cross_attention_dim == 64
