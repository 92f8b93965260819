"""Reading, comparing and judging the stages of a contrast, on folders that the tests write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import contrast
import pytest
import scipy.stats
from contrast_folders import KS, UPDATES, geometry, write_base, write_contrast, write_lines, write_stage
from contrasts.compare import clock_minutes, compare, guessing
from contrasts.plan import chosen_updates
from contrasts.read import newest, read_contrast, read_run, read_stage
from contrasts.settings import ContrastSettings
from contrasts.verdicts import Statement, crossing, judge, slope

Numbers = dict[str, Any]


def compare_in(root: Path, **changed: Any) -> Numbers:
    settings = ContrastSettings(str(root), only_read=True, **changed)
    real = None if settings.real is None else read_run(Path(settings.real))
    return compare(read_contrast(settings), settings, real)


def found(numbers: Numbers, stage: str, source: str) -> Numbers:
    rows = [row for row in numbers["statements"] + numbers["shown"] if (row["stage"], row["source"]) == (stage, source)]
    assert len(rows) == 1
    return rows[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished seeds whose changes go as the paper states."""
    root = tmp_path_factory.mktemp("contrast")
    write_contrast(root)
    return root


@pytest.fixture(scope="module")
def numbers(whole: Path) -> Numbers:
    return compare_in(whole)


def test_changes_and_intervals_by_hand(numbers: Numbers) -> None:
    row = found(numbers, "sft", "geometry/general/rankme")
    assert row["starts"] == pytest.approx([20.0, 21.0, 22.0])
    assert row["changes"] == pytest.approx([5.0, 5.5, 6.0])
    # Mean 5.5, standard deviation 0.5, t(2) = 4.302653: 5.5 -+ 4.302653 * 0.5 / sqrt(3).
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((5.5, 4.257931, 6.742069), abs=1e-5)
    assert found(numbers, "grpo", "many/reward")["changes"] == pytest.approx([0.5, 0.51, 0.52])
    assert found(numbers, "grpo_base", "geometry/general/rankme")["mean"] == pytest.approx(-1.1)
    assert found(numbers, "dpo", "behaviour/preference/accuracy")["mean"] == pytest.approx(0.33)
    assert found(numbers, "sft", "geometry/task/rankme")["verdict"] is None
    assert numbers["missing"] == numbers["notes"] == []


def test_every_statement_is_reproduced_where_changes_go_its_way(numbers: Numbers, tmp_path: Path) -> None:
    assert [row["verdict"] for row in numbers["statements"]] == ["reproduced"] * (13 + 9 + 4)
    write_contrast(tmp_path, factors=(-1.0, -1.0, -1.0))
    against = [row["verdict"] for row in compare_in(tmp_path)["statements"] if row["stage"] in ("sft", "dpo")]
    assert against == ["opposite"] * 8


def test_overtraining_by_hand(numbers: Numbers) -> None:
    points = numbers["overtraining"]["1"]
    assert [point["update"] for point in points] == [80, 160, 320, 640, 1280, 2560]
    assert [point["tokens"] for point in points] == [80_000, 160_000, 320_000, 640_000, 1_280_000, 2_560_000]
    assert [point["rankme"] for point in points] == pytest.approx([11 + update / 100 for update in UPDATES[2:]])
    # -0.1 for each doubling of the tokens is -0.1 / log10(2) for each tenfold.
    assert found(numbers, "overtraining", "id/tokens")["changes"] == pytest.approx([-0.332193] * 3, abs=1e-6)
    assert found(numbers, "overtraining", "ood/tokens")["changes"] == pytest.approx([0.166096] * 3, abs=1e-6)
    # Deviations of RankMe -7.6, -6.8, -5.2, -2, 4.4, 17.2: slope -0.1 * 80.4 / 450.24, and half of it upwards.
    assert found(numbers, "overtraining", "id/rankme")["changes"] == pytest.approx([-0.0178571] * 3, abs=1e-6)
    assert found(numbers, "overtraining", "ood/rankme")["changes"] == pytest.approx([0.0089286] * 3, abs=1e-6)
    assert numbers["overtraining_end"]["changes"] == pytest.approx([0.25] * 3)  # the first checkpoint's is the lowest
    assert slope([2.0, 2.0], [1.0, 5.0]) is None


def test_pass_at_k_the_requirement_and_the_two_by_two(numbers: Numbers) -> None:
    curves = numbers["pass_at_k"]["grpo"]
    assert curves["k"] == list(KS)
    # before 1 - 0.8/k: 0.2, 0.6, 0.8, …; after 0.70, 0.72, 0.74, …: behind from k = 4
    assert curves["crossing"] == {"after_leads_first": True, "k": 4}
    assert curves["crossing_by_seed"] == [curves["crossing"]] * 3
    required = numbers["requirement"]
    assert required["answers"] == [296, 494]  # 2-99 … 198 and 2-198 … 297
    assert required["least"] == pytest.approx(1 - ((295 / 296) ** 256 + (493 / 494) ** 256) / 2 + 0.3)
    assert required["met"] == [True] * 3
    row = numbers["crossed"]["grpo"][0]
    assert row["cells"]["end weights, start rollouts"] == pytest.approx([29.0, 30.0, 31.0])
    assert row["weights"]["mean"] == pytest.approx(((29 - 30) + (18 - 20)) / 2)
    assert row["rollouts"]["mean"] == pytest.approx(((20 - 30) + (18 - 29)) / 2)


def test_a_base_that_guesses_misses_the_requirement(tmp_path: Path) -> None:
    write_contrast(tmp_path)
    file = tmp_path / "seed-1" / "grpo_base" / "rollouts.json"
    file.write_text(file.read_text().replace('"pass@256": 0.996875', '"pass@256": 0.78', 1))
    assert compare_in(tmp_path)["requirement"]["met"] == [True, False, True]  # guessing reaches 0.492, 0.792 is asked
    assert guessing(494, 256) == pytest.approx(0.4048, abs=1e-4)


def test_the_page_and_the_figure(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contrast.main(ContrastSettings(str(whole), only_read=True))
    page = (whole / "contrast.md").read_text()
    assert page.split("## Shown")[0] in capsys.readouterr().out
    for text in ("tiny, seeds 0, 1, 2", "CPU, 2026-11-22", "n = 2048, d = 64", "ranks 6–48", "corpus"):
        assert text in page
    line = next(line for line in page.splitlines() if "RankMe rises" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["SFT", "RankMe rises", "21 → 26.5", "+5.5 [+4.26, +6.74]", "+5, +5.5, +6", "reproduced"]
    assert "after leads first, before from k = 4" in page
    assert (whole / "contrast.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": "other"}, "fingerprint of the general probe is 'general-print'"),
        ({"n": 1024}, "n of the general probe is 2048"),
        ({"alpha_window": [5, 48]}, r"alpha_window of the general probe is \[6, 48\]"),
        ({"precision": "bf16"}, "precision of the general probe is 'fp32'"),
    ],
)
def test_seeds_with_another_probe_are_refused(tmp_path: Path, changed: Numbers, message: str) -> None:
    write_contrast(tmp_path)
    write_stage(tmp_path / "seed-2" / "dpo", "dpo", 2, **changed)
    with pytest.raises(ValueError, match=rf"{message}.*seed-0/sft.*seed-2/dpo"):
        compare_in(tmp_path)


def test_a_probe_that_changes_within_a_stage_is_refused(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    lines = (tmp_path / "geometry.jsonl").read_text().splitlines()
    lines[-2] = lines[-2].replace("general-print", "other")
    (tmp_path / "geometry.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"fingerprint of the probe 'general' in .*'general-print' \(update 0\)"):
        read_stage(tmp_path)


def test_seeds_with_another_corpus_are_refused(tmp_path: Path) -> None:
    write_contrast(tmp_path)
    write_base(tmp_path / "seed-1" / "base", 1, fingerprint="of another Python")
    with pytest.raises(ValueError, match=r"corpus fingerprint is 'corpus'.*seed-0.*'of another Python'.*seed-1"):
        compare_in(tmp_path)


def test_a_stage_whose_last_update_was_not_measured_is_refused(tmp_path: Path) -> None:
    write_stage(tmp_path, "dpo")
    (tmp_path / "finished.json").write_text('{"updates": 20}')
    assert read_stage(tmp_path).end["geometry/general/rankme"] == 22.0
    (tmp_path / "finished.json").write_text('{"updates": 30}')
    with pytest.raises(ValueError, match=r"updates \[0, 10, 20\], the stage ran from 0 to 30.*--overwrite"):
        read_stage(tmp_path)


def test_missing_stages_are_listed_and_the_rest_is_compared(tmp_path: Path) -> None:
    write_contrast(tmp_path)
    (tmp_path / "seed-1" / "dpo" / "finished.json").unlink()
    (tmp_path / "seed-2" / "overtraining" / "step-000160" / "finished.json").unlink()
    contrast.main(ContrastSettings(str(tmp_path), only_read=True))
    numbers = json.loads((tmp_path / "contrast.json").read_text())
    assert numbers["missing"] == ["seed 1: dpo", "seed 2: overtraining/step-000160"]
    assert found(numbers, "dpo", "geometry/general/rankme")["changes"] == [pytest.approx(2), None, pytest.approx(2.4)]
    assert sorted(numbers["overtraining"]) == ["0", "1"]
    assert "seed 1: dpo; seed 2: overtraining/step-000160" in (tmp_path / "contrast.md").read_text()


def test_a_bare_chain_can_be_read_and_an_empty_folder_cannot(tmp_path: Path) -> None:
    settings = ContrastSettings(str(tmp_path), seeds=[0], from_base=False, overtraining=0, only_read=True)
    with pytest.raises(ValueError, match="no stage is finished there; leave out --only_read"):
        contrast.main(settings)
    write_base(tmp_path / "seed-0" / "base")
    write_stage(tmp_path / "seed-0" / "sft", "sft")
    contrast.main(settings)
    assert json.loads((tmp_path / "contrast.json").read_text())["missing"] == ["seed 0: dpo", "seed 0: grpo"]
    assert (tmp_path / "contrast.png").is_file()


def test_an_instruction_tuned_model_is_shown_and_not_judged(whole: Path, tmp_path: Path) -> None:
    write_stage(tmp_path / "sft", "sft", fingerprint="another text", d=576, alpha_window=[11, 100])
    numbers = compare_in(whole, real=str(tmp_path))
    assert [row["verdict"] for row in numbers["real"]["rows"]] == [None] * 4
    assert numbers["real"]["rows"][0]["changes"] == [5.0]
    assert "d = 576" in contrast.render(numbers).split("## Already instruction-tuned; not judged")[1]


def test_other_settings_between_seeds_are_noted(tmp_path: Path) -> None:
    write_contrast(tmp_path)
    for seed, rate in enumerate((1e-3, 1e-3, 2e-3)):
        settings = {"learning_rate": rate, "seed": seed, "output_dir": f"seed-{seed}"}
        (tmp_path / f"seed-{seed}" / "sft" / "settings.json").write_text(json.dumps(settings))
    assert compare_in(tmp_path)["notes"] == ["sft: learning_rate is 0.001 for seed 0 and 0.002 for seed 2"]


def test_only_what_was_measured_at_an_end_stands_for_it(tmp_path: Path) -> None:
    write_stage(tmp_path, "grpo")
    write_lines(tmp_path / "behaviour.jsonl", [{"step": 0, "id/loss": 3.0}, {"step": 10, "id/loss": 2.0}])
    file = tmp_path / "rollouts.json"
    file.write_text(file.read_text().replace('"self_bleu": 0.3', '"self_bleu": NaN'))
    numbers = read_stage(tmp_path)
    assert numbers.start["behaviour/id/loss"] == 3.0
    assert "behaviour/id/loss" not in numbers.end
    assert numbers.start["many/self_bleu"] is None


def test_a_stage_that_was_started_again_from_nothing_is_read_from_its_last_start(tmp_path: Path) -> None:
    for stem in ("geometry", "geometry-2", "geometry-10", "behaviour"):
        write_lines(tmp_path / f"{stem}.jsonl", [])
    assert newest(tmp_path, "geometry").name == "geometry-10.jsonl"
    assert newest(tmp_path, "behaviour").name == "behaviour.jsonl"


def test_checkpoints_are_nearest_by_ratio(tmp_path: Path) -> None:
    write_base(tmp_path)
    assert chosen_updates(tmp_path, 6) == [80, 160, 320, 640, 1280, 2560]
    assert chosen_updates(tmp_path, 5) == [160, 320, 640, 1280, 2560]
    for update in UPDATES[1:-1]:
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{update:06d}")
    with pytest.raises(ValueError, match=r"overtraining=6: .* at the updates \[2560\].*--checkpoints measured"):
        chosen_updates(tmp_path, 6)
    shutil.rmtree(tmp_path / "checkpoints")  # what was measured stands for it
    updates = (0, 20, 44, 60, 130, 240, 500, 1000)  # 1000/32 = 31.25: 20 is 11.25 away and 44 12.75, but 1.41 times
    write_lines(tmp_path / "geometry.jsonl", [geometry(update, "probe", 1.0) for update in updates])
    assert chosen_updates(tmp_path, 6) == [44, 60, 130, 240, 500, 1000]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": [-1]}, r"seeds=\[-1\]: give whole numbers from 0"),
        ({"seeds": [0, 0]}, r"seeds=\[0, 0\]: give .*each once"),
        ({"jobs": 0}, "jobs=0"),
        ({"overtraining": 4}, "overtraining=4: give 5"),
        ({"real": "/no/where"}, "real='/no/where': no such folder"),
    ],
)
def test_wrong_settings_are_refused(changed: Numbers, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastSettings(**changed)


def test_the_configuration_is_read() -> None:
    config = Path(contrast.__file__).parent / "configs" / "contrast_tiny.yaml"
    settings = contrast.make_parser().parse(["--config", str(config), "--jobs", "1", "--seeds", "4", "5"])
    assert (settings.seeds, settings.jobs, settings.overtraining, settings.preset) == ([4, 5], 1, 5, "tiny")


def test_minutes_on_the_clock_count_what_ran_side_by_side_once() -> None:
    rows = [(0, 10), (300, 1), (540, 2), (6000, 1)]  # seconds, minutes: 0–10, within it, 9–11, 100–101
    assert clock_minutes([{"began": began, "minutes": minutes} for began, minutes in rows]) == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("direction", "changes", "verdict"),
    [
        (+1, [1.0, 1.1, 0.9], "reproduced"),
        (-1, [1.0, 1.1, 0.9], "opposite"),
        (+1, [-1.0, -1.1, -0.9], "opposite"),
        (+1, [1.0, 2.0, 3.0], "inconclusive"),  # the interval is 2 -+ 2.484
        (-1, [0.0, 0.0], "inconclusive"),  # zero is not excluded
        (+1, [1.0, None, None], "inconclusive"),
        (+1, [None, None], "inconclusive"),
        (0, [1.0, 1.1, 0.9], None),
    ],
)
def test_verdict(direction: int, changes: list[float | None], verdict: str | None) -> None:
    ends = [None if change is None else 10.0**seed + change for seed, change in enumerate(changes)]
    finding = judge(Statement("sft", "RankMe", "", direction), [10.0**seed for seed in range(len(changes))], ends)
    assert finding.verdict == verdict
    known = [change for change in changes if change is not None]
    assert finding.mean == (pytest.approx(sum(known) / len(known)) if known else None)
    if len(set(known)) > 1:  # paired by seed: starts differ by powers of ten
        expected = scipy.stats.ttest_1samp(known, 0).confidence_interval(0.95)
        assert (finding.low, finding.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0.1, 0.4, 0.9], [0.5, 0.6, 0.7], (True, 2)),  # as in the paper: ahead at first, behind in the end
        ([0.5, 0.6, 0.7], [0.1, 0.4, 0.9], (False, 2)),
        ([0.1, 0.4, 0.9], [0.1, 0.6, 0.7], (True, 2)),  # equal at first
        ([0.1, 0.4, 0.7], [0.5, 0.4, 0.7], (True, None)),  # meets, and does not cross
        ([0.1, 0.2], [0.1, 0.2], (None, None)),
    ],
)
def test_crossing(before: list[float], after: list[float], expected: tuple[bool | None, int | None]) -> None:
    assert crossing(before, after) == expected
