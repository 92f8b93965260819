"""Which step a name holds, and which names --revisions chooses."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from geomcallbacks.trace.checkpoints.revisions import choose_names, log_spaced
from geomcallbacks.trace.checkpoints.steps import lightning_step, parse_name, place_names

#: The branches of EleutherAI/pythia-160m, as its model card lists them, and one more of another kind.
PYTHIA = [f"step{n}" for n in (0, *(2**k for k in range(10)), *range(1000, 144_000, 1000))] + ["main"]
OLMO = ["main", *(f"stage1-step{step}-tokens{t}B" for step, t in ((0, 0), (1000, 3), (10000, 21), (1907359, 4001)))]
OLMO += [f"stage2-ingredient{name}" for name in ("1-step1000-tokens3B", "1-step23852-tokens51B", "2-step1000-tokens3B")]


@pytest.mark.parametrize(
    ("name", "step", "tokens"),
    [
        ("checkpoint-500", 500, None),
        ("step-000068", 68, None),
        ("stage1-step1000-tokens2B", 1000, 2 * 10**9),
        ("step1000-tokens2.5B", 1000, 2_500_000_000),
        ("stage2-ingredient3-step9-tokens7M", 9, 7 * 10**6),
        ("main", None, None),
        ("v1-step3", None, None),
    ],
)
def test_steps_and_tokens_come_from_names(name: str, step: int | None, tokens: int | None) -> None:
    found = parse_name(name)
    assert (found and found.step, found and found.tokens) == (step, tokens)


def test_the_step_of_a_lightning_file(tmp_path: Path) -> None:
    for name in ("train_loss_step=0.35-step=77", "step=77-loss_step=0.35", "epoch=0-step=77-v1", "loss_step=3-step=77"):
        assert lightning_step(tmp_path / f"{name}.ckpt") == 77  # of the name: no such file is there
    torch.save({"global_step": 5}, tmp_path / "best.ckpt")
    assert lightning_step(tmp_path / "best.ckpt") == 5


def test_a_later_stage_goes_on_from_the_one_before() -> None:
    placed = place_names(OLMO)
    assert placed["stage1-step10000-tokens21B"] == (10_000, 21 * 10**9)
    assert placed["stage2-ingredient1-step1000-tokens3B"] == (1_908_359, 4_004 * 10**9)
    assert placed["stage2-ingredient1-step23852-tokens51B"] == (1_931_211, 4_052 * 10**9)
    assert list(placed)[:2] == ["stage1-step0-tokens0B", "stage1-step1000-tokens3B"]
    assert "main" not in placed
    assert list(place_names(["step9-tokens2B", "step9", "step8"])) == ["step8", "step9", "step9-tokens2B"]


def test_log_takes_about_eight_a_decade_and_both_ends() -> None:
    chosen = [int(name[4:]) for name in choose_names(PYTHIA, "log", "pythia")]
    assert chosen[:6] == [0, 1, 2, 4, 8, 16]
    assert chosen[-1] == 143_000
    assert 6 <= len([step for step in chosen if 10_000 <= step < 100_000]) <= 10
    assert all(after / before <= 2 for before, after in itertools.pairwise(chosen[1:]))
    assert log_spaced([5]) == [5]
    assert log_spaced([]) == []
    # Dense steps: each cell's nearest, by hand for one decade: 10^(k/8) = 10, 13.3, 17.8, 23.7, 31.6, 42.2, 56.2, 75.0.
    assert log_spaced(range(10, 101)) == [10, 13, 18, 24, 32, 42, 56, 75, 100]


def test_all_leaves_out_names_without_a_step_and_further_ingredients(tmp_path: Path) -> None:
    assert choose_names(PYTHIA, "all", "pythia") == PYTHIA[:-1]
    assert choose_names(OLMO, "all", "olmo") == OLMO[1:7]
    assert choose_names(["main"], "all", "x") == ["main"]
    (tmp_path / "some.txt").write_text("# the collapse\nstep1\n\nstep64 # its end\n")
    assert choose_names(PYTHIA, str(tmp_path / "some.txt"), "pythia") == ["step1", "step64"]
    assert choose_names(PYTHIA, "step8, step1000,step8", "pythia") == ["step8", "step1000"]
    assert choose_names(PYTHIA, "a" * 40, "pythia") == ["a" * 40]


def test_an_unknown_revision_is_refused_with_the_near_names() -> None:
    with pytest.raises(ValueError, match=r"revision 'step1001' is not one of the 155 of pythia: did you mean step100"):
        choose_names(PYTHIA, "step0,step1001", "pythia")
    with pytest.raises(ValueError, match=r"'xyzzy'.*it has main, stage1-step0-tokens0B"):
        choose_names(OLMO, "xyzzy", "olmo")
    with pytest.raises(ValueError, match="names none"):
        choose_names(PYTHIA, ",", "pythia")
