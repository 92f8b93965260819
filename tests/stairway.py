"""Which files of the package one measured `on_step_end` enters on its way to a W&B row, and where a call climbs back.

`python tests/stairway.py FOLDER` prints both. A call climbs where its file does not import, directly or by way of
others, the file that it enters: it comes back through a function that was handed down.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def imports(folder: Path, package: str = "") -> dict[str, set[str]]:
    """Modules below `folder` that each of them imports, anywhere in its file; `package` is the name in front."""
    files: dict[str, Path] = {}
    for path in folder.rglob("*.py"):
        parts = [*filter(None, [package]), *path.relative_to(folder).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                within = {f"{node.module}.{alias.name}" for alias in node.names} & files.keys()
                # A module of a package is not its `__init__`.
                names |= within if len(within) == len(node.names) else {*within, node.module}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        found[module] = (names & files.keys()) - {module}
    return found


def reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """Everything that `start` imports, by way of others too."""
    seen, todo = {start}, [start]
    while todo:
        for other in graph[todo.pop()] - seen:
            seen.add(other)
            todo.append(other)
    return seen


def walk(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[list[str], list[str]]:
    """The package's modules that a call enters, in order, and what of it climbs, `from.function -> to.function`."""
    graph = imports(ROOT / "geomcallbacks", "geomcallbacks")
    files: list[str] = []
    climbs: list[str] = []

    def module(frame: FrameType | None) -> str:
        return frame.f_globals.get("__name__", "") if frame is not None else ""

    def trace(frame: FrameType, event: str, arg: Any) -> None:
        name = module(frame)
        if event != "call" or name not in graph:
            return
        if name not in files:
            files.append(name)
        caller = frame.f_back
        while caller is not None and module(caller) not in graph:
            caller = caller.f_back
        if caller is not None and name not in reached(graph, module(caller)):
            climbs.append(f"{module(caller)}.{caller.f_code.co_name} -> {name}.{frame.f_code.co_name}")

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(*args, **kwargs)
    finally:
        sys.settrace(before)
    return files, climbs


def on_its_way_to_wandb(folder: Path) -> tuple[list[str], list[str]]:
    """`walk` of the measurement at update 2 of a Trainer that reports to W&B."""
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder), HF_HUB_OFFLINE="1")
    import tiny
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    import geomcallbacks.hf

    ids, mask = tiny.rows(64, seed=5)
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": mask.tolist(), "labels": ids.tolist()})
    args = TrainingArguments(
        str(folder), max_steps=2, save_strategy="no", report_to="wandb", use_cpu=True, disable_tqdm=True
    )
    callback, found = geomcallbacks.hf.GeometryCallback(tiny.probe(), **tiny.watching()), []
    hook = callback.on_step_end

    def traced(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            found.append(walk(hook, args, state, control, **kwargs))
        else:
            hook(args, state, control, **kwargs)

    callback.on_step_end = traced
    Trainer(tiny.model("olmo2"), args, train_dataset=data, callbacks=[callback]).train()
    return found[0]


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    entered, climbed = on_its_way_to_wandb(Path(sys.argv[1]))
    print(len(entered), "files:", *entered, sep="\n  ")
    print(len(climbed), "climbs:", *climbed, sep="\n  ")
