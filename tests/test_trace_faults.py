"""`geomcallbacks trace` and `phases` where files, names and settings are wrong: nothing lost, nothing silent."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_cache
import huggingface_hub
import pytest
import tiny
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from geomcallbacks import GeometryMonitor, ProbeSet, read_records
from geomcallbacks.cli import main
from geomcallbacks.phases.table import phases_of_file
from geomcallbacks.trace import ProbeSource, Reading, trace
from geomcallbacks.trace import command as trace_command
from geomcallbacks.trace.behaviour_source import BehaviourSource
from geomcallbacks.trace.checkpoints.find import find_checkpoints
from geomcallbacks.trace.checkpoints.folders import folder_checkpoints
from geomcallbacks.trace.checkpoints.hub import Hub
from geomcallbacks.trace.checkpoints.loading import load_model
from geomcallbacks.trace.checkpoints.revisions import choose_names
from geomcallbacks.trace.file import TraceFile
from geomcallbacks.trace.recorded import read_recorded

CPU = Reading("fp32", "cpu")
GIVEN: dict[str, Any] = {"settings": {"alpha_window": tiny.WINDOW}, "reading": CPU}
ABOUT = {"trace": {"models": ["m"]}, "settings": {"layers": -1}, "probes": {}, "versions": {}}


def save(folder: Path, seed: int = 0) -> Path:
    tiny.model(seed=seed).save_pretrained(folder)
    return folder


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    tiny.probe().save(tmp_path / "probe.safetensors")
    return tmp_path / "probe.safetensors"


# The record file.


@pytest.mark.parametrize(
    "content",
    [b"my notes\n", b"one\ntwo\n", b'{\n  "hidden_size": 16\n}\n', bytes(range(256)) * 9, b'{"a": 1}\n', b"\n"],
    ids=["one line", "lines", "config.json", "binary", "json", "blank"],
)
def test_a_file_of_another_kind_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "precious"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"precious.* is no record file of a trace: give another --out"):
        TraceFile(file, ABOUT)
    assert file.read_bytes() == content
    (tmp_path / "empty").touch()
    assert TraceFile(tmp_path / "empty", ABOUT).records() == []


def test_settings_that_measured_nothing_do_not_hold_the_file(tmp_path: Path) -> None:
    save(tmp_path / "run" / "checkpoint-1")
    wrong = GIVEN | {"settings": {"alpha_window": (2, 40)}}
    with pytest.raises(ValueError, match="reaches past"):
        trace(tmp_path / "run", probes=tiny.probe(), **wrong)
    assert trace(tmp_path / "run", probes=tiny.probe(), **GIVEN).measured == ["run@checkpoint-1"]
    (header, record) = map(json.loads, (tmp_path / "run" / "geometry-trace.jsonl").read_text().splitlines())
    assert header["settings"]["alpha_window"] == record["alpha_window"] == list(tiny.WINDOW)
    with pytest.raises(ValueError, match=r"begun with other settings: alpha_window was \[2, 8\]"):
        trace(tmp_path / "run", probes=tiny.probe(), **(GIVEN | {"settings": {"alpha_window": (2, 9)}}))


def test_a_trace_that_is_still_at_work_does_not_mix_with_another(tmp_path: Path) -> None:
    first = TraceFile(tmp_path / "t.jsonl", ABOUT)
    other = TraceFile(tmp_path / "t.jsonl", ABOUT | {"settings": {"layers": 0}})
    other.add(1, [{"step": 1, "revision": "a", "model": "m"}])
    with pytest.raises(ValueError, match="begun with other settings"):
        first.add(2, [{"step": 2, "revision": "b", "model": "m"}])
    assert [record["step"] for record in other.records()] == [1]


def test_models_of_one_folder_name_are_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [save(tmp_path / name / "final", seed) for seed, name in enumerate(("sft", "dpo"))]
    broken = tmp_path / "rl" / "final"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{}")
    out = tmp_path / "g.jsonl"
    arguments = GIVEN | {"probes": tiny.probe(), "out": out}
    summary = trace([*models, broken], **arguments)
    assert summary.measured == [f"{model}@final" for model in models]
    assert list(summary.failed) == [f"{broken}@final"]
    live = [GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW).measure(tiny.model(seed=k), 0)[0] for k in (0, 1)]
    assert [(r["step"], r["rankme"]) for r in read_records(out)] == [
        (step, pytest.approx(record.metrics["rankme"], rel=1e-6)) for step, record in enumerate(live)
    ]
    assert trace([*models, broken], **arguments).before == 2


def test_models_of_different_width_are_measured_after_a_stop(tmp_path: Path) -> None:
    models = [save(tmp_path / "a"), tmp_path / "b", save(tmp_path / "c", 1)]
    narrow = tiny.CONFIGS["gpt_neox"]()
    narrow.hidden_size = 8
    AutoModelForCausalLM.from_config(narrow).save_pretrained(models[1])
    arguments = GIVEN | {"probes": tiny.probe(), "out": tmp_path / "g.jsonl", "settings": {"alpha_window": (2, 12)}}
    for before in (0, 2):  # the second start meets the misfit first
        summary = trace(models, **arguments)
        assert list(summary.failed) == ["b@b"]
        assert "reaches past the 8 eigenvalues" in summary.failed["b@b"]
        assert summary.before == before
    assert [record["step"] for record in read_records(tmp_path / "g.jsonl")] == [0, 2]


def test_a_moved_run_and_its_checkpoints_folder_go_on(tmp_path: Path, probe: Path) -> None:
    for step in (1, 2):
        save(tmp_path / "old" / "checkpoints" / f"step-{step}", step)
    arguments = GIVEN | {"probes": ProbeSource(str(probe))}
    assert len(trace(tmp_path / "old", **arguments).measured) == 2
    (tmp_path / "old").rename(tmp_path / "new")
    assert trace(tmp_path / "new", **arguments).before == 2
    assert trace(tmp_path / "new" / "checkpoints", **arguments).before == 2


# What can be measured.


def test_weights_of_nan_are_no_measurement(tmp_path: Path) -> None:
    model = tiny.model()
    for step, value in ((1, None), (2, torch.nan)):
        if value is not None:
            model.get_input_embeddings().weight.data[:] = value  # type: ignore[operator]
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    summary = trace(tmp_path, probes=tiny.probe(), **GIVEN)
    assert summary.exit_status == 1
    (reason,) = summary.failed.values()
    assert "nothing can be measured of it: 64 of 64 rows are not finite" in reason
    assert [record["step"] for record in read_records(tmp_path / "geometry-trace.jsonl")] == [1]


@pytest.mark.parametrize("device", ["foo", "cuda:97"])
def test_a_device_that_is_not_there_is_an_error_of_the_command(
    tmp_path: Path, device: str, probe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "checkpoint-1")
    assert main(["trace", str(tmp_path), "--probe", str(probe), "--device", device]) == 2
    assert f"--device {device} cannot be used here" in capsys.readouterr().err


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 50}))
    torch.save({"state_dict": tiny.model().state_dict()}, tmp_path / "step=1.ckpt")
    said = r"2 weights of other shapes.*embed_in\.weight: \(120, 16\), not \(50, 16\)"
    for source in (tmp_path, tmp_path / "step=1.ckpt"):
        with pytest.raises(ValueError, match=said):
            load_model(source, CPU)


class Code:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (print, ("this code was run",))


def test_weights_that_hold_code_are_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save(tmp_path / "hf")
    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    torch.save(state | {"own": Code()}, model / "pytorch_model.bin")
    torch.save({"state_dict": state, "own": Code()}, tmp_path / "step=3.ckpt")
    torch.save({"state_dict": state, "own": Code(), "global_step": 3}, tmp_path / "best.ckpt")
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    for source in (model, tmp_path / "step=3.ckpt"):
        with pytest.raises(ValueError, match="holds code besides tensors, and was refused") as caught:
            load_model(source, CPU)
        assert "\n" not in str(caught.value)
    problem = str(folder_checkpoints(tmp_path)["best"].problem)
    assert "holds code besides tensors" in problem
    assert "\n" not in problem
    assert "this code was run" not in capsys.readouterr().out


# What a run's folder says.


def test_settings_that_are_none_are_passed_over(tmp_path: Path) -> None:
    live(tmp_path, (0,))
    with (tmp_path / "geometry.jsonl").open("a") as file:
        file.write('{"kind": "header", "schema": 1, "run_id": "x", "resumed_from": 0, "settings": []}\n')
    recorded = read_recorded(tmp_path)
    assert recorded is not None
    assert recorded.settings["alpha_window"] == tiny.WINDOW


def live(folder: Path, steps: tuple[int, ...], name: str = "geometry.jsonl", **more: Any) -> None:
    """A run's folder with records and checkpoints."""
    settings = {"alpha_window": tiny.WINDOW, "on_error": "raise"} | more
    monitor = GeometryMonitor(tiny.probe(), path=folder / name, **settings)
    for step in steps:
        model = tiny.model(seed=step)
        monitor.measure(model, step)
        model.save_pretrained(folder / f"checkpoint-{step}")
    monitor.close()


def test_the_latest_start_of_a_run_is_read_and_what_it_began_from(tmp_path: Path) -> None:
    live(tmp_path, (0, 1), from_scratch=True)
    live(tmp_path, (0, 1), positions=3, from_scratch=False)
    assert (tmp_path / "geometry-2.jsonl").is_file()
    recorded = read_recorded(tmp_path)
    assert recorded is not None
    assert (recorded.settings["positions"], recorded.from_scratch) == (3, False)
    (tmp_path / "geometry-3.jsonl").write_text((tmp_path / "geometry.jsonl").read_text().splitlines()[0] + "\n")
    again = read_recorded(tmp_path)
    assert again is not None
    assert (again.settings, again.from_scratch) == (recorded.settings, False)  # the third ended before it measured
    trace(tmp_path, reading=CPU)
    header = json.loads((tmp_path / "geometry-trace.jsonl").read_text().splitlines()[0])
    assert header["settings"]["from_scratch"] is False
    assert read_records(tmp_path / "geometry-trace.jsonl")[0]["positions"] == 3


def test_models_in_order_are_not_from_scratch(tmp_path: Path) -> None:
    models = [save(tmp_path / name) for name in "ab"]
    trace(models, probes=tiny.probe(), out=tmp_path / "g.jsonl", **GIVEN)
    header = json.loads((tmp_path / "g.jsonl").read_text().splitlines()[0])
    assert header["settings"]["from_scratch"] is False


def test_an_empty_record_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "geometry.jsonl").touch()
    with pytest.warns(UserWarning, match=r"geometry\.jsonl holds no measurement: probe and settings are the defaults"):
        assert read_recorded(tmp_path) is None


def test_the_probe_of_a_run_is_not_replaced_by_the_way(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    trace_command.add_arguments(parser)
    live(tmp_path, (0,))
    with pytest.raises(ValueError, match=r"--probe-rows, --probe-column: .* is read with the probe of its run"):
        trace_command.probes_of(parser.parse_args([str(tmp_path), "--probe-rows", "9", "--probe-column", "body"]))
    given = parser.parse_args([str(tmp_path), "--probe-rows", "9", "--probe", "offline"])
    assert trace_command.probes_of(given) == {"probe": ProbeSource(rows=9)}


# Names.


class Listed:
    def __init__(self, names: list[str], complete: bool = True) -> None:
        self.names, self.complete = names, complete

    def revisions(self, model: str) -> list[str]:
        return self.names

    def knows_all(self, model: str) -> bool:
        return self.complete


def test_names_with_and_without_tokens_are_compared() -> None:
    names = ["step1000-tokens2B", "step1000", "step8"]
    assert choose_names(names, "all", "m") == ["step8", "step1000", "step1000-tokens2B"]
    with pytest.raises(ValueError, match="both stand at step 1000"):
        find_checkpoints(["a/b"], Listed(names), "all")


def test_lightning_files_are_thinned_by_their_steps(tmp_path: Path) -> None:
    for step in range(10, 101):
        (tmp_path / f"epoch=0-step={step}.ckpt").touch()
    found = [each.step for each in find_checkpoints([str(tmp_path)], Listed([]), "log")]
    assert found == [10, 13, 18, 24, 32, 42, 56, 75, 100]  # nearest to 10^(k/8), by hand
    assert len(find_checkpoints([str(tmp_path)], Listed([]), "all")) == 91


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("train_loss_step=0.35-step=1000", 1000),
        ("step=1000-loss_step=0.35", 1000),
        ("epoch=0-step=77-v1", 77),
        ("loss_step=3-step=8", 8),
    ],
)
def test_the_step_of_a_lightning_name(tmp_path: Path, name: str, step: int) -> None:
    (tmp_path / f"{name}.ckpt").touch()
    assert folder_checkpoints(tmp_path)[name].step == step


def test_revisions_that_cannot_be_are_refused(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "config.json").write_text("{}")
    hub = Listed(["main", "step1"])
    with pytest.raises(ValueError, match="revision 'nonsense' is not one of the 1 of"):
        find_checkpoints([str(one)], hub, "nonsense")
    assert len(find_checkpoints([str(one)], hub, "all")) == len(find_checkpoints([str(one)], hub, "log")) == 1
    with pytest.raises(ValueError, match="a/b@step1 names its revision itself"):
        find_checkpoints(["a/b@step1"], hub, "main")
    with pytest.raises(ValueError, match="--tokens-per-update -5: give a positive number"):
        find_checkpoints(["a/b"], hub, tokens_per_update=-5)


def test_a_home_folder_is_understood_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(save(tmp_path / "elsewhere"))
    live(tmp_path / "run", (0, 1), positions=3)
    summary = trace("~/run", reading=CPU)  # settings, probe and the place of the records are the run's
    assert summary.path == tmp_path / "run" / "geometry-trace.jsonl"
    assert [record["positions"] for record in read_records(summary.path)] == [3, 3]


# The hub.


@pytest.mark.parametrize("name", ["../x", "me--x", "-a/b"])
def test_what_can_be_no_hub_name_is_told_so(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is no folder, and no hub name"):
        find_checkpoints([name], Hub(tmp_path))


def test_a_shortened_list_of_revisions_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for revision in ("stage1-step10-tokens1B", "stage2-ingredient1-step5-tokens1B"):
        hub_cache.add_revision(tmp_path, "org/olmo", revision, {"config.json": b"{}"})
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_refs", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.warns(UserWarning, match=r"cannot be reached .*ConnectionError.*only the 2 revisions of org/olmo in"):
        found = find_checkpoints(["org/olmo"], Hub(tmp_path), "stage1-step10-tokens1B")
    assert [each.step for each in found] == [10]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.warns(UserWarning, match="stage 2 is taken to go on from the last revision of stage 1 in the cache"):
        assert [each.step for each in find_checkpoints(["org/olmo"], Hub(tmp_path), "all")] == [10, 15]


def unreachable(*_: object, **__: object) -> None:
    raise ConnectionError("no route")


def test_a_later_stage_without_the_one_before_has_no_step(tmp_path: Path) -> None:
    name = "stage2-ingredient1-step5-tokens1B"
    with pytest.raises(ValueError, match="goes on from the last step of stage 1, of which the cache has no revision"):
        find_checkpoints(["org/olmo"], Listed([name], complete=False), name)
    assert [c.step for c in find_checkpoints(["org/olmo"], Listed([name]), name)] == [5]
    several = find_checkpoints([f"org/olmo@{name}", "org/olmo@" + name], Listed([name], complete=False))
    assert [each.step for each in several] == [0, 1]


def test_a_snapshot_known_by_its_commit_is_found_without_a_network(tmp_path: Path) -> None:
    snapshot = hub_cache.add_revision(tmp_path, "me/x", "main", {"config.json": b"{}"})
    (tmp_path / "models--me--x" / "refs" / "main").unlink()
    hub = Hub(tmp_path)
    (found,) = find_checkpoints([f"me/x@{snapshot.name}"], hub)
    assert hub.fetch(found.model, found.revision) == snapshot


@pytest.mark.parametrize("error", [OSError("no space left"), LocalEntryNotFoundError("gone")])
def test_a_fetch_that_broke_off_is_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def half(*_: object, **__: object) -> None:
        hub_cache.add_revision(tmp_path, "org/x", "step2", {"config.json": b"half"})
        hub_cache.add_revision(tmp_path, "org/x", "step3", {"config.json": b"another process's"})
        raise error

    hub_cache.add_revision(tmp_path, "org/x", "step1", {"config.json": b"before"})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", half)
    hub = Hub(tmp_path)
    with pytest.raises((OSError, ValueError)):
        hub.fetch("org/x", "step2")
    hub.evict("org/x", "step2")
    left = {folder.name for folder in (tmp_path / "models--org--x" / "snapshots").iterdir()}
    assert left == {hub_cache.commit_of("org/x", revision) for revision in ("step1", "step3")}


# Probes and choices.


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "w1 w2"}', '{"text": 5}'], r"line 2: column 'text' \(--probe-column\) holds a int, not a text"),
        (['{"text": null}', "", '{"text": ["a"]}'], "line 3: column 'text' .* holds a list"),
        (['{"text": "w1"}', "{torn"], "line 2 is no JSON"),
    ],
)
def test_a_line_of_a_probe_that_is_no_text_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        ProbeSource(str(file), rows=80, length=40).build(tiny.tokenizer())


def test_a_row_of_a_parquet_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"text": [1, 2]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"row 1: column 'text' .* holds a int"):
        ProbeSource(str(tmp_path / "t.parquet"), rows=80, length=40).build(tiny.tokenizer())


def test_a_line_of_choices_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("\n{torn\n")
    source = BehaviourSource({"sciq": str(tmp_path / "c.jsonl")})
    with pytest.raises(ValueError, match=r"c\.jsonl: line 2 is no JSON"):
        source._rows_of(str(tmp_path / "c.jsonl"), tiny.tokenizer())


def test_a_torn_probe_is_no_probe(tmp_path: Path, probe: Path) -> None:
    (tmp_path / "torn.safetensors").write_bytes(probe.read_bytes()[:100])
    save_file({"input_ids": torch.ones(2, 2)}, tmp_path / "half.safetensors", {"format": "geomcallbacks.probe.v1"})
    for name in ("torn", "half"):
        with pytest.raises(ValueError, match=f"{name}.safetensors is not a saved probe, or was torn"):
            ProbeSet.load(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError):
        ProbeSet.load(tmp_path / "none.safetensors")


# Phases.


def rows(**changes: Any) -> list[dict[str, Any]]:
    heights = [9, 5, 3, 5, 9, 17, 30]
    return [
        {"kind": "record", "step": 4**k, "probe": "p", "layer": "l", "rankme": float(y), "alpha_req": 1.0} | changes
        for k, y in enumerate(heights)
    ]


def write(path: Path, lines: list[dict[str, Any]], settings: Any) -> Path:
    header = {"kind": "header", "schema": 1, "run_id": "x", "resumed_from": None, "settings": settings}
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    return path


def test_rows_that_are_none_of_geometry_are_named(tmp_path: Path) -> None:
    file = tmp_path / "geometry.jsonl"
    without = [{key: value for key, value in row.items() if key != "layer"} for row in rows()]
    with pytest.raises(ValueError, match=r"geometry\.jsonl, record 1 has no 'layer'"):
        phases_of_file(write(file, without, {}))
    for name, value in (("step", "8"), ("rankme", "9"), ("step", None)):
        with pytest.raises(ValueError, match=rf"geometry\.jsonl, record 1: {name} is {value!r}, and must be a number"):
            phases_of_file(write(file, rows(**{name: value}), {}))
    (found,) = phases_of_file(write(file, rows(), [1])).values()
    assert [phase.name for phase in found] == ["warm-up", "entropy-seeking"]


def test_phases_take_the_folder_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "geometry.jsonl", rows(), {})
    write(tmp_path / "geometry-2.jsonl", rows(), {"from_scratch": False})
    assert main(["phases", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "compression-seeking" in said  # of the latest start
    assert "warm-up" not in said
    (tmp_path / "empty").mkdir()
    assert main(["phases", str(tmp_path / "empty")]) == 2
    assert "holds no geometry.jsonl" in capsys.readouterr().err
