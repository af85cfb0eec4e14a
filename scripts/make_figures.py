"""Make the README's pictures from a folder of outputs of the miniature: what was asked, what came, where it moved.

    python scripts/make_figures.py outputs --to assets/figures
    python scripts/make_figures.py outputs --to assets/figures --run runs/miniature

Writes transfers.gif (reference, prompt, output, playing together) and tracks.png (the subject's path in both); with
the folder of the training run also curve.png, its measures on held-out clips over the steps.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from animatediff.console import run_command
from animatediff.data.export import save_gif
from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.files import Keys, atomic_path, read_json
from animatediff.miniature.palette import read_clip

RECORD: Keys = {"reference": str, "output": str, "prompt": str, "reference_frames": {"indices": list[int]}}
MEASURES: Keys = {"mean": dict[str, float | None]}
SCALE = 2  # of the videos in the animation
CAPTION = 44  # pixels under each pair


@dataclass(frozen=True)
class Transfer:
    """One output with the frames of its reference that were used, both uint8 [f, h, w, 3]."""

    name: str
    prompt: str
    reference: np.ndarray
    output: np.ndarray


def main() -> int:
    """Read the folder, draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="outputs of inference.py: videos with a JSON beside each")
    parser.add_argument("--to", type=Path, default=Path("assets/figures"), help="where the pictures go")
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        help="outputs of train.py with validation.measures=world, each gone on from the one before: plot their curve",
    )
    parser.add_argument("--columns", type=int, default=3)
    arguments = parser.parse_args()
    transfers = read_transfers(arguments.folder)
    save_gif(arguments.to / "transfers.gif", animation(transfers, arguments.columns), fps=8)
    plot_tracks(arguments.to / "tracks.png", transfers, arguments.columns)
    print(f"{arguments.to / 'transfers.gif'} and tracks.png, of {len(transfers)} outputs")
    if arguments.run is not None:
        plot_curve(arguments.to / "curve.png", read_curve(arguments.run))
        print(f"{arguments.to / 'curve.png'}, of {', '.join(map(str, arguments.run))}")
    return 0


def read_transfers(folder: Path) -> list[Transfer]:
    """Every output under `folder` that has its JSON; UserError where there is none."""
    transfers = []
    for path in sorted(folder.glob("*/*.json")):
        facts = read_json(path, RECORD, required=list(RECORD))
        indices = facts["reference_frames"]["indices"]
        reference = read_frames(facts["reference"], None).frames[indices]
        output = read_frames(path.with_name(facts["output"]), None).frames
        transfers.append(Transfer(Path(facts["reference"]).stem, facts["prompt"], reference, output))
    if not transfers:
        raise UserError(f"no outputs with a JSON in the folders of {folder}; run inference.py first")
    return transfers


def animation(transfers: list[Transfer], columns: int) -> np.ndarray:
    """A grid of pairs, reference left, output right, the prompt below; uint8 [f, h, w, 3]."""
    frames = min(len(transfer.output) for transfer in transfers)
    return np.stack([_grid([_cell(t, i) for t in transfers], columns) for i in range(frames)])


def plot_tracks(path: Path, transfers: list[Transfer], columns: int) -> None:
    """The subject's path in the reference (grey) and in the output (blue), a dot at its start."""
    rows = -(-len(transfers) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(transfers) :]:
        axis.set_visible(False)
    for axis, transfer in zip(axes.flat, transfers, strict=False):
        height, width = transfer.output.shape[1:3]
        for frames, colour, label in ((transfer.reference, "0.6", "reference"), (transfer.output, "C0", "output")):
            track = read_clip(frames).track
            axis.plot(*track.T, color=colour, label=label, linewidth=2)
            axis.plot(*track[0], "o", color=colour)
        axis.set(xlim=(0, width), ylim=(height, 0), aspect="equal", xticks=[], yticks=[])
        axis.set_title("\n".join(textwrap.wrap(transfer.prompt, 28)), fontsize=8)
    axes[0, 0].legend(fontsize=8)
    _save(figure, path)


def read_curve(runs: Sequence[Path]) -> dict[int, dict[str, float]]:
    """Step -> means over the validation clips, as train.py wrote them; UserError where there are none.

    Each of `runs` went on from the one before; steps are counted through.
    """
    curve: dict[int, dict[str, float]] = {}
    for run in runs:
        before = max(curve, default=0)
        found = {int(p.parent.name.removeprefix("step-")): p for p in run.glob("validation/step-*/measures.json")}
        means = {step: read_json(path, MEASURES, ["mean"])["mean"] for step, path in sorted(found.items())}
        if not any("cosine" in row for row in means.values()):
            raise UserError(f"{run} holds no measured validation; train with validation.measures=world")
        curve |= {before + step: row for step, row in means.items()}
    return curve


def plot_curve(path: Path, curve: dict[int, dict[str, float]]) -> None:
    """The cosine and the distance of the subject's motion over training steps, side by side."""
    figure = Figure(figsize=(7.8, 2.6), layout="constrained")
    wanted = {"cosine": ("motion cosine", 0.9), "distance": ("distance, % of the width", 4.0)}
    for axis, (key, (label, target)) in zip(figure.subplots(1, 2), wanted.items(), strict=True):
        axis.plot(list(curve), [means[key] for means in curve.values()], marker="o")
        axis.axhline(target, color="0.6", linestyle="--", label="wanted")
        axis.set(xlabel="step", ylabel=label)
        axis.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as part:
        figure.savefig(part, dpi=120)


def _cell(transfer: Transfer, i: int) -> np.ndarray:
    height, width = transfer.output.shape[1] * SCALE, transfer.output.shape[2] * SCALE
    cell = Image.new("RGB", (2 * width + 12, height + CAPTION), "white")
    for x, frame in ((0, transfer.reference[i]), (width + 4, transfer.output[i])):
        cell.paste(Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST), (x, 0))
    text = "\n".join(textwrap.wrap(transfer.prompt, 40)[:2])
    ImageDraw.Draw(cell).text((2, height + 4), text, fill="black", font_size=12)
    return np.asarray(cell)


def _grid(cells: list[np.ndarray], columns: int) -> np.ndarray:
    blank = np.full_like(cells[0], 255)
    cells = cells + [blank] * (-len(cells) % columns)
    rows = [np.concatenate(cells[i : i + columns], axis=1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows)


if __name__ == "__main__":
    run_command(main)
