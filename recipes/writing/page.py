"""Pages of Markdown from a template: its prose stands in the template, numbers and tables are filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


def fill(template: Path, **values: Any) -> str:
    """Return the page of a Jinja template; a name that it uses and that is not given is an error."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
