"""Which candidates become pairs: scores against thresholds, then what a person decided, then the training folder."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from animatediff.data.pairs import MANIFEST
from animatediff.errors import UserError, nearest, shown
from animatediff.evaluation.measures import Column
from animatediff.files import atomic_path, read_json, write_jsonl

SCORES = "scores.jsonl"
KEEP, REJECT = VERDICTS = ("keep", "reject")


@dataclass
class Candidate:
    """One generated clip with its scores and, where it is not to be trained on, the reasons."""

    name: str  # <group>/<file>, the name under which a person decides on it
    group: str
    reference: str
    prompt: str
    seed: int
    output: Path
    scores: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    by_hand: str | None = None

    @property
    def kept(self) -> bool:
        """What a person decided counts; a candidate that was not made cannot be kept."""
        return self.output.is_file() and (self.by_hand == KEEP or (self.by_hand is None and not self.reasons))


def check_thresholds(thresholds: Mapping[str, float], columns: Sequence[Column]) -> None:
    """UserError for a threshold on something that is not measured, or that has no better side."""
    known = [column.key for column in columns if column.better]
    for key, value in thresholds.items():
        if key not in known:
            raise UserError(f"thresholds has '{key}'; {nearest(key, known)}")
        if math.isnan(value):
            raise UserError(f"thresholds.{key} is nan, expected a number")


def judge(candidate: Candidate, thresholds: Mapping[str, float], columns: Sequence[Column]) -> None:
    """Fill `candidate.reasons` from its scores. A score that could not be had (NaN) is a reason of its own."""
    for column in columns:
        if column.key not in thresholds:
            continue
        score, limit = candidate.scores.get(column.key, math.nan), thresholds[column.key]
        if math.isnan(score):
            candidate.reasons.append(f"{column.title} cannot be measured")
        elif (score < limit) if column.better == "higher" else (score > limit):
            side = "below" if column.better == "higher" else "above"
            candidate.reasons.append(f"{column.title} {score:.3f} is {side} {limit:g}")


def read_decisions(path: str | Path, candidates: Sequence[Candidate]) -> None:
    """Take over what the contact sheet exported: {"<name>": "keep" or "reject"}. UserError for anything else."""
    decisions = read_json(path)
    by_name = {candidate.name: candidate for candidate in candidates}
    for name, verdict in decisions.items():
        if name not in by_name:
            raise UserError(f"{path} decides on '{name}', which is no candidate here; {nearest(name, list(by_name))}")
        if verdict not in VERDICTS:
            raise UserError(f"{path} says {shown(verdict)} of '{name}', expected {' or '.join(VERDICTS)}")
        by_name[name].by_hand = verdict


def distribution(candidates: Sequence[Candidate], thresholds: Mapping[str, float]) -> str:
    """Lowest, median and highest score for every threshold, in one line."""
    parts = []
    for key, limit in thresholds.items():
        known = [c.scores[key] for c in candidates if not math.isnan(c.scores.get(key, math.nan))]
        spread = f"{min(known):.3f} / {statistics.median(known):.3f} / {max(known):.3f}" if known else "not measured"
        parts.append(f"{key} {spread} against {limit:g}")
    return "; ".join(parts) or "no thresholds are set"


def write_scores(path: Path, candidates: Sequence[Candidate]) -> None:
    """One JSON object a line: every candidate, its scores (null: not to be had), its reasons, and the verdict."""
    write_jsonl(path, (asdict(each) | {"output": str(each.output), "kept": each.kept} for each in candidates))


def write_pairs(out: Path, candidates: Sequence[Candidate], references: Mapping[str, tuple[Path, str]]) -> int:
    """Make `out` a folder that train.py reads: kept candidates beside their reference, and the manifest; their number.

    references: group -> (video of the reference in `out`, its caption). Groups without a kept candidate are left out.
    Clips that an earlier selection kept and this one does not are taken away.
    """
    kept = [candidate for candidate in candidates if candidate.kept]
    rows, wanted = [], set()
    for group in dict.fromkeys(candidate.group for candidate in kept):
        video, caption = references[group]
        rows.append({"path": video.relative_to(out).as_posix(), "group": group, "caption": caption})
    for candidate in kept:
        place = out / "pairs" / candidate.group / candidate.output.name
        wanted.add(place)
        with atomic_path(place) as part:
            shutil.copyfile(candidate.output, part)
        rows.append({"path": place.relative_to(out).as_posix(), "group": candidate.group, "caption": candidate.prompt})
    write_jsonl(out / MANIFEST, rows)
    for stale in set((out / "pairs").glob("*/*.mp4")) - wanted:
        stale.unlink()
    return len(kept)
