"""MotionFollower behind the engine and the command, on a tiny layout and a stick figure."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.inference import cli
from animatediff.inference.engine import Engine
from animatediff.inference.run import completed, run_of
from animatediff.models.weight_files import read_state_dict
from animatediff.pipelines import METHODS
from animatediff.pipelines.motionfollower import FrameConditions, sample
from animatediff.pipelines.motionfollower.loading import MotionFollowerFiles, load_motionfollower
from animatediff.pipelines.motionfollower.pipeline import MotionFollowerPipeline, binary, resized
from tests.pipelines.motionfollower.layout import SIDE, write_sequences, write_weights


@pytest.fixture(scope="module")
def files(tmp_path_factory, states):
    return write_weights(tmp_path_factory.mktemp("weights"), states)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return write_sequences(tmp_path_factory.mktemp("people") / "waving")


@pytest.fixture(scope="module")
def small_run(files):
    """The keys of a run of 4 frames of 64x64 in 2 steps."""
    return {
        **files,
        **{"method": "motionfollower", "num_frames": 4, "height": SIDE, "width": SIDE, "device": "cpu"},
        **{"num_inference_steps": 2},
    }


@pytest.fixture(scope="module")
def engine(small_run):
    return Engine(small_run)


def sequences(folder):
    names = ("source_images", "source_poses", "target_aligned_poses", "source_masks", "predicted_masks")
    return [read_frames(folder / name, None).frames for name in names]


def test_the_engine_gives_what_the_functions_give(engine, prepared):
    steps = []
    video = engine.generate({"prepared": str(prepared)}, on_step=lambda i, n, latents: steps.append((i, n)))
    assert video.shape == (4, SIDE, SIDE, 3)
    assert steps == [(0, 2), (1, 2)]
    pipe = engine.load()
    source, poses, targets, masks, predicted = sequences(prepared)
    conditions = FrameConditions(
        networks=pipe.networks,
        embeds=pipe.embed_images(source),
        frames=resized(source, SIDE, SIDE) / 127.5 - 1,
        source_poses=resized(poses, SIDE, SIDE) / 255,
        target_poses=resized(targets, SIDE, SIDE) / 255,
        source_masks=binary(masks, SIDE, SIDE),
        target_masks=binary(predicted, SIDE, SIDE),
    )
    latents = torch.randn(1, 4, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(42))
    edited = sample(pipe.networks, latents, conditions, 2)
    decoded = pipe.video_processor.postprocess_video(pipe.decode_latents(edited), output_type="np")[0]
    np.testing.assert_array_equal(video, decoded)


def test_inputs_as_the_published_program_takes_them(prepared):
    masks = sequences(prepared)[3]
    assert set(binary(masks, 32, 48).unique().tolist()) == {0.0, 1.0}
    frames = sequences(prepared)[0]
    wanted = np.asarray(Image.fromarray(frames[0]).resize((48, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(resized(frames, 32, 48)[0].permute(1, 2, 0).numpy(), wanted)


def test_embeddings_are_those_of_the_squashed_frames(engine, prepared):
    from transformers import CLIPImageProcessor

    frames = sequences(prepared)[0]
    processor = CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
    pixels = processor(list(frames), return_tensors="pt").pixel_values
    pipe = engine.load()
    with torch.no_grad():
        wanted = pipe.image_encoder(pixels).image_embeds
    torch.testing.assert_close(pipe.embed_images(frames, chunk_size=3)[0], wanted, rtol=1e-3, atol=1e-3)


def test_the_command_makes_jobs_resumes_and_writes_the_reconstruction(
    small_run, prepared, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "Engine", _once(Engine))
    (tmp_path / "run.yaml").write_text(json.dumps(small_run | {"num_inference_steps": 1}))
    jobs = [
        {"prepared": str(prepared)},
        {"prepared": str(prepared), "motionfollower": {"save_reconstruction": True}, "seed": 3},
        {"prepared": str(tmp_path / "nowhere")},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    assert cli.main(["--config", "run.yaml", "--jobs", "jobs.jsonl"]) == 1
    assert "which has no folder target_images; give a prepared folder" in capsys.readouterr().out
    folder = tmp_path / "outputs" / "waving"
    assert sorted(path.name for path in folder.iterdir()) == [
        "waving-3-reconstruction.mp4",
        *("waving-3.json", "waving-3.mp4", "waving-42.json", "waving-42.mp4"),
    ]
    sidecar = json.loads((folder / "waving-42.json").read_text())
    assert sidecar["config"]["source_path"] == str(prepared / "source_images")
    assert sidecar["weights"]["pose controller"].endswith("poctr.pth")
    assert cli.main(["--config", "run.yaml", "--jobs", "jobs.jsonl"]) == 1
    assert "2 already done" in capsys.readouterr().out
    assert cli.main(["--config", str(folder / "waving-42.json")]) == 0
    assert cli.main(["--config", "run.yaml", "--dry-run", f"prepared={prepared}"]) == 0
    assert "outputs/waving/waving-42.mp4" in capsys.readouterr().out


def _once(engine):
    made = {}

    def build(run, references=2):
        return made.setdefault("engine", engine(run, references))

    return build


@pytest.mark.parametrize("config", ["sd15", "sd15_camera"])
def test_configurations_are_valid(config, repository):
    run = cli.read_config(cli.parse(["--config", f"configs/inference/motionfollower/{config}.yaml"], None))
    assert (run.method, run.num_frames, run.num_inference_steps) == ("motionfollower", 24, 50)
    assert (run.guidance_scale, run.motionfollower.camera) == ((3.5, True) if "camera" in config else (7.0, False))


def test_published_names_are_taken_or_answered():
    given = {"method": "motionfollower", "W": 64, "H": 32, "L": 5, "steps": 9, "cfg": 2.0, "weight_dtype": "fp32"}
    run = run_of([("a job", given | {"driving_path": "a", "video_root": "b", "pose_root": "c", "camera": True})])
    assert (run.width, run.height, run.num_frames, run.num_inference_steps) == (64, 32, 5, 9)
    assert (run.ref_video_path, run.source_path, run.target_pose_path) == ("a", "b", "c")
    assert run.motionfollower.camera is True
    assert (run.guidance_scale, run.dtype) == (2.0, "fp32")
    with pytest.raises(UserError, match=r"'--cfg' is another program's; .*motionfollower write guidance_scale=value"):
        cli.parse(["--cfg", "7"], None)


def test_the_sequences_alone_name_the_driving_clip(prepared):
    run = run_of([("a job", {"method": "motionfollower", "target_pose_path": "somewhere/poses"})])
    assert completed(run).ref_video_path == "somewhere/poses"
    own = run_of([("a job", {"method": "motionfollower", "prepared": str(prepared), "target_mask_path": "mine"})])
    assert completed(own).target_mask_path == "mine"
    assert completed(own).source_path == str(prepared / "source_images")
    assert completed(own).prepared == ""


# ------------------------------------------------------------------ bad input


def copied(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy")


def refused(engine, folder, line, **changes):
    with pytest.raises(UserError, match=line) as caught:
        engine.generate({"prepared": str(folder), **changes})
    assert "\n" not in str(caught.value)


def test_counts_that_differ(engine, prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    (folder / "source_masks" / "frame_3.png").unlink()
    refused(engine, folder, r"numbers of frames differ \(source_path 4, .*source_mask_path 3")


@pytest.mark.parametrize(("level", "word"), [(0, "empty"), (255, "full")])
def test_masks_of_one_level(engine, prepared, tmp_path, level, word):
    folder = copied(prepared, tmp_path)
    for path in (folder / "source_masks").iterdir():
        Image.fromarray(np.full((SIDE, SIDE), level, np.uint8)).save(path)
    refused(engine, folder, rf"source_mask_path is {word} \(all {level}\) in every frame")


def test_a_mask_of_the_wall(engine, prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    for path in (folder / "predicted_masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    refused(engine, folder, r"target_mask_path is not of the person: \d+% of the skeleton's joints lie inside")


def test_photographs_or_keypoints_instead_of_skeletons(engine, prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    refused(engine, folder, r"no sequence of skeletons: 0% .* is black", source_pose_path=str(folder / "source_images"))
    points = folder / "keypoints.npz"
    np.savez(points, source=np.zeros((4, 60, 3)))
    refused(engine, folder, r"source_pose_path is .*npz, a file of keypoints; expected", source_pose_path=str(points))


def test_a_driving_clip_without_a_person(engine, prepared, tmp_path):
    folder = copied(prepared, tmp_path)
    for path in (folder / "target_aligned_poses").iterdir():
        Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(path)
    refused(engine, folder, r"target_pose_path is black in every frame: it shows no person")


def test_one_frame(engine, tmp_path):
    folder = write_sequences(tmp_path / "one", frames=1)
    refused(engine, folder, r"source_path has 1 frame, so there is no motion to change")


def test_sizes_prompts_and_missing_sequences(engine, prepared):
    refused(engine, prepared, r"height x width is 64x40, expected multiples of 16", width=40)
    refused(engine, prepared, r"prompt is 'a cat', which method=motionfollower has no use for", prompt="a cat")
    refused(engine, prepared, r"fit is 'pad', which method=motionfollower has no use for", fit="pad")
    with pytest.raises(UserError, match=r"no reference video"):
        engine.generate({"source_path": str(prepared / "source_images")})
    with pytest.raises(UserError, match=r"source_path is empty, and method=motionfollower needs it: the video to edit"):
        engine.generate({"target_pose_path": str(prepared / "target_aligned_poses")})


def test_files_of_other_models(files, tmp_path, states):
    def load(**changes):
        return load_motionfollower(MotionFollowerFiles(**(files | changes)))

    spatial = {k: v for k, v in read_state_dict(files["unet_path"]).items() if not k.startswith("appearance_adapter.")}
    torch.save(spatial, tmp_path / "no_adapter.pth")
    with pytest.raises(UserError, match=r"hold no appearance_adapter.* denoising_unet\.pth as unet_path"):
        load(unet_path=str(tmp_path / "no_adapter.pth"))
    with pytest.raises(UserError, match=r"motion_module\.pth lacks conv_in.weight, expected a pose controller"):
        load(pose_controller_path=files["motion_module_path"])
    torch.save({"text_model.x": torch.zeros(1)}, tmp_path / "text.pth")
    with pytest.raises(UserError, match=r"text\.pth looks like a text encoder, expected a file of MotionFollower"):
        load(unet_path=str(tmp_path / "text.pth"))
    with pytest.raises(UserError, match=r"lacks .*motion_modules"):
        load(motion_module_path="")


def test_motion_modules_inside_the_unet_file_and_a_second_estimator(files, tmp_path, states, networks):
    torch.save(states["unet"], tmp_path / "whole.pth")
    pipe = load_motionfollower(MotionFollowerFiles(**(files | {"unet_path": str(tmp_path / "whole.pth")})), "cpu")
    wanted = dict(networks.unet.named_parameters())
    assert all(torch.equal(value, wanted[name]) for name, value in pipe.unet.named_parameters())
    assert pipe.estimator is None
    second = load_motionfollower(MotionFollowerFiles(**files), estimator="base").estimator
    assert torch.equal(second.conv_in.weight, torch.zeros_like(second.conv_in.weight))  # the base model's
    name = next(name for name in wanted if ".motion_modules." in name)
    assert torch.equal(second.get_parameter(name), wanted[name])


def test_offloaded_and_saved_pipelines_give_the_same(files, prepared, tmp_path):
    pipe = load_motionfollower(MotionFollowerFiles(**files))
    given = {"height": 32, "width": 32, "num_inference_steps": 1, "output_type": "latent"}

    def make(pipe):
        return pipe(*sequences(prepared), generator=torch.Generator().manual_seed(1), **given).frames

    wanted = make(pipe)
    pipe.save_pretrained(tmp_path / "saved")
    again = MotionFollowerPipeline.from_pretrained(tmp_path / "saved")
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[name], value)
    assert (make(again) - wanted).norm() < 1e-4 * wanted.norm()
    pipe.enable_model_cpu_offload(device="cpu:0")  # stands for the accelerator
    assert torch.equal(make(pipe), wanted)
    assert METHODS["motionfollower"].needs_prompt is False
