"""With which program a recipe starts another one."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def find_launcher(launcher: str) -> list[str]:
    """Return the words before the script; a program beside this Python's is found without an activated environment.

    Raises:
        ValueError: there is no such program.
    """
    if launcher == "python":
        return [sys.executable]
    words = shlex.split(launcher)
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    program = shutil.which(words[0], path=places) if words else None
    if program is None:
        raise ValueError(
            f"launcher={launcher!r}: no such program; give 'python' or 'accelerate launch --num_processes 1'"
        )
    return [program, *words[1:]]
