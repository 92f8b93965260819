"""Settings of every recipe: YAML sets defaults, the command line wins, and what neither knows is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import micro
import pretrain
import pytest

KINDS = {**micro.MODULES, "pretrain": pretrain, "base": pretrain}
CONFIGS = Path(pretrain.__file__).parent / "configs"
PRESETS = [preset for kind in KINDS for preset in sorted(CONFIGS.glob(f"{kind}_*.yaml"))]


def parse(recipe: str, tmp_path: Path, yaml: str | bytes, *given: str) -> Any:
    (tmp_path / "a.yaml").write_bytes(yaml if isinstance(yaml, bytes) else yaml.encode())
    return KINDS[recipe].make_parser().parse(["--config", str(tmp_path / "a.yaml"), *given])


def test_yaml_sets_defaults_and_the_command_line_wins(tmp_path: Path) -> None:
    yaml = "learning_rate: 5e-4\nupdates: 7\nseed: 3\noverwrite: true\nevery: null\npositions: 4\n"
    settings = parse("pretrain", tmp_path, yaml, "--seed", "4", "--streaming")
    assert (settings.learning_rate, settings.updates, settings.seed, settings.positions) == (5e-4, 7, 4, "4")
    assert (settings.overwrite, settings.streaming, settings.every) == (True, True, None)
    assert settings.batch_size == pretrain.PretrainSettings().batch_size
    assert pretrain.make_parser().parse([f"--config={tmp_path / 'a.yaml'}"]).updates == 7


def test_the_settings_of_a_recipe_stand_beside_those_of_trl(tmp_path: Path) -> None:
    yaml = "output_dir: x\nlearning_rate: 5e-4\nuse_cpu: true\nbf16: false\ntest_rows: 5\nmodel_init_kwargs: {a: 1}\n"
    settings, args = parse("dpo", tmp_path, yaml, "--beta", "0.3")
    assert (settings.test_rows, args.learning_rate, args.beta, args.output_dir) == (5, 5e-4, 0.3, "x")
    assert args.model_init_kwargs == {"a": 1}


@pytest.mark.parametrize(
    ("recipe", "yaml", "given", "message"),
    [
        ("pretrain", "lerning_rate: 1", "", "unknown lerning_rate (did you mean learning_rate?)"),
        ("pretrain", "updates: many", "", "invalid int value: 'many'"),
        ("pretrain", "updates: null", "", "updates takes one value, not a None"),
        ("pretrain", "dataset: [1, 2]", "", "dataset takes one value, not a list"),
        ("pretrain", "architecture: gpt5", "", "architecture='gpt5' is not one of"),
        ("pretrain", "- updates", "", "must contain a YAML mapping"),
        ("pretrain", "dataset: [", "", "line 1, column"),
        ("pretrain", "a: " + "[" * 5000, "", "recursion"),
        ("pretrain", b"dataset: \xe9", "", "can't decode"),
        ("pretrain", "seed: 1", "--update 3", "unknown --update (did you mean updates?)"),
        ("pretrain", "seed: 1", "extra", "unknown extra (--help lists the settings)"),
        ("pretrain", "seed: 1", "--wandb sometimes", "invalid choice: 'sometimes'"),
        ("sft", "seed: 1", "--max_lenght=4", "unknown --max_lenght=4 (did you mean max_length?)"),
    ],
)
def test_what_is_no_setting_is_refused_in_a_line(
    recipe: str, yaml: str, given: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(recipe, tmp_path, yaml, *given.split())
    assert refused.value.code == 2
    error = capsys.readouterr().err
    assert ": error: " in error
    assert message in error
    assert len(error) < 1000


def test_yaml_makes_no_python_objects(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parse("pretrain", tmp_path, f"dataset: !!python/object/apply:os.mkdir [{tmp_path / 'made'}]")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.stem)
def test_presets_hold_known_settings_and_a_window_that_fits(preset: Path) -> None:
    recipe = KINDS[preset.stem.split("_")[0]]
    if recipe is not pretrain:
        recipe.make_parser().parse(["--config", str(preset), "--use_cpu", "true"])
        return
    settings = pretrain.make_parser().parse(["--config", str(preset)])
    assert settings.alpha_last <= settings.hidden_size
    assert settings.probe_rows * int(settings.positions) >= 4 * settings.hidden_size
    assert (settings.dataset, settings.tokenizer) == (None, None)  # no network
