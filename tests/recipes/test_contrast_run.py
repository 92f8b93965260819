"""Running the stages of a contrast, with scripts that write finished stages in place of the recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from contrast import main
from contrasts.plan import base_step
from contrasts.run import Runner, StageFailure
from contrasts.settings import ContrastSettings

#: DPO of seed 1 fails while a file "broken" exists; while a file "together" does, a base ends only behind the other's
#: start.
FAKE = """
import json, sys, pathlib, os, time
sys.path.insert(0, {tests!r})
from contrast_folders import write_base, write_stage
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder, seed, kind = pathlib.Path(options["--output_dir"]), int(options["--seed"]), pathlib.Path(sys.argv[0]).stem
here = pathlib.Path({here!r})
with (here / "calls").open("a") as file:
    file.write(json.dumps([kind, options, os.environ.get("OMP_NUM_THREADS")]) + "\\n")
if kind == "pretrain":
    end = time.monotonic() + 20
    while (here / "together").exists() and len((here / "calls").read_text().splitlines()) < 2:
        assert time.monotonic() < end, "the other base never started"
    write_base(folder, seed)
else:
    print(*(f"line {{number}}" for number in range(30)), sep="\\n", flush=True)
    if kind == "dpo" and seed == 1 and (here / "broken").exists():
        sys.exit("no more memory")
    write_stage(folder, kind, seed)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder of recipes that write finished stages."""
    scripts = tmp_path / "recipes"
    (scripts / "configs").mkdir(parents=True)
    for name, config in {"pretrain": "base", "sft": "sft", "dpo": "dpo", "grpo": "grpo"}.items():
        (scripts / f"{name}.py").write_text(FAKE.format(tests=str(Path(__file__).parents[1]), here=str(tmp_path)))
        (scripts / "configs" / f"{config}_tiny.yaml").touch()
    return scripts


def calls_of(tmp_path: Path) -> list[tuple[str, dict[str, str], str | None]]:
    file = tmp_path / "calls"
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def test_all_stages_run_once_with_the_right_start_weights(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ContrastSettings(str(tmp_path / "out"), seeds=[3])
    main(settings, fake)
    root = tmp_path / "out" / "seed-3"
    ran = {options["--output_dir"].removeprefix(f"{root}/"): options for _, options, _ in calls_of(tmp_path)}
    early = [f"step-{update:06d}" for update in (80, 160, 320, 640, 1280)]
    assert {name: options.get("--model") for name, options in ran.items()} == {
        **{"base": None, "sft": None, "dpo": str(root / "sft"), "grpo": str(root / "dpo")},
        **{"dpo_base": None, "grpo_base": None},
        **{f"overtraining/{step}": str(root / "base" / "checkpoints" / step) for step in early},
    }
    assert ran["base"]["--checkpoints"] == "measured"
    assert ran["base"]["--config"] == str(fake / "configs" / "base_tiny.yaml")
    assert {options.get("--base") for options in ran.values()} == {None, str(root / "base")}
    assert {options["--seed"] for options in ran.values()} == {"3"}
    assert "line 29" in (root / "sft.log").read_text()
    assert "minutes of stages" in (tmp_path / "out" / "contrast.md").read_text()
    assert "seed 3  overtraining/step-000080" in capsys.readouterr().out
    main(settings, fake)
    assert len(calls_of(tmp_path)) == len(ran) == 11  # nothing was run again


def test_a_failing_stage_is_reported_and_the_next_call_goes_on(tmp_path: Path, fake: Path) -> None:
    (tmp_path / "broken").touch()
    settings = ContrastSettings(str(tmp_path / "out"), seeds=[0, 1, 2], overtraining=0, from_base=False)
    with pytest.raises(StageFailure) as raised:
        main(settings, fake)
    message = str(raised.value)
    # 31 lines, of which the last 20 begin with line 11.
    for part in ("seed 1, dpo ended with 1", "no more memory", "line 11", f"{tmp_path / 'out' / 'seed-1' / 'dpo'}"):
        assert part in message
    assert "line 10" not in message
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
        main(ContrastSettings(str(tmp_path / "out"), seeds=[0], overtraining=0), fake)


@pytest.mark.parametrize(("jobs", "known", "expected"), [(1, None, None), (2, None, "1"), (2, "4", "4")])
def test_jobs_run_side_by_side_with_a_thread_each(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, known: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if known is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", known)
    if jobs == 2:
        (tmp_path / "together").touch()
    settings = ContrastSettings(str(tmp_path / "out"), seeds=[0, 1], jobs=jobs, overtraining=0, from_base=False)
    (tmp_path / "out").mkdir()
    Runner(settings, fake).run()
    assert [threads for _, _, threads in calls_of(tmp_path)] == [expected] * 8


def test_an_interrupted_base_goes_on_from_its_checkpoint(tmp_path: Path, fake: Path) -> None:
    runner, step = Runner(ContrastSettings(str(tmp_path)), fake), base_step(tmp_path, 0)
    assert runner.command(step)[-2:] == ["--overwrite", "True"]
    (step.folder / "resume").mkdir(parents=True)
    (step.folder / "resume" / "last.ckpt").touch()
    assert runner.command(step)[-2:] == ["--resume", "True"]


def test_a_missing_configuration_is_named_before_anything_runs(tmp_path: Path, fake: Path) -> None:
    (fake / "configs" / "grpo_tiny.yaml").unlink()
    with pytest.raises(ValueError, match=r"preset='tiny': .*grpo_tiny.yaml does not exist"):
        main(ContrastSettings(str(tmp_path / "out")), fake)
    assert calls_of(tmp_path) == []
