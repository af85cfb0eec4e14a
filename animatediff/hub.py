"""Where the published weights come from and where they go: the one table that README, downloader and dry run read.

Adding a model is adding a row. animatediff/hub_download.py fetches what the rows name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from animatediff.errors import UserError
from animatediff.files import read_json

RECORD = "downloads.json"  # under models/: what each place was fetched from


@dataclass(frozen=True)
class Published:
    """One published model: one file, or the files of one folder.

    `files` pairs each place under `models/` with its path in the hub repository `repo`; `patterns` name further files
    of the repository (as snapshot_download's allow_patterns), which keep their paths in the folder of the first one.
    `revision` (a commit) and `sha256` (place -> digest) pin what is known; what they leave open is settled by the
    first download, recorded in `models/downloads.json` and held to from then on. `size` is for readers; the
    downloader takes exact sizes from the hub.
    """

    name: str
    repo: str
    files: tuple[tuple[str, str], ...]
    size: str
    purpose: str
    optional: bool = False
    patterns: tuple[str, ...] = ()
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """The file, or the folder of all files, under `models/`."""
        if len(self.files) == 1 and not self.patterns:
            return self.files[0][0]
        return "/".join(PurePosixPath(self.files[0][0]).parts[:2]) + "/"

    def missing(self, models: Path) -> list[str]:
        """The places under `models` where nothing lies yet; of `patterns`, those that a download was to fill."""
        places = [place for place, _ in self.files]
        if self.patterns:
            places += [place for place in read_record(models) if place.startswith(self.place) and place not in places]
        return [place for place in places if not (models / place).is_file()]


def read_record(models: Path) -> dict[str, dict[str, Any]]:
    """Place under `models` -> {repo, source, revision, size, sha256} of its download; empty where none was recorded.

    `sha256` is None until the file has come. UserError where the file is not such a record.
    """
    path = models / RECORD
    if not path.is_file():
        return {}
    record = read_json(path)
    texts = ("repo", "source", "revision")
    if not isinstance(record, dict) or not all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), str) for key in texts)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("sha256", 0), str | None)
        for entry in record.values()
    ):
        raise UserError(f"{path} is not the downloader's record; delete it, and the next download writes a new one")
    return record


_SD15 = "StableDiffusion/stable-diffusion-v1-5"
# What a text-to-video run reads: full-precision safetensors, neither the variants nor the safety checker.
_SD15_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
)


def _diffusers_folder(name: str, repo: str, folder: str, size: str, purpose: str) -> Published:
    """An optional row for a text-to-video transformer as diffusers saves it: safetensors, configurations, tokenizer."""
    parts = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    return Published(
        name,
        repo,
        ((f"{folder}/model_index.json", "model_index.json"),),
        size,
        purpose,
        optional=True,
        patterns=tuple(f"{part}/*.{kind}" for part in parts for kind in ("json", "safetensors", "model")),
    )


PUBLISHED = (
    Published(
        "stable-diffusion",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        tuple((f"{_SD15}/{file}", file) for file in _SD15_FILES),
        "4.3 GB",
        "base text-to-image model",
    ),
    Published(
        "motion-module",
        "guoyww/animatediff",
        (("Motion_Module/v3_sd15_mm.ckpt", "v3_sd15_mm.ckpt"),),
        "1.67 GB",
        "AnimateDiff v3 motion modules",
    ),
    Published(
        "dreambooth",
        "guoyww/animatediff_t2i_backups",
        (("DreamBooth_LoRA/realisticVisionV60B1_v51VAE.safetensors", "realisticVisionV60B1_v51VAE.safetensors"),),
        "2.13 GB",
        "Realistic Vision, the look of the published results",
    ),
    Published(
        "adapter",
        "yfcai/EfficientMT",
        (("Integrated_Attention/checkpoint.ckpt", "Integrated_Attention/checkpoint.ckpt"),),
        "0.5 to 5.3 GB",
        "EfficientMT's trained adapter",
    ),
    Published(
        "domain-adapter",
        "guoyww/animatediff",
        (("Motion_Module/v3_sd15_adapter.ckpt", "v3_sd15_adapter.ckpt"),),
        "0.10 GB",
        "AnimateDiff v3 domain LoRA, for image and sketch conditions",
        optional=True,
    ),
    Published(
        "sparsectrl-rgb",
        "guoyww/animatediff",
        (("SparseCtrl/v3_sd15_sparsectrl_rgb.ckpt", "v3_sd15_sparsectrl_rgb.ckpt"),),
        "1.99 GB",
        "SparseCtrl for image conditions",
        optional=True,
    ),
    Published(
        "sparsectrl-scribble",
        "guoyww/animatediff",
        (("SparseCtrl/v3_sd15_sparsectrl_scribble.ckpt", "v3_sd15_sparsectrl_scribble.ckpt"),),
        "1.99 GB",
        "SparseCtrl for sketch conditions",
        optional=True,
    ),
    _diffusers_folder(
        "cogvideox-2b", "zai-org/CogVideoX-2b", "CogVideoX/CogVideoX-2b", "about 14 GB", "CogVideoX 2B, for DiTFlow"
    ),
    _diffusers_folder(
        "cogvideox-5b", "zai-org/CogVideoX-5b", "CogVideoX/CogVideoX-5b", "about 21 GB", "CogVideoX 5B, for DiTFlow"
    ),
    _diffusers_folder(
        "wan-1.3b",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "Wan/Wan2.1-T2V-1.3B-Diffusers",
        "about 29 GB",
        "Wan 2.1 1.3B, for DiTFlow",
    ),
    _diffusers_folder(
        "wan-14b",
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "Wan/Wan2.1-T2V-14B-Diffusers",
        "about 80 GB",
        "Wan 2.1 14B, for DiTFlow",
    ),
)


def find_source(source: str, listing: Collection[str]) -> str | None:
    """The path in a repository's `listing` that `source` means, or None where that is not certain.

    The path itself; else the one file of that name in another folder; else the one file of that kind that bears no
    other published name (the adapter's name in its repository is not known for sure).
    """
    if source in listing:
        return source
    name = PurePosixPath(source)
    others = {PurePosixPath(path).name for model in PUBLISHED for _, path in model.files} - {name.name}
    same_name = [path for path in listing if PurePosixPath(path).name == name.name]
    same_kind = [p for p in listing if PurePosixPath(p).suffix == name.suffix and PurePosixPath(p).name not in others]
    for found in (same_name, same_kind):
        if found:
            return found[0] if len(found) == 1 else None
    return None


def markdown_table(models: Path | None = None) -> str:
    """The table of published weights as Markdown; with a `models` folder, a last column says what is there."""
    head = ["name", "place", "size", "from", "what it is"] + (["here"] if models else [])
    rows = [head]
    for model in PUBLISHED:
        what = model.purpose + (" (optional)" if model.optional else "")
        row = [model.name, f"models/{model.place}", model.size, model.repo, what]
        if models:
            missing = len(model.missing(models))
            row.append("yes" if not missing else "no" if missing == len(model.files) else "in part")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows)
