"""One self-contained HTML page: reference and outputs in step, tracks over them, curves, a sortable table.

The page asks nothing of any network: videos are data URIs, script and style are inline, and its own content security
policy allows only these very ones (by their hashes), so nothing a prompt or a file name contains can run or load.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from animatediff.data.export import save_video
from animatediff.evaluation.evaluate import Row
from animatediff.evaluation.sources import Frames
from animatediff.evaluation.tables import Summary, differences, means, problem_lines, title
from animatediff.evaluation.trackers import Tracks
from animatediff.files import write_text

PAGE = Path(__file__).with_name("page")
MOST_TRACKS = 160  # drawn over one video: half of them those that move most, the rest evenly from the others
PLAYED_EVERYWHERE = {"h264", "vp8", "vp9"}
TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm"}


def write_report(path: str | Path, summary: Summary, rows: Sequence[Row]) -> None:
    """Write the page, atomically. Rows whose frames were not kept appear in its table only."""
    script, style = ((PAGE / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    policy = (
        f"default-src 'none'; media-src data:; script-src 'sha256-{_digest(script)}'; "
        f"style-src 'sha256-{_digest(style)}'; base-uri 'none'; form-action 'none'"
    )
    page = (PAGE / "report.html").read_text(encoding="utf-8")
    data = _inline(page_data(summary, rows))
    for name, text in (("csp", policy), ("style", style), ("script", script), ("data", data)):
        page = page.replace("{{" + name + "}}", text, 1)
    write_text(path, page)


def page_data(summary: Summary, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything the page shows, as JSON."""
    jobs = {key: number for number, key in enumerate(dict.fromkeys(row.item.key for row in rows))}
    pictured = sum(row.frames is not None for row in rows)
    left_out = len(rows) - pictured
    return {
        "about": f"{len(rows)} videos of {len(jobs)} jobs."
        + (f" {left_out} without pictures here: unreadable, or past the key `videos`." if left_out else ""),
        "methods": list(summary.means),
        "columns": [{"key": c.key, "title": c.title, "label": title(c), "digits": c.digits} for c in summary.columns],
        "tables": [_cells(table) for table in (means(summary), differences(summary)) if table],
        "jobs": [_job(key, [row for row in rows if row.item.key == key]) for key in jobs],
        "rows": [_row(row, jobs[row.item.key]) for row in rows],
        "problems": problem_lines(rows),
    }


def _cells(table: Any) -> dict[str, Any]:
    return {"head": table.head, "lines": table.lines, "caption": table.caption}


def _job(key: str, rows: Sequence[Row]) -> dict[str, Any]:
    item = rows[0].item
    shown = next((row for row in rows if row.reference is not None), None)
    frames = max((len(row.frames) for row in rows if row.frames is not None), default=1)
    fps = next((row.fps for row in rows if row.frames is not None), 8.0)
    return {
        "reference": item.reference,
        "prompt": item.prompt,
        "seed": item.seed,
        "frames": frames,
        "fps": fps,
        "video": None if shown is None or shown.reference is None else _encoded(shown.reference, fps),
        "tracks": None if shown is None else _tracks(shown.reference_tracks),
    }


def _row(row: Row, job: int) -> dict[str, Any]:
    return {
        "method": row.item.method,
        "name": row.item.name,
        "prompt": row.item.prompt,
        "job": job,
        "values": {key: _or_null(value) for key, value in row.values.items()},
        "curves": {key: [_or_null(value) for value in curve] for key, curve in row.curves.items()},
        "video": None if row.frames is None else _video(row.item.output, row.frames, row.fps),
        "tracks": _tracks(row.tracks),
        "why": "; ".join(row.problems),
    }


def _video(path: Path, frames: Frames, fps: float) -> str:
    """The output's own bytes where every browser plays them, or its frames encoded anew."""
    kind = TYPES.get(path.suffix.lower())
    if kind is None or not _plays(path):
        return _encoded(frames, fps)
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _plays(path: Path) -> bool:
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        return codec.name in PLAYED_EVERYWHERE and codec.pix_fmt in ("yuv420p", "yuvj420p")


def _encoded(frames: Frames, fps: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        save_video(path, frames, fps)
        return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _tracks(tracks: Tracks | None) -> dict[str, Any] | None:
    """Some of the tracks, in tenths of a pixel: {"xy": [[x0, y0, x1, y1, ...], ...], "seen": ["1101...", ...]}."""
    if tracks is None:
        return None
    steps = np.linalg.norm(np.diff(tracks.tracks, axis=1), axis=-1) * tracks.visibility[:, 1:]
    order = np.argsort(-steps.sum(1), kind="stable")
    if len(order) > MOST_TRACKS:
        half = MOST_TRACKS // 2
        order = np.concatenate([order[:half], order[np.linspace(half, len(order) - 1, half).astype(int)]])
    order = np.sort(order)
    tenths = np.rint(tracks.tracks[order] * 10).astype(int)
    return {
        "xy": [path.ravel().tolist() for path in tenths],
        "seen": ["".join("1" if seen else "0" for seen in row) for row in tracks.visibility[order]],
    }


def _inline(data: Any) -> str:
    """JSON that no HTML parser can leave: no <, >, & and only ASCII."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
