"""The detectors, each on what stands for the part that cannot be had here: models, an environment, a hub."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.prepare.detectors import (
    Tools,
    choice,
    choose_poser,
    environment,
    mediapipe,
    rtmlib,
    sam2,
)


def ignore(done, total):
    return None


# ------------------------------------------------------------------ the choice


def test_auto_takes_the_first_that_works_and_tells_of_the_others(monkeypatch):
    def broken(tools):
        raise UserError("no network")

    monkeypatch.setattr(choice, "POSERS", {"rtmlib": broken, "mediapipe": lambda tools: "the other"})
    found = choose_poser("auto", Tools())
    assert (found.tool, found.passed_over) == ("the other", ("no network",))
    with pytest.raises(UserError, match="no network"):
        choose_poser("rtmlib", Tools())
    monkeypatch.setattr(choice, "POSERS", {"rtmlib": broken, "mediapipe": broken})
    with pytest.raises(UserError, match="no network; no network"):
        choose_poser("auto", Tools())


# ------------------------------------------------------------------ rtmlib


class Wholebody:
    """rtmlib's class as 0.0.16 has it: two networks, the second gives 134 points of OpenPose."""

    def __init__(self, **settings):
        self.settings = settings

    def det_model(self, image):
        assert image[0, 0].tolist() == [3, 2, 1]  # blue first
        return np.array([[1.0, 2.0, 30.0, 40.0]])

    def pose_model(self, image, bboxes):
        assert image[0, 0].tolist() == [3, 2, 1]
        points = np.arange(134 * 2, dtype=float).reshape(1, 134, 2) + bboxes[0][0]
        return points, np.full((1, 134), 1.25)


def test_rtmlib_reads_body_and_hands_of_the_box(monkeypatch):
    module = types.ModuleType("rtmlib")
    module.Wholebody = Wholebody
    monkeypatch.setitem(sys.modules, "rtmlib", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.16")
    poser = rtmlib.build(Tools(device="cpu"))
    assert poser.network.settings["to_openpose"] is True
    assert poser.network.settings["pose"].endswith("384x288-2438fd99_20230728.zip")
    frames = np.broadcast_to(np.array([1, 2, 3], np.uint8), (2, 8, 8, 3))
    assert poser.people(frames, ignore).tolist() == [[0, 1, 2, 30, 40, 1], [1, 1, 2, 30, 40, 1]]
    keypoints = poser.keypoints(frames, np.array([[5.0, 5, 6, 6], [np.nan] * 4]), ignore)
    assert keypoints[0, :, 0].tolist() == [5 + 2 * i for i in (*range(18), *range(92, 134))]
    assert (keypoints[0, :, 2] == 1).all()
    assert not keypoints[1].any()


def test_rtmlib_that_is_not_there_or_cannot_fetch(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need rtmlib, which is not installed: pip install --no-deps rtmlib==0\.0\.16"):
        rtmlib.build(Tools())

    def unreachable(**settings):
        raise OSError("no route to host")

    module = types.ModuleType("rtmlib")
    module.Wholebody = unreachable
    monkeypatch.setitem(sys.modules, "rtmlib", module)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"could not be fetched or loaded \(no route to host\); check the network"):
        rtmlib.build(Tools(device="cpu"))


# ------------------------------------------------------------------ SAM 2


@pytest.fixture(scope="module")
def tiny_sam():
    """Sam2VideoModel with few channels and random weights; its own code runs."""
    from transformers import Sam2VideoConfig, Sam2VideoModel
    from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig

    torch.manual_seed(0)
    backbone = Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, image_size=[64, 64], blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64], num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[8, 4, 4, 4], global_attention_blocks=[3],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=backbone.to_dict(), backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]], fpn_hidden_size=128,
    )  # fmt: skip
    config = Sam2VideoConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config={"hidden_size": 128, "image_size": 64, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
        image_size=64, memory_attention_hidden_size=128, memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=128, memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=128, memory_encoder_output_channels=64, mask_downsampler_embed_dim=128,
        memory_fuser_num_layers=1, memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=32,
    )  # fmt: skip
    return Sam2VideoModel(config).eval()


def test_sam2_follows_a_box_both_ways(tiny_sam):
    frames = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), np.uint8)
    boxes = np.full((4, 4), np.nan)
    boxes[2] = [10, 5, 40, 35]
    done = []
    masks = sam2.Sam2Masker(tiny_sam).outline(frames, boxes, lambda i, n: done.append((i, n)))
    assert (masks.shape, masks.dtype) == ((4, 40, 60), np.uint8)
    assert set(np.unique(masks)) <= {0, 255}
    assert done[-1] == (4, 4)


def test_sam2_that_cannot_be_fetched():
    with pytest.raises(
        UserError, match=r"SAM 2 could not be fetched .*; put facebook/sam2\.1-hiera-tiny .* at models/"
    ):
        sam2.build(Tools(device="cpu"))


# ------------------------------------------------------------------ mediapipe and its environment


PROGRAM = """
import sys, numpy as np
request = np.load(sys.argv[2])
n = len(request["frames"])
for i in range(n):
    print(f"frame {i + 1} of {n}", flush=True)
if sys.argv[1] == "find":
    np.savez(sys.argv[3], boxes=np.ones((n, 6)))
elif np.isnan(request["boxes"]).all():
    raise SystemExit("no GPU, no CPU, no luck")
else:
    np.savez(sys.argv[3], keypoints=np.ones((n, 60, 3)), masks=np.full((n, 2, 2), (152, 153), np.uint8))
"""


def test_mediapipe_is_a_program_whose_frames_are_told_and_kept(monkeypatch, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    monkeypatch.setattr(mediapipe, "SCRIPT", script)
    detector = mediapipe.MediapipeDetector(Path(sys.executable))
    frames, told = np.zeros((3, 2, 2, 3), np.uint8), []
    assert detector.people(frames, lambda i, n: told.append((i, n))).shape == (3, 6)
    assert told == [(1, 3), (2, 3), (3, 3)]
    boxes = np.zeros((3, 4))
    assert detector.keypoints(frames, boxes, ignore).shape == (3, 60, 3)
    script.unlink()  # outlines came with the joints
    np.testing.assert_array_equal(detector.outline(frames, boxes, ignore)[0], [[0, 255], [0, 255]])


def test_mediapipe_that_fails_or_is_stopped(monkeypatch, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    monkeypatch.setattr(mediapipe, "SCRIPT", script)
    detector = mediapipe.MediapipeDetector(tmp_path / "environment" / "bin" / "python")
    with pytest.raises(UserError, match=r"running .*python failed: No such file"):
        detector.people(np.zeros((1, 2, 2, 3), np.uint8), ignore)
    detector = mediapipe.MediapipeDetector(Path(sys.executable))
    with pytest.raises(UserError, match=r"mediapipe 0\.10\.21 ended with status 1 \(no GPU, no CPU, no luck\)"):
        detector.keypoints(np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 4), np.nan), ignore)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.people(np.zeros((1, 2, 2, 3), np.uint8), stop)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "efficientmt" / "mediapipe-0.10.21"


def test_the_environment_is_made_once_and_only_where_that_is_allowed(monkeypatch, cache):
    with pytest.raises(UserError, match=r"not set up here; `efficientmt prepare` in a terminal sets it up"):
        environment.find_environment(make=False)
    calls, lines = [], []
    monkeypatch.setattr(environment, "_call", calls.append)
    (cache / "bin").mkdir(parents=True)  # what an interrupted run left
    python = environment.find_environment(make=True, say=lines.append)
    assert python.is_relative_to(cache)
    assert [call[2] for call in calls] == ["venv", "pip", "pip"]
    assert calls[2][-2:] == ["--no-deps", "mediapipe==0.10.21"]
    assert "setting up mediapipe 0.10.21" in lines[0]
    assert environment.find_environment(make=False) == python
    assert len(calls) == 3


def test_no_interpreter_and_a_failing_pip(monkeypatch, cache):
    monkeypatch.setattr(environment, "find_interpreter", lambda: None)
    with pytest.raises(UserError, match=r"runs on Python 3\.9, 3\.10, 3\.11, 3\.12, and none of them is found here"):
        environment.find_environment(make=True)
    monkeypatch.setattr(environment, "find_interpreter", lambda: sys.executable)
    command = [sys.executable, "-c", "import sys; sys.exit('ERROR: No matching distribution')"]
    with pytest.raises(UserError, match=r"failed \(ERROR: No matching distribution\); check the network and repeat"):
        environment._call(command)
    assert not environment.is_ready()


def test_an_interpreter_is_looked_for_where_this_one_is_too_new(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    monkeypatch.setattr("shutil.which", lambda name: f"/there/{name}" if name != "python3.12" else None)
    monkeypatch.setattr(environment, "_version", lambda path: (3, 10) if path.endswith("3.10") else None)
    assert environment.find_interpreter() == "/there/python3.10"  # 3.11 is a launcher of nothing
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert environment.find_interpreter() is None
