"""Which checkpoints MODEL… and --revisions name, in which order, and what they hold when loaded."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import hub_cache
import pytest
import tiny
import torch

from geomcallbacks.trace.checkpoints.find import Checkpoint, find_checkpoints
from geomcallbacks.trace.checkpoints.folders import folder_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.checkpoints.loading import load_model
from geomcallbacks.trace.checkpoints.revisions import choose_names, log_spaced
from geomcallbacks.trace.checkpoints.steps import parse_name, place_names
from geomcallbacks.trace import Reading

CPU = Reading("fp32", "cpu")
#: The branches of EleutherAI/pythia-160m, as its model card lists them, and one more of another kind.
PYTHIA = [f"step{n}" for n in (0, *(2**k for k in range(10)), *range(1000, 144_000, 1000))] + ["main"]
OLMO = [
    "main",
    "stage1-step0-tokens0B",
    "stage1-step1000-tokens3B",
    "stage1-step10000-tokens21B",
    "stage1-step1907359-tokens4001B",
    "stage2-ingredient1-step1000-tokens3B",
    "stage2-ingredient1-step23852-tokens51B",
    "stage2-ingredient2-step1000-tokens3B",
]


class Listed:
    """Repositories by name."""

    def __init__(self, **repositories: list[str]) -> None:
        self.repositories = {name.replace("__", "/"): names for name, names in repositories.items()}

    def revisions(self, model: str) -> list[str]:
        return self.repositories[model]

    def knows_all(self, model: str) -> bool:
        return True


@pytest.mark.parametrize(
    ("name", "step", "tokens"),
    [
        ("step1000", 1000, None),
        ("checkpoint-500", 500, None),
        ("step-000068", 68, None),
        ("stage1-step1000-tokens2B", 1000, 2 * 10**9),
        ("step1000-tokens2.5B", 1000, 2_500_000_000),
        ("stage2-ingredient3-step9-tokens7M", 9, 7 * 10**6),
        ("main", None, None),
        ("step", None, None),
        ("v1-step3", None, None),
    ],
)
def test_steps_and_tokens_come_from_names(name: str, step: int | None, tokens: int | None) -> None:
    found = parse_name(name)
    assert (found and found.step) == step
    assert (found and found.tokens) == tokens


def test_a_later_stage_goes_on_from_the_one_before() -> None:
    placed = place_names(OLMO)
    assert placed["stage1-step10000-tokens21B"] == (10_000, 21 * 10**9)
    assert placed["stage2-ingredient1-step1000-tokens3B"] == (1_908_359, 4_004 * 10**9)
    assert placed["stage2-ingredient1-step23852-tokens51B"] == (1_931_211, 4_052 * 10**9)
    assert list(placed)[:2] == ["stage1-step0-tokens0B", "stage1-step1000-tokens3B"]
    assert "main" not in placed


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


def test_one_model_stands_at_its_own_steps_and_several_at_their_places() -> None:
    hub = Listed(a__x=PYTHIA, b__y=["main"])
    found = find_checkpoints(["a/x"], hub, "step1000,step8", tokens_per_update=10)
    assert [(c.revision, c.step, c.tokens) for c in found] == [("step8", 8, 80), ("step1000", 1000, 10_000)]
    assert [(c.revision, c.step) for c in find_checkpoints(["a/x"], hub)] == [("main", 0)]
    curve = find_checkpoints(["b/y", "a/x@step512", "a/x"], hub)
    assert [(str(c), c.step) for c in curve] == [("b/y@main", 0), ("a/x@step512", 1), ("a/x@main", 2)]
    assert {c.tokens for c in curve} == {None}
    with pytest.raises(ValueError, match=r"'main' has no step in its name.*MODEL of its own"):
        find_checkpoints(["a/x"], hub, "step8,main")
    both = ["stage2-ingredient1-step1000-tokens3B", "stage2-ingredient2-step1000-tokens3B"]
    with pytest.raises(ValueError, match="both stand at step 1908359"):
        find_checkpoints(["o/o"], Listed(o__o=OLMO), both)
    with pytest.raises(ValueError, match="no MODEL"):
        find_checkpoints([], hub)


def test_tokens_of_pythia_are_known() -> None:
    listed = Listed(**{"EleutherAI/pythia-160m": PYTHIA})
    (found,) = find_checkpoints(["EleutherAI/pythia-160m"], listed, ["step512"])
    assert found.tokens == 512 * 2_097_152  # 1.07e9: where the paper's warm-up ends


def test_folders_of_all_kinds_are_listed(tmp_path: Path) -> None:
    for name in ("trainer/checkpoint-8", "trainer/checkpoint-64", "trainer/runs", "mine/checkpoints/step-000002"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "trainer" / "config.json").write_text("{}")  # the final model, beside its checkpoints
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    listed = {name: source.step for name, source in folder_checkpoints(tmp_path / "trainer").items()}
    assert listed == {"checkpoint-8": 8, "checkpoint-64": 64}
    for given in ("mine", "mine/checkpoints"):
        assert folder_checkpoints(tmp_path / given)["step-000002"].path == tmp_path / "mine/checkpoints/step-000002"
    step = tmp_path / "mine" / "checkpoints" / "step-000002"
    (step / "config.json").write_text("{}")
    assert find_checkpoints([str(step)], Listed()) == [Checkpoint("step-000002", "step-000002", 2, None, step)]
    assert find_checkpoints([str(tmp_path / "one")], Listed()) == [Checkpoint("one", "one", 0, None, tmp_path / "one")]
    with pytest.raises(
        ValueError, match=r"empty holds no checkpoints: none of checkpoint-N.*give the folder that does"
    ):
        find_checkpoints([str(tmp_path / "empty")], Listed())
    with pytest.raises(ValueError, match="is no folder, and no hub name"):
        find_checkpoints([str(tmp_path / "missing")], Listed())
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is a file: give the folder of a model, or a Lightning checkpoint"):
        find_checkpoints([str(tmp_path / "weights.bin")], Listed())


def save_lightning(file: Path, seed: int, step: int, prefix: str = "model.") -> torch.nn.Module:
    model = tiny.model(seed=seed)
    state = {prefix + key: value for key, value in model.state_dict().items()} | {"loss.scale": torch.ones(1)}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "global_step": step, "epoch": 0}, file)
    model.config.save_pretrained(file.parent)
    return model


@pytest.mark.parametrize("prefix", ["model.", "", "model._orig_mod.", "net.lm."])
def test_lightning_checkpoints_are_read_under_any_prefix(tmp_path: Path, prefix: str) -> None:
    model = save_lightning(tmp_path / "last.ckpt", 3, 77, prefix)
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "epoch=0-step=77.ckpt")
    save_lightning(tmp_path / "best.ckpt", 4, 5, prefix)
    (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04 torn")
    found = find_checkpoints([str(tmp_path)], Listed())
    assert [(c.revision, c.step) for c in found if c.problem is None] == [("best", 5), ("epoch=0-step=77", 77)]
    assert ["torn" in str(c) and "global_step cannot be read" in str(c.problem) for c in found if c.problem] == [True]
    read = load_model(tmp_path / "last.ckpt", CPU)
    ours, theirs = model.state_dict(), read.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_lightning_checkpoint_without_a_shape_is_refused(tmp_path: Path) -> None:
    save_lightning(tmp_path / "run" / "checkpoints" / "step=3.ckpt", 0, 3)
    config = tmp_path / "run" / "checkpoints" / "config.json"
    config.rename(tmp_path / "elsewhere.json")
    with pytest.raises(
        ValueError, match=r"weights without their shape: put .*config\.json beside it, or give --config"
    ):
        load_model(tmp_path / "run" / "checkpoints" / "step=3.ckpt", CPU)
    load_model(tmp_path / "run" / "checkpoints" / "step=3.ckpt", config=tmp_path / "elsewhere.json", CPU)


@pytest.mark.parametrize("kind", ["gpt_neox", "olmo2"])
def test_missing_weights_are_an_error_and_not_random(tmp_path: Path, kind: str) -> None:
    from safetensors.torch import load_file, save_file

    snapshot = hub_cache.add_revision(tmp_path, "org/tiny", "step8", hub_cache.model_files(0, kind))
    weights = load_file(snapshot / "model.safetensors")
    head = {"gpt_neox": "embed_out.weight", "olmo2": "lm_head.weight"}[kind]
    folder = tmp_path / "headless"
    shutil.copytree(snapshot, folder)
    (folder / "model.safetensors").unlink()
    save_file({k: v for k, v in weights.items() if k != head}, folder / "model.safetensors", {"format": "pt"})
    load_model(folder, CPU, head=False)  # hidden states need no head
    with pytest.raises(ValueError, match="lacks 1 of the model's weights"):
        load_model(folder, CPU, head=True)
    norm = next(name for name in weights if "norm" in name)
    save_file({k: v for k, v in weights.items() if k != norm}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the model's weights \(.*norm.*incomplete"):
        load_model(folder, CPU, head=False)


def test_remote_code_stays_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "strange", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}})
    )
    (tmp_path / "own.py").write_text("raise SystemError('this code was run')\n")
    with pytest.raises(ValueError, match="needs Python code that comes with it: read it, and give --trust-remote-code"):
        load_model(tmp_path, CPU)
    with pytest.raises(SystemError, match="this code was run"):
        load_model(tmp_path, Reading("fp32", "cpu", trust_remote_code=True))


def test_the_cache_is_listed_without_a_network(tmp_path: Path) -> None:
    files = hub_cache.model_files(0)
    for revision in ("step8", "step1000", "main"):
        hub_cache.add_revision(tmp_path, "org/tiny", revision, files)
    hub = Hub(tmp_path)
    assert sorted(hub.revisions("org/tiny")) == ["main", "step1000", "step8"]
    assert hub.fetch("org/tiny", "step8").name == hub_cache.commit_of("org/tiny", "step8")
    asked = r"revision 'step9' of org/tiny is not in the hub's cache.*hf download org/tiny --revision step9.*HF_HUB_OFF"
    with pytest.raises(ValueError, match=asked):
        hub.fetch("org/tiny", "step9")
    with pytest.raises(
        ValueError, match=r"'org/other' is no folder here.*not in the hub's cache.*`hf download org/other`"
    ):
        hub.revisions("org/other")
    hub.evict("org/tiny", "step8")
    assert sorted(hub.cached("org/tiny")) == ["main", "step1000", "step8"]  # nothing of it was fetched here
