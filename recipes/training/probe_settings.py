"""The settings of a probe, which pretraining and post-training share."""

from __future__ import annotations

import dataclasses
from typing import Any

from training.arguments import setting


@dataclasses.dataclass
class ProbeSettings:
    """How many rows a probe has, and how they are read."""

    probe_rows: int = setting(256, "rows of a probe")
    probe_length: int = setting(64, "tokens of a row of the probe, where it is not the base's")
    positions: str = setting("8", "last, all, mean, or how many positions of a row are read")
    probe_batch: int = setting(32, "rows of the probe that go through the model together")
    alpha_first: int = setting(11, "first rank of the window of alpha")
    alpha_last: int = setting(100, "last rank of the window of alpha")

    def read_positions(self) -> str | int:
        """Return ``positions`` as the callbacks take it."""
        return int(self.positions) if self.positions.isdigit() else self.positions

    def geometry_settings(self) -> dict[str, Any]:
        """Return the settings of a geometry callback that say how probes are read."""
        return dict(
            positions=self.read_positions(),
            alpha_window=(self.alpha_first, self.alpha_last),
            batch_size=self.probe_batch,
        )
