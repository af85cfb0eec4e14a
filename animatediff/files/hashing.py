"""What a file or a folder holds, as one hash."""

from __future__ import annotations

import hashlib
from pathlib import Path

from animatediff.errors import describe_os_error


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(file.name.encode() if path.is_dir() else b"")
                with open(file, "rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    return digest.hexdigest()
