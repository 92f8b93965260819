"""Runs the stages of a contrast that are not finished."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from contrasts.plan import Step, base_step, chain_steps, from_base_steps, overtraining_steps, seed_folder

if TYPE_CHECKING:
    from contrast import ContrastSettings


class StageFailure(Exception):
    """A stage ended with an error; the message holds the command and the end of its output."""


class Runner:
    """Runs what is not finished, several stages side by side.

    Args:
        settings: Those of the contrast.
        scripts: Folder of the recipes and their ``configs/``.

    Raises:
        ValueError: The launcher or a configuration does not exist.
    """

    def __init__(self, settings: ContrastSettings, scripts: Path) -> None:
        self.settings, self.scripts, self.output_dir = settings, scripts, Path(settings.output_dir)
        self.launcher = find_launcher(settings.launcher)
        names = {"pretrain": "base", "sft": "sft", "dpo": "dpo", "grpo": "grpo"}
        folder, preset = scripts / "configs", settings.preset
        self.configs = {recipe: folder / f"{name}_{preset}.yaml" for recipe, name in names.items()}
        if settings.base_config is not None:
            self.configs["pretrain"] = Path(settings.base_config)
        lacking = [str(path) for path in self.configs.values() if not path.is_file()]
        if lacking:
            raise ValueError(
                f"preset={preset!r}: {', '.join(lacking)} does not exist; give another preset, or --base_config for "
                f"the base's own"
            )
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Runs all stages, as many side by side as there are ``jobs``: the bases first, then what starts from each.

        Raises:
            StageFailure: A stage failed. The stages in progress were still run to their end, and no other was begun.
        """
        root = {seed: seed_folder(self.output_dir, seed) for seed in self.settings.seed_list}
        with ThreadPoolExecutor(self.settings.jobs) as pool:
            waiting = {pool.submit(self._run_steps, [base_step(root[seed], seed)]): seed for seed in root}
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        seed = waiting.pop(future)
                        future.result()
                        branches = [] if seed is None else self._branches(root[seed], seed)
                        waiting |= {pool.submit(self._run_steps, branch): None for branch in branches}
            except BaseException:  # Ctrl-C too, which the stages in progress get as well
                self._stop.set()
                raise

    def _branches(self, root: Path, seed: int) -> list[list[Step]]:
        """What follows a base, in rows of steps that do not need each other."""
        branches = [chain_steps(root, seed)]
        if self.settings.from_base:
            branches += [[step] for step in from_base_steps(root, seed)]
        if self.settings.overtraining:
            branches += [
                [step] for step in list(overtraining_steps(root, seed, self.settings.overtraining).values())[:-1]
            ]
        return branches

    def _run_steps(self, steps: list[Step]) -> None:
        try:
            for step in steps:
                self._run_step(step)
        except BaseException:
            self._stop.set()
            raise

    def _run_step(self, step: Step) -> None:
        if self._stop.is_set():
            return
        if step.finished:
            print(f"seed {step.seed}  {step.name:24}  finished before", flush=True)
            return
        command, began = self.command(step), time.time()
        step.log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if self.settings.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", "1")
        with step.log.open("a", encoding="utf-8") as log:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
        minutes = (time.time() - began) / 60
        self._note(step, began, minutes)
        if code != 0 or not step.finished:
            raise StageFailure(_failure(step, command, code))
        print(f"seed {step.seed}  {step.name:24}  {minutes:.1f} minutes", flush=True)

    def command(self, step: Step) -> list[str]:
        """Returns the command line of a step that is not finished."""
        script, config = self.scripts / f"{step.recipe}.py", self.configs[step.recipe]
        words = [*self.launcher, str(script), "--config", str(config), "--output_dir", str(step.folder)]
        words += ["--seed", str(step.seed)]
        if step.recipe == "pretrain":
            again = (step.folder / "resume" / "last.ckpt").is_file()
            return [*words, "--checkpoints", "measured", "--resume" if again else "--overwrite", "True"]
        words += ["--base", str(seed_folder(self.output_dir, step.seed) / "base")]
        return words if step.start is None else [*words, "--model", str(step.start)]

    def _note(self, step: Step, began: float, minutes: float) -> None:
        line = {"seed": step.seed, "stage": step.name, "began": round(began, 1), "minutes": round(minutes, 3)}
        with self._lock, (self.output_dir / "times.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def find_launcher(launcher: str) -> list[str]:
    """Returns the words before the script; a program beside this Python's is found without an activated environment.

    Raises:
        ValueError: There is no such program.
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


def _failure(step: Step, command: Sequence[str], code: int) -> str:
    lines = [line for line in step.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = f"ended with {code}" if code else "ended without finishing its folder"
    return (
        f"seed {step.seed}, {step.name} {ended}. The last lines of {step.log}:\n\n"
        + "\n".join(f"    {line}" for line in lines[-20:])
        + f"\n\nThe command was\n\n    {shlex.join(command)}\n\n"
        + "What is finished is kept; started again, the contrast goes on."
    )
