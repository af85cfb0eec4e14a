"""What MotionFollower is trained on: videos of one person each, encoded once, and what makes up sample n of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from einops import rearrange
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPVisionModelWithProjection

from animatediff.data.decode import open_source
from animatediff.data.latents import LatentEncoder, ShardCache, name_of, weights_hash
from animatediff.data.pairs import split_groups
from animatediff.errors import UserError, describe_os_error, one_line
from animatediff.files import is_file, is_folder, remove_stale_parts, to_path
from animatediff.pipelines.motionfollower.pipeline import embedded, resized
from animatediff.pipelines.motionfollower.poses import draw_pose, positions
from animatediff.pipelines.motionfollower.training_keys import VideoData
from animatediff.training.diffusion import TimestepRule, generator_for
from animatediff.training.objective import Fingerprint
from animatediff.training.samples import BatchPlan

IMAGES, POSES, KEYPOINTS = "source_images", "source_poses", "keypoints.npz"
_TAIL = 64  # bytes at the end of a file: of a PNG the checksum of all its pixels
_CHUNK = 32  # frames encoded at once


@dataclass(frozen=True)
class PreparedVideo:
    """A prepared folder's source: frames, and their skeletons as keypoints or drawn."""

    folder: Path

    @property
    def name(self) -> str:
        return str(self.folder)

    @cached_property
    def num_frames(self) -> int:
        """How many frames there are. UserError where frames and skeletons are not of one number."""
        with open_source(self.folder / IMAGES) as source:
            frames = len(source.times)
        if self.keypoints is not None:
            poses, where = len(self.keypoints), KEYPOINTS
        else:
            with open_source(self.folder / POSES) as source:
                poses, where = len(source.times), POSES
        if frames != poses:
            raise UserError(f"{self.folder} has {frames} frames, and {poses} in {where}; give as many of each")
        return frames

    @cached_property
    def content_hash(self) -> str:
        """Equal for equal videos: of every file's name, size and last bytes."""
        digest = hashlib.sha256()
        paths = [path for name in (IMAGES, POSES, KEYPOINTS) for path in _files(self.folder / name)]
        try:
            for path in paths:
                with open(path, "rb") as file:
                    size = file.seek(0, 2)
                    file.seek(max(size - _TAIL, 0))
                    digest.update(f"{path.relative_to(self.folder)}/{size}/".encode() + file.read())
        except OSError as error:
            raise describe_os_error(error, f"reading {self.folder}") from error
        return digest.hexdigest()

    @cached_property
    def keypoints(self) -> np.ndarray | None:
        """The source's keypoints (f 60 3) in pixels of its frames; None where only drawings are there."""
        path = self.folder / KEYPOINTS
        if not is_file(path):
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                keypoints = np.asarray(file["source"], dtype=np.float32)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"cannot read {path} ({one_line(error)[:80]}); expected an array source of keypoints"
            ) from error
        positions(keypoints)  # its shape
        return keypoints

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Frames uint8 (n h w 3) at their own size. UserError where one cannot be read."""
        return _read(self.folder / IMAGES, indices)

    def poses(self, height: int, width: int) -> Iterator[np.ndarray]:
        """The skeleton of each frame at a size, uint8 (height width 3): drawn at it from keypoints, else resized."""
        if self.keypoints is None:
            for index in range(self.num_frames):
                drawn = _read(self.folder / POSES, [index])
                yield resized(drawn, height, width)[0].permute(1, 2, 0).byte().numpy()  # 3 h w -> h w 3
            return
        own_height, own_width = self.frames([0]).shape[1:3]
        scale = np.array([width / own_width, height / own_height, 1.0], np.float32)
        for joints in self.keypoints:
            yield draw_pose(joints * scale, (height, width))


def find_videos(data: VideoData, seed: int) -> tuple[list[PreparedVideo], list[PreparedVideo], list[str]]:
    """(training, validation) videos of `data.root`, and a line for each folder there that is none.

    UserError for a missing root and one without any.
    """
    root = to_path(data.root, "data.root")
    expected = f"expected {root}/<video>/{IMAGES} with {KEYPOINTS} or {POSES} beside it, as prepare writes them"
    if not is_folder(root):
        raise UserError(f"no data folder at {root}; {expected}")
    videos, problems = [], []
    for folder in sorted(path for path in root.iterdir() if is_folder(path) and not path.name.startswith(".")):
        if not is_folder(folder / IMAGES):
            problems.append(f"skipped {folder}: it has no folder {IMAGES}")
        elif not (is_file(folder / KEYPOINTS) or is_folder(folder / POSES)):
            problems.append(f"skipped {folder}: it has neither {KEYPOINTS} nor a folder {POSES}")
        else:
            videos.append(PreparedVideo(folder))
    if not videos:
        found = f" ({problems[0].removeprefix('skipped ')})" if problems else ""
        raise UserError(f"no prepared videos in {root}{found}; {expected}")
    return *split_groups(videos, data.validation_share, seed), problems


class VideoCache:
    """What training needs of every video, made once: VAE moments, image embeddings, skeletons."""

    def __init__(self, data: VideoData, vae: LatentEncoder, image_encoder: CLIPVisionModelWithProjection) -> None:
        self.data, self.vae, self.image_encoder = data, vae, image_encoder
        self.shards = ShardCache(data.cache)
        self._encoders = f"{vae.vae_hash}/{weights_hash(image_encoder)}"

    def key(self, video: PreparedVideo, what: str) -> str:
        """The cache's name for what was made of a video."""
        size = f"{self.data.height}x{self.data.width}"
        return name_of("video", what, video.content_hash, size, self._encoders)

    def __contains__(self, video: PreparedVideo) -> bool:
        return self.key(video, "moments") in self.shards

    def encode(self, video: PreparedVideo) -> dict[str, torch.Tensor]:
        """moments (f 2 c h w), embeds (f dim), skeletons as the bytes of PNGs, and where each ends (f,)."""
        height, width = self.data.height, self.data.width
        moments, embeds = [], []
        for start in range(0, video.num_frames, _CHUNK):
            frames = video.frames(range(start, min(start + _CHUNK, video.num_frames)))
            pixels = resized(frames, height, width) / 127.5 - 1
            moments.append(rearrange(self.vae.moments(pixels), "moment c f h w -> f moment c h w"))
            embeds.append(embedded(self.image_encoder, frames, self.image_encoder.device).float())
        drawn = [cv2.imencode(".png", pose[..., ::-1])[1] for pose in video.poses(height, width)]
        entries = {
            "moments": torch.cat(moments),
            "embeds": torch.cat(embeds),
            "skeletons": torch.from_numpy(np.concatenate(drawn)),
            "ends": torch.tensor([len(part) for part in drawn]).cumsum(0),
        }
        return {self.key(video, what): value for what, value in entries.items()}

    def moments(self, video: PreparedVideo, indices: Sequence[int]) -> torch.Tensor:
        """VAE moments (2 c f h w) of some frames, in ascending order."""
        rows = self._rows(video, "moments", indices)
        return rearrange(rows, "f moment c h w -> moment c f h w")

    def embeds(self, video: PreparedVideo, indices: Sequence[int]) -> torch.Tensor:
        """Image embeddings (f dim) of some frames."""
        return self._rows(video, "embeds", indices)

    def poses(self, video: PreparedVideo, indices: Sequence[int]) -> torch.Tensor:
        """Skeletons (f 3 H W) in [0, 1] of some frames."""
        ends = [0, *self.shards.read(self.key(video, "ends")).tolist()]
        skeletons = self.key(video, "skeletons")
        images = []
        for index in indices:
            png = self.shards.read_rows(skeletons, ends[index], ends[index + 1]).numpy()
            image = cv2.imdecode(png, cv2.IMREAD_COLOR)
            assert image is not None  # a PNG of our own
            images.append(image[..., ::-1])
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255  # f h w 3 -> f 3 h w

    def _rows(self, video: PreparedVideo, what: str, indices: Sequence[int]) -> torch.Tensor:
        first = min(indices)
        rows = self.shards.read_rows(self.key(video, what), first, max(indices) + 1)
        return rows[[index - first for index in indices]]


def fill_cache(
    cache: VideoCache, videos: Sequence[PreparedVideo], least: int, part: int = 0, parts: int = 1, show: bool = True
) -> dict[str, str]:
    """Encode every video that `cache` lacks; part `part` of `parts` where processes share the work.

    Returns what this part found broken, or shorter than `least` frames: name -> why. Safe to interrupt.
    """
    cache.shards.folder.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(cache.shards.folder)
    broken: dict[str, str] = {}
    for video in tqdm(videos[part::parts], desc="encoding videos", disable=not show):
        try:
            if video.num_frames < least:
                raise UserError(f"it has {video.num_frames} frames, expected {least} or more")
            if video not in cache:
                cache.shards.write(cache.encode(video))
        except UserError as error:
            broken[video.name] = one_line(error)
    cache.shards.refresh()
    return broken


@dataclass(frozen=True)
class Data:
    """The videos of a run that can be used, and their cache."""

    train: list[PreparedVideo]
    validation: list[PreparedVideo]
    problems: list[str]
    cache: VideoCache

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Of the training videos, and of their order."""
        hashes = [video.content_hash for video in self.train]
        return Fingerprint(*(hashlib.sha256(repr(names).encode()).hexdigest() for names in (sorted(hashes), hashes)))


def load_data(data: VideoData, seed: int, cache: VideoCache, accelerator: Accelerator) -> Data:
    """Find the videos, encode each once, leave out what is broken or too short. Processes share the encoding."""
    train, validation, problems = find_videos(data, seed)
    least = max(2, data.num_frames)
    part, parts = accelerator.process_index, accelerator.num_processes
    why = fill_cache(cache, [*train, *validation], least, part, parts, accelerator.is_main_process)
    accelerator.wait_for_everyone()
    cache.shards.refresh()

    def usable(video: PreparedVideo) -> bool:
        try:
            if video.num_frames < least:
                raise UserError(f"it has {video.num_frames} frames, expected {least} or more")
            if video not in cache:
                raise UserError(why.get(video.name, "it cannot be read"))
        except UserError as error:
            problems.append(f"skipped {video.name}: {one_line(error)}")
            return False
        return True

    kept, held = list(filter(usable, train)), list(filter(usable, validation))
    if not kept:
        raise UserError(f"no video is left to train on; {problems[-1]}")
    for problem in problems if accelerator.is_main_process else ():
        tqdm.write(problem)
    return Data(kept, held, problems, cache)


# ------------------------------------------------------------------ what makes up a sample


@dataclass(frozen=True)
class SampleRule:
    """How a sample is drawn."""

    seed: int
    data: VideoData
    latent_channels: int
    image_share: float
    pixels_per_latent: int = 8


@dataclass(frozen=True)
class Batch:
    """b samples of f frames each, all on the CPU.

    videos: which video each is of; sources, targets (b f): frames that give the appearance, and frames that are
    denoised; frames (b f 3 H W) in [-1, 1]: the sources' pixels. posterior, noise (b c f h w) and shift (b c) are
    standard normal; dropped (b,) uniform in [0, 1); timesteps (b,).
    """

    numbers: list[int]
    names: list[str]
    videos: list[int]
    sources: torch.Tensor
    targets: torch.Tensor
    frames: torch.Tensor
    posterior: torch.Tensor
    noise: torch.Tensor
    shift: torch.Tensor
    dropped: torch.Tensor
    timesteps: torch.Tensor


class Samples(Dataset):
    """Sample n, for any n, as a Batch of one: every video once per epoch, in an order drawn per epoch."""

    def __init__(self, videos: Sequence[PreparedVideo], rule: SampleRule) -> None:
        self.videos, self.rule = videos, rule

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        """The sample of `place` = (its number, the number of its step's first sample, which decides its kind)."""
        number, first = place
        rule, data = self.rule, self.rule.data
        epoch, position = divmod(number, len(self.videos))
        order = torch.randperm(len(self.videos), generator=generator_for(rule.seed, "epoch", epoch))
        index = int(order[position])
        video = self.videos[index]
        generator = generator_for(rule.seed, number)
        length = data.num_frames
        if torch.rand((), generator=generator_for(rule.seed, "kind", first)) < rule.image_share:
            length = 1
        source, target = draw_clips(video.num_frames, length, data.frame_stride, data.apart, generator)
        frames = resized(video.frames(source), data.height, data.width) / 127.5 - 1
        scale = rule.pixels_per_latent
        shape = (rule.latent_channels, length, data.height // scale, data.width // scale)
        normal = torch.randn((2, 1, *shape), generator=generator)
        return Batch(
            numbers=[number],
            names=[video.name],
            videos=[index],
            sources=torch.tensor([source]),
            targets=torch.tensor([target]),
            frames=frames[None],
            posterior=normal[0],
            noise=normal[1],
            shift=torch.randn((1, rule.latent_channels), generator=generator),
            dropped=torch.rand(1, generator=generator),
            timesteps=TimestepRule().draw(1, generator),
        )


def draw_clips(
    num_frames: int, length: int, stride: int, apart: int, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """Frame numbers of a source and of a target clip of one video, ascending: `length` frames, every `stride`-th.

    The clips begin `apart` frames or more from each other, or as far as the video allows; where it is short for
    the stride, that is smaller. Either may be the earlier one. `num_frames` is at least `length`.
    """
    if length > 1:
        stride = max(1, min(stride, (num_frames - 1) // (length - 1)))
    starts = num_frames - stride * (length - 1)
    first = int(torch.randint(starts, (), generator=generator))
    others = [start for start in range(starts) if abs(start - first) >= apart]
    if others:
        second = others[int(torch.randint(len(others), (), generator=generator))]
    else:
        second = 0 if first >= starts / 2 else starts - 1
    if torch.rand((), generator=generator) < 0.5:
        first, second = second, first
    return tuple([start + stride * k for k in range(length)] for start in (first, second))  # type: ignore[return-value]


def join(samples: Sequence[Batch]) -> Batch:
    """Batches of one made into one batch."""
    joined: dict[str, Any] = {}
    for entry in fields(Batch):
        values = [getattr(sample, entry.name) for sample in samples]
        joined[entry.name] = torch.cat(values) if torch.is_tensor(values[0]) else [v for value in values for v in value]
    return Batch(**joined)


def batches(samples: Samples, plan: BatchPlan, first: int, steps: int, workers: int = 0) -> Iterator[Batch]:
    """This process's batches from sample `first` on; the samples of one step are all images or all clips."""
    forwards = [
        [(number, number - (number - first) % plan.per_step) for number in numbers]
        for numbers in plan.numbers(first, steps)
    ]
    return iter(DataLoader(samples, batch_sampler=forwards, collate_fn=join, num_workers=workers))


def held_out(rule: SampleRule) -> SampleRule:
    """The rule of validation samples: clips alone."""
    return replace(rule, image_share=0.0)


def _files(path: Path) -> list[Path]:
    """A file, or the files of a folder, sorted; none where there is neither."""
    if is_file(path):
        return [path]
    return sorted(entry for entry in path.iterdir() if is_file(entry)) if is_folder(path) else []


def _read(path: Path, indices: Sequence[int]) -> np.ndarray:
    with open_source(path) as source:
        return source.read(indices)
