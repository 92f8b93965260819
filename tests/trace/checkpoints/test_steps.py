"""Which step a name holds, and which names --revisions chooses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from geomcallbacks.trace.checkpoints.revisions import choose_names, log_spaced
from geomcallbacks.trace.checkpoints.steps import lightning_step, parse_name, place_names

#: The branches of EleutherAI/pythia-160m, as its model card lists them, and one more of another kind.
PYTHIA = [f"step{n}" for n in (0, *(2**k for k in range(10)), *range(1000, 144_000, 1000))] + ["main"]
OLMO = ["main", *(f"stage1-step{step}-tokens{t}B" for step, t in ((0, 0), (1000, 3), (10000, 21), (1907359, 4001)))]
OLMO += [f"stage2-ingredient{name}" for name in ("1-step1000-tokens3B", "1-step23852-tokens51B", "2-step1000-tokens3B")]


SMOLLM3 = [f"stage1-step-{n}" for n in range(40_000, 3_440_001, 40_000)]
SMOLLM3 += [f"stage2-step-{n}" for n in range(3_480_000, 4_200_001, 40_000)]
SMOLLM3 += [f"stage3-step-{n}" for n in range(4_240_000, 4_720_001, 40_000)]


def choose(available: Sequence[str], revisions: str, model: str = "x", per_update: int | None = None) -> list[str]:
    return list(choose_names(available, revisions, model, place_names(available, per_update)))


@pytest.mark.parametrize(
    ("name", "step", "tokens"),
    [
        ("global_step1000", 1000, None),  # BLOOM, GPT-NeoX
        ("iter_0001000", 1000, None),  # Megatron
        ("step-50K-105b", 50_000, 105 * 10**9),  # TinyLlama
        ("step-001000-2BT", 1000, 2 * 10**9),  # FineWeb's ablations
        ("step_1000", 1000, None),  # accelerate's examples
        ("checkpoint_00500", 500, None),
        ("phase2_checkpoint_077500", 77_500, None),
        ("ba1000", 1000, None),  # Composer's batches
        ("stage1-step20000-tokens84B", 20_000, 84 * 10**9),
        *((name, None, None) for name in ("ckpt_000", "epoch_0", "epoch=3", "1000", "10B", "v1.0", "step1000-hf")),
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
    chosen = [int(name[4:]) for name in choose(PYTHIA, "log")]
    assert chosen[:6] == [0, 1, 2, 4, 8, 16]
    assert chosen[-1] == 143_000
    assert 6 <= len([step for step in chosen if 10_000 <= step < 100_000]) <= 10
    assert all(after / before <= 2 for before, after in itertools.pairwise(chosen[1:]))
    assert log_spaced([5]) == [5]
    assert log_spaced([]) == []
    # Dense steps: each cell's nearest, by hand for one decade: 10^(k/8) = 10, 13.3, 17.8, 23.7, 31.6, 42.2, 56.2, 75.0.
    assert log_spaced(range(10, 101)) == [10, 13, 18, 24, 32, 42, 56, 75, 100]


def test_all_leaves_out_main_and_further_ingredients(tmp_path: Path) -> None:
    assert choose(PYTHIA, "all") == PYTHIA[:-1]
    assert choose(OLMO, "all") == OLMO[1:7]
    (tmp_path / "some.txt").write_text("# the collapse\nstep1\n\nstep64 # its end\nmain=143001\n")
    assert choose(PYTHIA, str(tmp_path / "some.txt")) == ["step1", "step64", "main"]
    assert choose(PYTHIA, "step8, step1000,step8") == ["step8", "step1000"]
    assert choose(PYTHIA, "a" * 40) == ["a" * 40]


def test_stages_whose_numbers_go_on_are_not_counted_anew() -> None:
    placed = place_names(SMOLLM3)
    assert len(placed) == len(SMOLLM3) == 118
    assert all(name.endswith(f"-{step}") for name, (step, _) in placed.items())
    # Tokens go on, or start anew, as the steps do.
    on = [
        "stage1-step100-tokens10B",
        "stage1-step200-tokens20B",
        "stage2-step300-tokens30B",
        "stage2-step400-tokens40B",
    ]
    assert list(place_names(on).values()) == [(100 * k, 10**10 * k) for k in (1, 2, 3, 4)]
    # Steps above those of a short first stage, and tokens below: anew.
    anew = ["stage1-step200-tokens20B", "stage2-step300-tokens15B", "stage2-step400-tokens20B"]
    assert list(place_names(anew).values())[1:] == [(500, 35 * 10**9), (600, 40 * 10**9)]


@pytest.mark.parametrize("later", [["stage2-step5000", "stage2-step10000"], ["stage2-step11000"]])
def test_a_stage_that_may_go_on_or_start_anew_is_asked_about(later: list[str]) -> None:
    names = ["stage1-step500", "stage1-step1000", "stage1-step2000", *later]
    with pytest.warns(UserWarning, match=rf"left out: {later[0]}.*--revisions {later[0]}=STEP"):
        assert choose(names, "all") == names[:3]
    given = choose_names(names, f"stage1-step500,{later[0]}=7000", "x", place_names(names))
    assert given == {"stage1-step500": (500, None), later[0]: (7000, None)}


@pytest.mark.parametrize(
    "names",
    [
        ["main", "ckpt_000", "ckpt_100"],  # Amber: chunks of data
        ["main", "epoch_0", "epoch_1"],
        ["1000", "2000"],
        ["main", "10B", "20B"],
        ["main", "v1.0", "v1.1"],
        ["main", "phase1", "final"],
        ["main", "checkpoint_0", "checkpoint_1", "checkpoint_2"],  # how accelerate counts what it saves
    ],
    ids=str,
)
@pytest.mark.parametrize("revisions", ["all", "log"])
def test_names_that_tell_no_step_are_asked_about_and_main_is_never_taken_alone(
    names: list[str], revisions: str
) -> None:
    first, second = names[-2:] if len(names) == 3 or names[0] != "main" else names[1:3]
    with pytest.raises(ValueError, match=rf"{first}, .*do not tell.*--revisions {first}=STEP,{second}=STEP.*x@{first}"):
        choose(names, revisions)
    given = choose_names(names, f"{first}=3,{second}=70", "x", place_names(names))
    assert given == {first: (3, None), second: (70, None)}
    with pytest.raises(ValueError, match=r"'1e3' is no number of updates: give"):
        choose(names, f"{first}=1e3")


def test_tokens_alone_are_placed_by_the_tokens_of_an_update() -> None:
    names = ["main", "20B", "10B", "tokens100B", "0.5T"]
    with pytest.raises(ValueError, match=r"20B, .*--tokens-per-update N, by which the tokens in names are divided"):
        choose(names, "all")
    placed = place_names(names, 4_000_000)
    assert choose_names(names, "all", "x", placed) == placed
    assert list(placed.items())[:2] == [("10B", (2500, 10**10)), ("20B", (5000, 2 * 10**10))]
    assert placed["0.5T"] == (125_000, 5 * 10**11)


def test_what_is_left_out_beside_steps_is_said_and_so_is_main_alone() -> None:
    with pytest.warns(UserWarning, match=r"left out: epoch_0, epoch_1 of x: the names do not tell"):
        assert choose(["epoch_0", "epoch_1", "main", "step_1000"], "all") == ["step_1000"]
    with pytest.warns(UserWarning, match="x has no revision but main: that alone is measured"):
        assert choose(["main"], "all") == ["main"]


def test_an_unknown_revision_is_refused_with_the_near_names() -> None:
    with pytest.raises(ValueError, match=r"revision 'step1001' is not one of the 155 of pythia: did you mean step100"):
        choose(PYTHIA, "step0,step1001", "pythia")
    with pytest.raises(ValueError, match=r"'xyzzy'.*it has main, stage1-step0-tokens0B"):
        choose(OLMO, "xyzzy", "olmo")
    with pytest.raises(ValueError, match="names none"):
        choose(PYTHIA, ",", "pythia")
