"""One way to write a file whole: whoever reads it finds the old one or the new one, also after a kill."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`, through a file beside it that takes its place.

    The scratch file is unlinked first, so that nothing is written through a link that came with a folder. Its name
    holds the process's number: several may write the same path.

    Raises:
        OSError: the folder cannot be written, or the disk is full. What stood at `path` stands there still.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    scratch.unlink(missing_ok=True)
    try:
        with scratch.open("xb") as file:
            file.write(data)  # not forced to the disk: that would hold up training on a slow one
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
