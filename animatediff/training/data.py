"""The pairs of a run: found, tried or encoded once, and handed to the loop."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from accelerate import Accelerator

from animatediff.config import option
from animatediff.data.latents import (
    EncodedInputs,
    Encoder,
    Inputs,
    PrecomputedInputs,
    ShardCache,
    fill_cache,
    find_broken,
    uncached,
)
from animatediff.data.pairs import ClipShape, Group, TrainingClip, all_clips, keep_readable
from animatediff.data.sources import SOURCES
from animatediff.data.video import resolve_size
from animatediff.errors import UserError
from animatediff.models.unet import MAX_FRAMES
from animatediff.pipelines.method import MAX_SIDE
from animatediff.pipelines.video import size_multiple
from animatediff.training.objective import Fingerprint

TRAINING_FITS = ("stretch", "crop", "pad")  # one size for all clips of a batch


@dataclass
class DataConfig:
    """Groups of clips that share a motion."""

    source: str = option(
        "folder",
        "folder: clips in `root`; synthetic: the moving-shape world, rendered from its seed",
        choices=tuple(SOURCES),
    )
    root: str | None = option("data/pairs", "<root>/<group>/*.mp4; a manifest.jsonl may say path, group, caption")
    num_frames: int = option(16, "frames of a clip", least=1, most=MAX_FRAMES)
    height: int = option(512, "pixels", least=8, most=MAX_SIDE)
    width: int = option(512, "pixels", least=8, most=MAX_SIDE)
    fit: str = option("stretch", "how frames are brought to height x width", choices=TRAINING_FITS)
    validation_share: float = option(0.1, "of the groups; they are never trained on", least=0, most=0.9)
    cache: str | None = option(
        "data/cache", "folder of precomputed latents and text embeddings; null: encode in the loop", pixels=False
    )
    workers: int = option(2, "processes that read clips; only without `cache`", least=0, most=256, pixels=False)
    synthetic_groups: int = option(2000, "motions, each with ...", least=1, most=10_000_000)
    synthetic_clips: int = option(3, "... this many contents", least=2, most=64)
    synthetic_camera_share: float | None = option(
        None, "of the motions; null: as they are drawn, a quarter", least=0, most=1
    )
    synthetic_validation_groups: int = option(32, "held-out motions with held-out contents", least=0, most=10_000)
    synthetic_seed: int = option(0, "of all motions and contents", least=0, most=2**31 - 2)


@dataclass(frozen=True)
class Data:
    """The readable groups of a run and where their latents and texts come from."""

    train: list[Group]
    validation: list[Group]
    problems: list[str]  # clips and groups left out, one line each
    inputs: Inputs
    workers: int

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Of the training clips, and of the order of groups and clips that samples are drawn from."""
        hashes = [[clip.content_hash for clip in group.clips] for group in self.train]
        return Fingerprint(
            clips=hashlib.sha256(repr(sorted(name for group in hashes for name in group)).encode()).hexdigest(),
            order=hashlib.sha256(repr(hashes).encode()).hexdigest(),
        )


def find_groups(data: DataConfig, seed: int) -> tuple[list[Group], list[Group]]:
    """(training, validation) groups of the configured source, none of them read yet."""
    return SOURCES[data.source].find(data, seed)


def describe_data(data: DataConfig, seed: int) -> list[str]:
    """How many clips and groups there are, a line for each split."""

    def line(name: str, groups: Sequence[Group]) -> str:
        return f"{name}: {sum(len(group.clips) for group in groups)} clips in {len(groups)} groups"

    train, validation = find_groups(data, seed)
    return [line("training", train), line("validation", validation)]


def clip_shape(data: DataConfig, vae_scale: int) -> ClipShape:
    """How clips are read. UserError for sizes that the pipelines, which validation generates with, do not take."""
    multiple = size_multiple(vae_scale)
    height, width = resolve_size(data.height, data.width, data.height, data.width, data.fit, multiple)
    return ClipShape(data.num_frames, height, width, data.fit)


def load_data(data: DataConfig, seed: int, encoder: Encoder, shape: ClipShape, accelerator: Accelerator) -> Data:
    """Find the clips, try or encode each once, leave out what is broken. Processes share the encoding."""
    train, validation = find_groups(data, seed)
    clips = list(all_clips([*train, *validation]))
    show = accelerator.is_main_process
    inputs: Inputs
    if data.cache is None:
        broken = find_broken(clips, shape, show)
        inputs = EncodedInputs(encoder, shape, accelerator.device)
    else:
        cache = ShardCache(data.cache)
        part, parts = accelerator.process_index, accelerator.num_processes
        why = fill_cache(cache, encoder, clips, shape, part, parts, show)
        accelerator.wait_for_everyone()
        broken = uncached(cache, encoder, clips, shape, why)
        inputs = PrecomputedInputs(cache, encoder, shape, accelerator.device)
    kept, held = keep_readable(train, broken), keep_readable(validation, broken)
    if not kept.groups:
        raise UserError(f"no group is left to train on; {len(broken)} clips cannot be read")
    problems = list(dict.fromkeys([*kept.problems, *held.problems]))
    return Data(kept.groups, held.groups, problems, inputs, data.workers if data.cache is None else 0)


def validation_pairs(groups: Sequence[Group], count: int) -> list[tuple[TrainingClip, TrainingClip]]:
    """(reference, target) of at most `count` groups: the first clip and the first that differs from it."""
    pairs = []
    for group in groups[:count]:
        first = group.clips[0]
        pairs.append((first, next(clip for clip in group.clips if clip.content_hash != first.content_hash)))
    return pairs
