"""inference.py as a person uses it: what it writes, says and refuses, on the published layout at a tiny size."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from PIL import Image
from safetensors.torch import load_file, save_file

from animatediff.data.export import save_video
from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.inference import cli, engine
from animatediff.miniature import heldout
from animatediff.pipelines.efficientmt import pipeline as efficientmt
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles as Files
from animatediff.project import PROJECT, locate
from tests.pipelines.small import extract, sample, small_pipeline

Command = Callable[..., int]  # the fixture `command`: inference.main with a small configuration


def written(folder: Path | str = "outputs") -> list[str]:
    """Every file below `folder`, hidden ones too."""
    root = Path(folder)
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def video_size(path: Path) -> tuple[int, int, int]:
    """(frames, height, width)."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return (len(frames), *frames[0].shape[:2])


# What it writes


def test_the_miniature_follows_a_bundled_reference(repository: Path, tmp_path: Path, monkeypatch, capsys):
    """The first line of assets/jobs.jsonl by the plain command: its subject goes where the reference's does."""
    monkeypatch.chdir(tmp_path)
    first = (repository / "assets" / "jobs.jsonl").read_text().splitlines()[0]
    Path("one.jsonl").write_text(first)
    assert cli.main(["--jobs", "one.jsonl"]) == 0
    assert "1 jobs: 1 done" in capsys.readouterr().out
    job = heldout.bundled_jobs()[0]
    assert json.loads(first)["prompt"] == job.prompt
    [video] = Path("outputs").rglob("*.mp4")
    assert heldout.score(read_frames(video, None).frames, job)["cosine"] > 0.8


def test_published_flags_make_a_video_and_what_makes_it_again(command: Command, tiny_weights: Files, clip: Path):
    assert command("--ckpt_path", tiny_weights.ckpt_path, "seed=7") == 0
    assert written() == ["clip/a-red-star-7.json", "clip/a-red-star-7.mp4"]
    output = Path("outputs/clip/a-red-star-7.mp4")
    with av.open(str(output)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.average_rate, stream.frames) == ("h264", 8, 2)
        assert (stream.height, stream.width) == (32, 32)
    sidecar = json.loads(output.with_suffix(".json").read_text())
    assert sidecar["config"]["ckpt_path"] == tiny_weights.ckpt_path
    assert (sidecar["prompt"], sidecar["seed"], sidecar["reference"]) == ("a red star", 7, str(clip))
    assert sidecar["reference_frames"] == {"indices": [0, 7], "of": 8}
    assert set(sidecar["versions"]) == {"torch", "diffusers", "transformers"}
    assert sidecar["weights"]["base model: unet"].endswith("unet/diffusion_pytorch_model.safetensors")
    assert "UNTRAINED" not in sidecar

    assert cli.main(["--config", str(output.with_suffix(".json")), "output_dir=again"]) == 0
    assert Path("again/clip/a-red-star-7.mp4").read_bytes() == output.read_bytes()


def test_everything_on_request(command: Command):
    assert command("gif=true", "frames=true", "side_by_side=true", "fps=5") == 0
    stem = "clip/a-red-star-42"
    frames = [f"{stem}/00000.png", f"{stem}/00001.png"]
    assert written() == sorted([*frames, *(f"{stem}{end}" for end in ("-beside.mp4", ".gif", ".json", ".mp4"))])
    assert video_size(Path(f"outputs/{stem}-beside.mp4")) == (2, 32, 64)
    with Image.open(f"outputs/{stem}.gif") as gif:
        assert gif.n_frames == 2


def test_the_same_command_again_does_nothing_until_more_is_asked(command: Command, capsys, monkeypatch):
    assert command() == 0
    before = os.stat("outputs/clip/a-red-star-42.mp4").st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(cli, "load", lambda *_: pytest.fail("models are loaded for a finished job"))
        assert command() == 0
    assert "already done: outputs/clip/a-red-star-42.mp4" in capsys.readouterr().out
    assert os.stat("outputs/clip/a-red-star-42.mp4").st_mtime_ns == before
    assert command("gif=true") == 0
    assert "clip/a-red-star-42.gif" in written()
    assert command("overwrite=true") == 0
    assert os.stat("outputs/clip/a-red-star-42.mp4").st_mtime_ns > before


def test_other_settings_never_overwrite(command: Command):
    assert command() == 0
    first = Path("outputs/clip/a-red-star-42.mp4").read_bytes()
    assert command("num_inference_steps=1") == 0
    assert Path("outputs/clip/a-red-star-42.mp4").read_bytes() == first
    names = written()
    assert len(names) == 4
    assert any(name.startswith("clip/a-red-star-42-") and name.endswith(".mp4") for name in names)


def test_every_key_reaches_the_sampler(command: Command):
    assert command("num_frames=3", "width=48", "height=40", "scheduler=euler", "fit=pad") == 0
    assert video_size(Path("outputs/clip/a-red-star-42.mp4")) == (3, 40, 48)
    assert command("fit=auto", "seed=1", "height=48", "width=48") == 0
    assert video_size(Path("outputs/clip/a-red-star-1.mp4")) == (2, 40, 56)


def test_guidance_zero_and_one_sample_without_the_negative_half(command: Command, monkeypatch):
    batches = []
    forward = efficientmt.VideoUNet.forward

    def counted(self, sample, *args, **kwargs):
        batches.append(sample.shape[0])
        return forward(self, sample, *args, **kwargs)

    monkeypatch.setattr(efficientmt.VideoUNet, "forward", counted)
    for guidance, batch in ((0, 1), (1, 1), (6, 2)):
        batches.clear()
        assert command(f"guidance_scale={guidance}", f"seed={guidance}") == 0
        assert batches == [1, batch, batch], "the reference pass and two steps"


def test_without_its_motion_a_reference_gives_the_size_alone(command: Command, clip: Path):
    save_video(Path("other.mp4"), np.full((8, 40, 40, 3), 90, np.uint8))
    assert command() == 0
    assert command("use_reference=false", "output_dir=alone") == 0
    assert command("--ref_video_path", "other.mp4", "use_reference=false", "output_dir=alone") == 0
    moved, alone, other = (
        Path(name).read_bytes()
        for name in ("outputs/clip/a-red-star-42.mp4", "alone/clip/a-red-star-42.mp4", "alone/other/a-red-star-42.mp4")
    )
    assert alone == other != moved


def test_an_untrained_adapter_says_so(command: Command, capsys):
    assert command("ckpt_path=") == 0
    assert "UNTRAINED" in capsys.readouterr().out
    assert "UNTRAINED" in json.loads(Path("outputs/clip/a-red-star-42.json").read_text())


def test_a_folder_of_frames_is_a_reference(command: Command):
    folder = Path("frames")
    folder.mkdir()
    for i in range(3):
        Image.new("L", (40, 40), 80 * i).save(folder / f"{i}.png")
    assert command(reference=folder) == 0
    assert written() == ["frames/a-red-star-42.json", "frames/a-red-star-42.mp4"]


def test_paths_are_found_in_the_project_from_any_folder(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LICENSE").write_text("the current folder comes first")
    project = PROJECT
    assert locate("requirements.txt") == str(project / "requirements.txt")
    assert locate("LICENSE") == "LICENSE"
    assert locate("nowhere.mp4") == "nowhere.mp4"
    assert locate("") == ""
    assert cli.main(["--dry-run", "--config", "configs/inference/efficientmt/sd15.yaml"]) == 1
    assert "num_inference_steps: 25" in capsys.readouterr().out


# What it says


def test_dry_run_prints_the_configuration_and_the_files(command: Command, tiny_weights: Files, clip: Path, capsys):
    assert command("--dry-run", "seed=9") == 0
    out = capsys.readouterr().out
    assert "seed: 9" in out
    assert f"present  motion module: {tiny_weights.motion_module_path}" in out
    assert f"present  base model: vae: {tiny_weights.pretrained_model_path}/vae/diffusion_pytorch_model.bin" in out
    assert f"present  reference: {clip}" in out
    assert "to do    the command line: outputs/clip/a-red-star-9.mp4" in out
    assert not Path("outputs").exists()


def test_dry_run_tells_what_is_missing_and_where_it_comes_from(command: Command, capsys):
    place = "models/Motion_Module/v3_sd15_mm.ckpt"
    assert command("--dry-run", "ckpt_path=none.ckpt", f"motion_module_path={place}", reference="none.mp4") == 1
    out = capsys.readouterr().out
    assert f"MISSING  no weights at none.ckpt (adapter); see {PROJECT}/models/README.md" in out
    if not (PROJECT / place).exists():
        assert f"no weights at {place} (motion module); fetch it with python scripts/download_models.py" in out
    assert "MISSING  reference: none.mp4" in out
    assert "BAD      the command line: no reference video at none.mp4" in out


def test_the_77_token_cut_is_announced(command: Command, capsys):
    long = "a fox " * 1700
    assert command(prompt=long) == 0
    assert "CLIP reads 77 tokens of the prompt; not read: " in capsys.readouterr().err
    names = written()
    assert len(names) == 2
    assert all(len(name) < 100 for name in names)
    sidecar = json.loads(Path("outputs", names[0]).read_text())
    assert sidecar["prompt"] == long
    assert "77 tokens" in sidecar["warnings"][0]


@pytest.mark.parametrize("prompt", ["", "🦊🎉", "a/b\\c", "../../up", "two\nlines", "/etc/passwd", "${HOME} %s {0}"])
def test_no_prompt_writes_outside_the_output_folder(command: Command, prompt: str, tmp_path: Path):
    assert command("num_inference_steps=1", prompt=prompt) == 0
    new = [path for path in tmp_path.rglob("*.*") if path.suffix in (".mp4", ".json")]
    assert len(new) == 2
    assert all(path.parent == tmp_path / "outputs" / "clip" for path in new)
    sidecar = next(path for path in new if path.suffix == ".json")
    assert json.loads(sidecar.read_text())["prompt"] == prompt


def test_fewer_frames_than_asked_are_repeated_with_a_warning(command: Command, capsys):
    short = Path("short.mp4")
    save_video(short, np.zeros((3, 32, 32, 3), np.uint8))
    assert command("num_frames=5", reference=short) == 0
    warning = "short.mp4 gives 3 frames where 5 were asked for; frames are repeated"
    assert warning in capsys.readouterr().err
    sidecar = json.loads(Path("outputs/short/a-red-star-42.json").read_text())
    assert sidecar["reference_frames"]["indices"] == [0, 0, 1, 1, 2]
    assert warning in sidecar["warnings"]


def test_a_video_of_one_frame_is_no_motion(command: Command, capsys):
    save_video("still.mp4", np.zeros((1, 32, 32, 3), np.uint8))
    assert command(reference="still.mp4") == 0
    assert "still.mp4 gives 1 frame, so there is no motion to take" in capsys.readouterr().err


def test_xformers_without_an_operator_falls_back_with_one_line(command: Command, capsys):
    assert command("attention=xformers") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "xformers" in line]
    assert lines == ["attention: xformers has no operator for cpu here; using scaled_dot_product_attention"]


def test_xformers_that_fails_on_this_device_falls_back(monkeypatch):
    """No operator for the third attention that is asked: the line, and the pipeline samples as before, everywhere."""
    pipe, asked = small_pipeline(), []
    reference = extract(pipe)
    want = sample(pipe, reference)

    def operator(attention: Attention, valid: bool, _op: object = None) -> None:
        asked.append(valid)
        if len(asked) == 3:
            raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")
        attention.set_processor(XFormersAttnProcessor() if valid else AttnProcessor2_0())

    monkeypatch.setattr(Attention, "set_use_memory_efficient_attention_xformers", operator)
    monkeypatch.setattr(engine, "is_xformers_available", lambda: True)
    [line] = engine.use_xformers(pipe, torch.device("cuda"))
    assert line.startswith("attention: No operator found for")
    assert line.endswith("using scaled_dot_product_attention")
    processors = [m.processor for net in (pipe.unet, pipe.vae) for m in net.modules() if isinstance(m, Attention)]
    assert processors
    assert not any(isinstance(processor, XFormersAttnProcessor) for processor in processors)
    assert torch.equal(sample(pipe, reference), want)


def lora(path: Path, *layers: str) -> str:
    """A LoRA for layers of 32 channels, whether the backbone has them or not."""
    save_file({f"unet.{layer}.lora_{part}.weight": torch.ones(32, 32) for layer in layers for part in "AB"}, path)
    return str(path)


LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def test_a_lora_that_fits_in_part_is_told_with_the_video(command: Command, tmp_path: Path, capsys):
    half = lora(tmp_path / "half.safetensors", LAYER, "up_blocks.9.to_q")
    whole = lora(tmp_path / "whole.safetensors", LAYER)
    assert command(f"lora_paths=[{half},{whole}]", "lora_scale=[0.1,0.2]") == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "LoRA" in line]
    told = f"{half}: 1 of 2 layers of this LoRA fitted and are used; this model has no unet.up_blocks.9.to_q"
    assert told in line
    assert told in json.loads(Path("outputs/clip/a-red-star-42.json").read_text())["warnings"]


# What it refuses


BAD_VALUES = [
    ("num_frames=0", "num_frames is 0, expected 1 to 32"),
    ("num_frames=-4", "num_frames is -4, expected 1 to 32"),
    ("num_frames=100000", "num_frames is 100000, expected 1 to 32"),
    ("num_inference_steps=0", "num_inference_steps is 0, expected 1 to 1000"),
    ("num_inference_steps=-1", "num_inference_steps is -1, expected 1 to 1000"),
    ("num_inference_steps=1000000", "num_inference_steps is 1000000, expected 1 to 1000"),
    ("guidance_scale=nan", "guidance_scale is nan, expected 0 to 100"),
    ("guidance_scale=-1", "guidance_scale is -1.0, expected 0 to 100"),
    (
        "guidance_below=650",
        "'guidance_below' in guidance_below=650 is an old name; write efficientmt.guidance_interval",
    ),
    ("scheduler=eulr", "scheduler is 'eulr'; did you mean 'euler'?"),
    ("fit=crob", "fit is 'crob'; did you mean 'crop'?"),
    ("dtype=fp17", "dtype is 'fp17'; did you mean 'fp16'?"),
    ("seed=-1", "seed is -1, expected 0 to"),
    ("fps=0", "fps is 0.0, expected 0.1 to 240"),
    ("lora_scale=inf", "lora_scale is inf"),
    ("height=36", "height x width is 36x32, expected multiples of 8; the nearest are 40x32"),
    ("width=0", "width is 0, expected 1 to 4096"),
    ("start=99", "start is 99.0 s, but"),
    ("duration=-1", "duration is -1.0, expected 0 or more"),
    ("num_inference_step=3", "did you mean 'num_inference_steps'?"),
    ("ckpt_path=none.ckpt", f"no weights at none.ckpt (adapter); see {PROJECT}/models/README.md for what"),
    ("dtype=fp16", "dtype is fp16, which the CPU cannot sample in; use dtype=fp32 or dtype=bf16"),
    (
        "offload=sequential",
        "offload is sequential, which feeds a GPU layer by layer, and device is cpu; use offload=none",
    ),
    ("method=motionclone ckpt_path= use_reference=false", "use_reference is false, which MotionClone has no use for"),
    ("device=mps", "device is 'mps', which this machine does not have; use device=auto"),
    ("lora_paths=[none.safetensors]", "no weights at none.safetensors (LoRA 0)"),
]


@pytest.mark.parametrize(("override", "message"), BAD_VALUES)
def test_bad_values(command: Command, override: str, message: str):
    refused(command, message, *override.split())


def test_loras_that_do_not_fit(command: Command, tmp_path: Path):
    path = lora(tmp_path / "other.safetensors", "transformer_blocks.0.attn1.to_q")
    refused(command, f"{path} looks like a LoRA, made for another model: 0 of 1 layers fit", f"lora_paths=[{path}]")
    message = "lora_scale has 3 numbers for 1 LoRAs; give one, or one for each"
    refused(command, message, f"lora_paths=[{path}]", "lora_scale=[1,2,3]")


def test_bad_flags(command: Command):
    refused(command, "unknown flag '--promt'; did you mean '--prompt'?", "--promt", "x")
    refused(command, "'--seed' is a key, not a flag; write seed=value", "--seed", "7")
    refused(command, "expected one argument", "--jobs")
    refused(command, "no configuration file at none.yaml", "--config", "none.yaml")
    refused(command, "no prompt; give --prompt", prompt=None)
    refused(command, "no reference video; give --ref_video_path", reference=None)
    refused(command, "reading none.jsonl failed: No such file", "--jobs", "none.jsonl")


def empty(path: Path) -> None:
    path.touch()


def text_file(path: Path) -> None:
    path.write_text("this is no video\n" * 50)


def truncated(path: Path) -> None:
    save_video(path, np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:700])


def folder_without_images(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_text("x")


@pytest.mark.parametrize("make", [None, empty, text_file, truncated, folder_without_images])
def test_references_that_are_no_video(command: Command, make: Callable[[Path], None] | None):
    path = Path("bad.mp4")
    if make:
        make(path)
    refused(command, "bad.mp4", reference=path)


def test_nan_in_a_checkpoint(command: Command, tiny_weights: Files):
    state = load_file(tiny_weights.dreambooth_path)
    key = "model.diffusion_model.out.2.weight"
    save_file(state | {key: torch.full_like(state[key], torch.nan)}, "nan.safetensors")
    refused(command, f"nan.safetensors holds NaN or infinite values (first in {key}", "dreambooth_path=nan.safetensors")


def test_nan_while_sampling(command: Command, monkeypatch):
    monkeypatch.setattr(cli, "extract_and_warn", spoiled(cli.extract_and_warn))
    refused(command, "sampling gave NaN in fp32; use a lower guidance_scale", "dtype=auto")
    refused(command, "sampling gave NaN in bf16; use dtype=fp32, or a lower guidance_scale", "dtype=bf16")


def spoiled(extract):
    """The reference pass with NaN in every feature."""

    def with_nan(*args):
        extracted = extract(*args)
        for site in extracted.motion.sites.values():
            for feature in site.features:
                feature.fill_(torch.nan)
        return extracted

    return with_nan


def test_output_folders_that_cannot_be_written(command: Command, monkeypatch):
    Path("taken").write_text("a file")
    refused(command, "nothing can be written to taken/clip: ", "output_dir=taken")
    Path("outputs").mkdir()
    Path("outputs/clip").write_text("a file")
    refused(command, "nothing can be written to outputs/clip: ")
    Path("outputs/clip").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(command, "cannot be written; choose another for output_dir")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_disk_full_and_no_permission_while_writing(command: Command, monkeypatch, code: int):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    refused(command, f"writing outputs/clip/a-red-star-42.mp4 failed: {os.strerror(code)}")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), RuntimeError("MPS out of memory")],
)
def test_out_of_memory_names_the_keys_that_lower_it(command: Command, monkeypatch, error: RuntimeError):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(efficientmt.EfficientMTPipeline, "__call__", fail)
    keys = "offload=model (or sequential), dtype=bf16, a smaller height and width, or fewer num_frames"
    refused(command, f"out of memory at 2 frames of 32x32; lower it with {keys}")


def refused(command: Command, message: str, *arguments: str, **named) -> None:
    """The command ends in one line that holds `message` and leaves no file behind."""
    before = written(".")
    with pytest.raises(UserError) as caught:
        command(*arguments, **named)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert written(".") == before
