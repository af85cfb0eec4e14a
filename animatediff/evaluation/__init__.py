"""Measuring transfers: metrics as pure functions, trackers behind one small interface, tables and a report.

The command is scripts/evaluate.py; from Python:

    from animatediff.evaluation import LucasKanade, motion_fidelity
    track = LucasKanade()
    output, reference = track(output_frames), track(reference_frames)  # uint8 [f, h, w, 3]
    motion_fidelity(output.tracks, reference.tracks, output.visibility, reference.visibility)
"""

from animatediff.evaluation.camera import global_motion, global_motion_error
from animatediff.evaluation.metrics import motion_fidelity, temporal_consistency, text_alignment, track_distance
from animatediff.evaluation.trackers import CoTracker, LucasKanade, Tracker, Tracks

__all__ = [
    "CoTracker",
    "LucasKanade",
    "Tracker",
    "Tracks",
    "global_motion",
    "global_motion_error",
    "motion_fidelity",
    "temporal_consistency",
    "text_alignment",
    "track_distance",
]
