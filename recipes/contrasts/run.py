"""Runs the stages of a contrast that are not finished."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from contrasts.plan import Step, base_step, branches
from contrasts.settings import ContrastSettings

_CONFIGS = {"pretrain": "base", "sft": "sft", "dpo": "dpo", "grpo": "grpo"}


class StageFailure(Exception):
    """A stage ended with an error; the message holds the command and the end of its output."""


class Runner:
    """Runs what is not finished, several stages side by side.

    Args:
        settings: those of the contrast.
        scripts: folder of the recipes and their `configs/`.

    Raises:
        ValueError: a configuration does not exist.
    """

    def __init__(self, settings: ContrastSettings, scripts: Path) -> None:
        self.settings, self.scripts = settings, scripts
        preset = settings.preset
        self.configs = {recipe: scripts / "configs" / f"{name}_{preset}.yaml" for recipe, name in _CONFIGS.items()}
        lacking = ", ".join(str(path) for path in self.configs.values() if not path.is_file())
        if lacking:
            raise ValueError(f"preset={preset!r}: {lacking} does not exist; give another preset")
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        """Run all stages, as many side by side as there are `jobs`: the bases first, then what starts from each.

        Raises:
            StageFailure: a stage failed. The stages in progress were still run to their end, and no other was begun.
        """
        with ThreadPoolExecutor(self.settings.jobs) as pool:
            bases = [base_step(self.settings.output_dir, seed) for seed in self.settings.seeds]
            seeds = [pool.submit(self._run_seed, base, pool) for base in bases]
            try:
                for seed in seeds:
                    for branch in seed.result():
                        branch.result()
            finally:  # after Ctrl-C too, which the stages in progress get as well
                self._stop.set()

    def _run_seed(self, base: Step, pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Run a base, then submit what starts from it."""
        self._run_steps([base])
        return [pool.submit(self._run_steps, branch) for branch in branches(base, self.settings)]

    def _run_steps(self, steps: Sequence[Step]) -> None:
        try:
            for step in steps:
                if not self._stop.is_set():
                    self._run_step(step)
        except BaseException:
            self._stop.set()
            raise

    def _run_step(self, step: Step) -> None:
        if step.is_finished():
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
        line = {"seed": step.seed, "stage": step.name, "began": round(began, 1), "minutes": round(minutes, 6)}
        with self._lock, (Path(self.settings.output_dir) / "times.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if code != 0 or not step.is_finished():
            raise StageFailure(_failure(step, command, code))
        print(f"seed {step.seed}  {step.name:24}  {minutes:.1f} minutes", flush=True)

    def command(self, step: Step) -> list[str]:
        """Return the command line of a step that is not finished."""
        script, config = self.scripts / f"{step.recipe}.py", self.configs[step.recipe]
        words = [sys.executable, str(script), "--config", str(config), "--output_dir", str(step.folder)]
        words += ["--seed", str(step.seed)]
        if step.recipe == "pretrain":
            again = (step.folder / "resume" / "last.ckpt").is_file()
            return [*words, "--checkpoints", "measured", "--resume" if again else "--overwrite", "True"]
        words += ["--base", str(step.root / "base")]
        return words if step.start is None else [*words, "--model", str(step.root / step.start)]


def _failure(step: Step, command: Sequence[str], code: int) -> str:
    lines = [line for line in step.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = f"ended with {code}" if code else "ended without finishing its folder"
    return (
        f"seed {step.seed}, {step.name} {ended}. The last lines of {step.log}:\n\n"
        + "\n".join(f"    {line}" for line in lines[-20:])
        + f"\n\nThe command was\n\n    {shlex.join(command)}\n\n"
        + "What is finished is kept; started again, the contrast goes on."
    )
