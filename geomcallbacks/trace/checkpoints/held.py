"""Which weights a checkpoint holds: those that training moves, an average of them, or both."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from geomcallbacks.reading.weights import TRAINING, average, is_average, schedule_free

#: Which weights are measured, where a checkpoint holds both.
Weights = Literal["training", "average"]


def lightning_states(checkpoint: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return each set of weights in a Lightning checkpoint by its label, first the one that the module is loaded with.

    Lightning's WeightAveraging puts the average in place of the module's own weights, and those beside it; its
    StochasticWeightAveraging keeps the average in its own state, until it copies it into the module as training ends.
    """
    main = checkpoint["state_dict"]
    callbacks = {name: state for name, state in checkpoint.get("callbacks", {}).items() if isinstance(state, Mapping)}
    if (raw := checkpoint.get("current_model_state")) is not None:
        label = average(next((name for name, state in callbacks.items() if "latest_update_step" in state), "weights"))
        count = checkpoint.get("averaging_state", {}).get("n_averaged", 0)
        # An average of more than one that is the same has been copied into the module: training has ended.
        return {label: main} if int(count) > 1 and _same(main, raw) else {label: main, TRAINING: raw}
    for name, state in callbacks.items():
        kept = state.get("average_model_state")
        if kept is not None and state.get("n_averaged", 0) > 0:
            return {average(name): main} if _same(main, kept) else {TRAINING: main, average(name): kept}
    return {schedule_free(checkpoint.get("optimizer_states", [])): main}


def folder_weights(folder: Path) -> str:
    """Return the label of the weights in a folder, by the optimiser's state beside them."""
    for name in ("optimizer.pt", "optimizer.bin"):
        with suppress(Exception):  # there is none, or a foreign one: then nothing is known against training's own
            return schedule_free([torch.load(folder / name, map_location="cpu", mmap=True, weights_only=True)])
    return TRAINING


def choose(labels: list[str], wanted: Weights | None, source: object) -> str:
    """Return the label of the weights that are wanted; None: of those that the checkpoint is loaded with.

    Raises:
        ValueError: it does not hold them.
    """
    if wanted is None:
        return labels[0]
    for label in labels:
        if is_average(label) == (wanted == "average"):
            return label
    raise ValueError(f"{source} holds {' and '.join(labels)} weights alone: leave out --weights {wanted}")


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
