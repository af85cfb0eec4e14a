"""One self-contained page to look at a prepared folder: six sequences in step, and what made and checked them.

The page asks nothing of any network: pictures are data URIs, and its content security policy allows only its own script
and style.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from animatediff.data.video import read_frames
from animatediff.files import write_text
from animatediff.pipelines.motionfollower.prepare.writer import IMAGES, SHEET

PAGE = Path(__file__).with_name("page")
SIDE = 360  # pixels of a picture's longer side
MOST_FRAMES = 120  # on the page; of more, some are left out evenly
QUALITY = 82
PANELS = (  # sequence, title, what it lies over
    ("source_images", "Source", None),
    ("source_poses", "its skeleton", "source_images"),
    ("source_masks", "its mask", "source_images"),
    ("target_images", "Driving clip", None),
    ("target_aligned_poses", "its skeleton on the source's person", "source_images"),
    ("predicted_masks", "the mask in that pose", "source_images"),
)
OVER_DRIVING = "target_poses"  # lies over the driving clip


def write_sheet(folder: Path, log: Mapping[str, Any]) -> None:
    """Write sheet.html into a prepared folder from its sequences and its log."""
    names = [name for name, _, _ in PANELS] + [OVER_DRIVING]
    data = {
        "title": folder.name,
        "fps": log.get("options", {}).get("fps", 8),
        "panels": [{"name": name, "title": title, "under": under} for name, title, under in PANELS],
        "over": OVER_DRIVING,
        "sequences": {name: _encoded(folder / name) for name in names},
        "stages": [{"name": name, **_shown(entry)} for name, entry in log.get("stages", {}).items() if name != "sheet"],
        "clips": {clip: found["path"] for clip, found in log.get("clips", {}).items()},
    }
    script, style = ((PAGE / name).read_text(encoding="utf-8") for name in ("sheet.js", "sheet.css"))
    policy = (
        f"default-src 'none'; img-src data:; script-src 'sha256-{_digest(script)}'; "
        f"style-src 'sha256-{_digest(style)}'; base-uri 'none'; form-action 'none'"
    )
    page = (PAGE / "sheet.html").read_text(encoding="utf-8")
    for name, text in (("csp", policy), ("style", style), ("script", script), ("data", _inline(data))):
        page = page.replace("{{" + name + "}}", text, 1)
    write_text(folder / SHEET, page)


def _encoded(folder: Path) -> list[str]:
    """A sequence as data URIs, small: photographs as JPEG, drawings and masks as PNG."""
    frames = read_frames(folder, None).frames
    photograph = folder.name in IMAGES
    kind, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, QUALITY]) if photograph else (".png", [])
    scale = min(1.0, SIDE / max(frames.shape[1:3]))
    size = max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale))
    found = []
    for i in np.linspace(0, len(frames) - 1, min(len(frames), MOST_FRAMES)).round().astype(int):
        small = cv2.resize(frames[i], size, interpolation=cv2.INTER_AREA)
        grey = folder.name.endswith("masks")
        _, coded = cv2.imencode(kind, small[..., 0] if grey else np.ascontiguousarray(small[..., ::-1]), options)
        mime = "image/jpeg" if photograph else "image/png"
        found.append(f"data:{mime};base64,{base64.b64encode(coded.tobytes()).decode()}")
    return found


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the page tells of a stage."""
    checks = [
        {"text": f"{check['what']}: {100 * check['value']:.0f}%", "good": check["good"]}
        for check in entry.get("checks", ())
    ]
    if "torso" in entry:
        checks.append({"text": f"torso: {entry['torso']:.2f} of the source's", "good": True})
    return {
        "made_by": entry.get("made_by", ""),
        "seconds": entry.get("seconds"),
        "checks": checks,
        "warnings": list(entry.get("warnings", ())),
    }


def _inline(data: Any) -> str:
    """JSON that no HTML parser can leave: no <, >, & and only ASCII."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
