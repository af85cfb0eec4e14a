"""The contact sheet: every candidate playing beside its reference, to keep or reject by hand."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from animatediff.curation.selection import Candidate
from animatediff.evaluation.measures import Column
from animatediff.files import to_json, write_text

PAGE = Path(__file__).with_name("page")
SHEET = "contact_sheet.html"


def write_sheet(
    out: Path,
    candidates: Sequence[Candidate],
    references: Mapping[str, tuple[Path, str]],
    columns: Sequence[Column],
    about: str,
) -> Path:
    """Write the page into `out`; its videos are linked there by relative path, and it asks nothing of any network.

    Script and style are allowed by their hashes only, so nothing that a prompt or a file name contains can run.
    """
    script, style = ((PAGE / f"sheet.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    policy = (
        f"default-src 'none'; media-src 'self' file:; script-src 'sha256-{_digest(script)}'; "
        f"style-src 'sha256-{_digest(style)}'; base-uri 'none'; form-action 'none'"
    )
    made = [candidate for candidate in candidates if candidate.output.is_file()]
    groups = [
        {
            "name": group,
            "video": _link(references[group][0], out),
            "caption": references[group][1],
            "candidates": [_card(candidate, columns, out) for candidate in made if candidate.group == group],
        }
        for group in dict.fromkeys(candidate.group for candidate in made)
    ]
    decisions = {candidate.name: candidate.by_hand for candidate in made if candidate.by_hand}
    identity = hashlib.sha256("\n".join(candidate.name for candidate in made).encode()).hexdigest()
    data = {"id": identity, "about": about, "groups": groups, "decisions": decisions}
    text = to_json(data).replace("<", "\\u003c")
    page = (PAGE / "sheet.html").read_text(encoding="utf-8")
    for name, value in (("csp", policy), ("style", style), ("script", script), ("data", text)):
        before, _, after = page.partition("{{" + name + "}}")
        page = before + value + after
    write_text(out / SHEET, page)
    return out / SHEET


def _card(candidate: Candidate, columns: Sequence[Column], out: Path) -> dict[str, object]:
    scores = [
        f"{column.title} {candidate.scores[column.key]:.{column.digits}f}"
        for column in columns
        if not math.isnan(candidate.scores.get(column.key, math.nan))
    ]
    return {
        "name": candidate.name,
        "video": _link(candidate.output, out),
        "prompt": candidate.prompt,
        "scores": ", ".join(scores),
        "reasons": candidate.reasons,
    }


def _link(video: Path, out: Path) -> str:
    return quote(video.relative_to(out).as_posix())


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
