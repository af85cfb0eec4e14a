"""What finds people, their joints and their outlines: one table, and which of it can work here."""

from __future__ import annotations

from animatediff.pipelines.motionfollower.prepare.detectors.choice import (
    MASKERS,
    POSERS,
    Found,
    Masker,
    Poser,
    Tools,
    choose_masker,
    choose_poser,
)

__all__ = ["MASKERS", "POSERS", "Found", "Masker", "Poser", "Tools", "choose_masker", "choose_poser"]
