"""Running the stages of a contrast, with scripts that write finished stages in place of the recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from contrast import ContrastSettings, main
from contrasts.plan import base_step
from contrasts.run import Runner, StageFailure

FAKE = """
import json, sys, pathlib, os
sys.path.insert(0, {tests!r})
from contrast_folders import write_base, write_stage
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, seed, kind = pathlib.Path(options["--output_dir"]), int(options["--seed"]), pathlib.Path(sys.argv[0]).stem
with open({calls!r}, "a") as file:
    file.write(json.dumps([kind, options, os.environ.get("OMP_NUM_THREADS")]) + "\\n")
if kind == "pretrain":
    write_base(folder, seed)
else:
    for number in range(30):
        print(f"line {{number}}")
    if kind == "dpo" and seed == 1 and pathlib.Path({broken!r}).exists():
        sys.exit("no more memory")
    write_stage(folder, kind, seed)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder of recipes that write finished stages; DPO of seed 1 fails while a file ``broken`` exists."""
    scripts = tmp_path / "recipes"
    (scripts / "configs").mkdir(parents=True)
    paths = {
        "tests": str(Path(__file__).parents[1]),
        "calls": str(tmp_path / "calls"),
        "broken": str(tmp_path / "broken"),
    }
    for name in ("pretrain", "sft", "dpo", "grpo"):
        (scripts / f"{name}.py").write_text(FAKE.format(**paths))
        (scripts / "configs" / f"{'base' if name == 'pretrain' else name}_tiny.yaml").touch()
    return scripts


def calls_of(tmp_path: Path) -> list[tuple[str, dict[str, str], str | None]]:
    file = tmp_path / "calls"
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def test_all_stages_run_once_with_the_right_start_weights(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ContrastSettings(str(tmp_path / "out"), seeds="3")
    main(settings, fake)
    root = tmp_path / "out" / "seed-3"
    calls = [(kind, options) for kind, options, _ in calls_of(tmp_path)]
    ran = {options["--output_dir"].removeprefix(f"{root}/"): options for _, options in calls}
    assert len(ran) == len(calls) == 1 + 5 + 5
    assert ran["base"]["--checkpoints"] == "measured"
    assert ran["base"]["--config"] == str(fake / "configs" / "base_tiny.yaml")
    starts = {name: options.get("--model") for name, options in ran.items() if name != "base"}
    assert starts == {
        **{"sft": None, "dpo": str(root / "sft"), "grpo": str(root / "dpo"), "dpo_base": None, "grpo_base": None},
        **{
            f"overtraining/step-{update:06d}": str(root / "base" / "checkpoints" / f"step-{update:06d}")
            for update in (80, 160, 320, 640, 1280)
        },
    }
    assert {options["--base"] for name, options in ran.items() if name != "base"} == {str(root / "base")}
    assert {options["--seed"] for options in ran.values()} == {"3"}
    assert "line 29" in (root / "sft.log").read_text()
    assert "minutes of stages" in (tmp_path / "out" / "contrast.md").read_text()
    assert "seed 3  overtraining/step-000080" in capsys.readouterr().out
    main(settings, fake)
    assert len(calls_of(tmp_path)) == 11  # nothing was run again


def test_a_failing_stage_is_reported_and_the_next_call_goes_on(tmp_path: Path, fake: Path) -> None:
    (tmp_path / "broken").touch()
    settings = ContrastSettings(str(tmp_path / "out"), seeds="0,1,2", overtraining=0, from_base=False)
    with pytest.raises(StageFailure) as raised:
        main(settings, fake)
    message = str(raised.value)
    assert "seed 1, dpo ended with 1" in message
    assert "no more memory" in message
    assert "line 11" in message  # 31 lines, of which the last 20 begin here
    assert "line 10" not in message
    assert f"--output_dir {tmp_path / 'out' / 'seed-1' / 'dpo'}" in message
    ran = [Path(options["--output_dir"]).parent.name for _, options, _ in calls_of(tmp_path)]
    # The bases, seed 0's three stages, and seed 1's until the failure: nothing of seed 2 was begun behind its base.
    assert ran == ["seed-0", "seed-1", "seed-2"] + ["seed-0"] * 3 + ["seed-1"] * 2
    (tmp_path / "broken").unlink()
    main(settings, fake)
    assert len(calls_of(tmp_path)) == 8 + 2 + 3
    assert json.loads((tmp_path / "out" / "contrast.json").read_text())["missing"] == []


def test_a_stage_that_ends_well_without_finishing_is_a_failure(tmp_path: Path, fake: Path) -> None:
    (fake / "sft.py").write_text("print('done')")
    with pytest.raises(StageFailure, match="sft ended without finishing its folder"):
        main(ContrastSettings(str(tmp_path / "out"), seeds="0", overtraining=0), fake)


@pytest.mark.parametrize(("jobs", "known", "expected"), [(1, None, None), (2, None, "1"), (2, "4", "4")])
def test_threads_of_seeds_side_by_side(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, known: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if known is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", known)
    main(ContrastSettings(str(tmp_path / "out"), seeds="0,1", jobs=jobs, overtraining=0, from_base=False), fake)
    assert {threads for _, _, threads in calls_of(tmp_path)} == {expected}
    assert len(calls_of(tmp_path)) == 8


def test_an_interrupted_base_goes_on_from_its_checkpoint(tmp_path: Path, fake: Path) -> None:
    runner = Runner(ContrastSettings(str(tmp_path / "out")), fake)
    step = base_step(tmp_path / "out" / "seed-0", 0)
    assert runner.command(step)[-2:] == ["--overwrite", "True"]
    (step.folder / "resume").mkdir(parents=True)
    (step.folder / "resume" / "last.ckpt").touch()
    assert runner.command(step)[-2:] == ["--resume", "True"]


def test_a_missing_configuration_is_named_before_anything_runs(tmp_path: Path, fake: Path) -> None:
    (fake / "configs" / "grpo_tiny.yaml").unlink()
    with pytest.raises(ValueError, match=r"preset='tiny': .*grpo_tiny.yaml does not exist"):
        main(ContrastSettings(str(tmp_path / "out")), fake)
    assert calls_of(tmp_path) == []
