"""GeometryMonitor: what is measured when, what is recorded of it, and what happens when something is wrong."""

from __future__ import annotations

import copy
import json
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from geomcallbacks import GeometryMonitor, GeometryRecord, ProbeSet, Schedule, read_records, read_spectra
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.record import read_lines


@pytest.fixture
def without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have left behind tells of the precision of training."""
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})


def monitor(probe: object = None, **changes: object) -> GeometryMonitor:
    settings = {"alpha_window": tiny.WINDOW, "on_error": "raise"} | changes
    return GeometryMonitor(tiny.probe() if probe is None else probe, **settings)


def own_features(model: nn.Module, probe: ProbeSet) -> Tensor:
    """Last-token states by the model's own full forward, on the batches in which the monitor runs the probe."""
    model, features = copy.deepcopy(model).eval(), {}
    for batch in probe.batches(32):
        with torch.no_grad():
            out = model(batch.input_ids_bt, attention_mask=batch.mask_bt, output_hidden_states=True)
        for row, states, length in zip(batch.rows_b.tolist(), out.hidden_states[-1], batch.lengths_b, strict=True):
            features[row] = states[length - 1].double()
    return torch.stack([features[row] for row in range(len(probe))])


def assert_metrics(record: GeometryRecord, features_nd: Tensor, rel: float = 1e-9) -> None:
    assert record.metrics == pytest.approx(reference.describe(features_nd.numpy(), record.alpha_window), rel=rel)


def table_probe(n: int) -> ProbeSet:
    return ProbeSet.from_token_ids([[0, i] for i in range(1, n + 1)])


# --- what is measured ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(90, 6), (6, 6), (30, 50)], ids=["n>d", "n=d", "n<d"])
@pytest.mark.parametrize("intervals", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_metrics_of_known_features(n: int, d: int, intervals: bool, dtype: torch.dtype) -> None:
    """Rows held for resampling and moments filled in batches give the same numbers, to 1e-9."""
    model = nn.Sequential(nn.Embedding(100, d)).to(dtype)  # its states are a table's rows
    watch = monitor(table_probe(n), layers="0", alpha_window=(1, 4), intervals=intervals, batch_size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # n < 4d
        (record,) = watch.measure(model, 0)
    assert_metrics(record, model[0].weight.detach()[1 : n + 1].double())
    assert (record.n, record.d, record.reasons) == (n, d, {})
    assert set(record.intervals) == (set(METRIC_NAMES) if intervals and n >= 20 else set())
    for name, (low, high) in record.intervals.items():
        assert low <= record.metrics[name] <= high


@pytest.mark.parametrize("how", ["autocast", "own autocast", "model"])
def test_bf16(how: str) -> None:
    """Under the ambient autocast, under the monitor's own, and in a bf16 model: the model's own bf16 states."""
    model, probe = tiny.model("llama", **({"dtype": torch.bfloat16} if how == "model" else {})), tiny.probe()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how != "model"):
        wanted_nd = own_features(model, probe)
    watch = monitor(probe, precision="bf16" if how == "own autocast" else "training")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        (record,) = watch.measure(model, 0)
    assert record.precision == "bf16"
    assert_metrics(record, wanted_nd)
    (in_fp32,) = monitor(probe).measure(model.float(), 0)
    assert_metrics(in_fp32, own_features(model, probe), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # precision="fp32" overrides what is active
        (overridden,) = monitor(probe, precision="fp32").measure(model, 0)
    assert (overridden.precision, overridden.metrics) == ("fp32", in_fp32.metrics)
    assert record.metrics != pytest.approx(in_fp32.metrics, rel=1e-7)
    assert record.metrics == pytest.approx(in_fp32.metrics, rel=0.1)


def test_several_probes_and_layers_in_one_pass_over_each() -> None:
    model, calls = tiny.model(), []
    probes = {"a": tiny.probe(64), "b": tiny.probe(72, seed=5)}
    watch = monitor(probes, layers=[0, 1, -1])
    watch.start(model)
    handle = model.gpt_neox.register_forward_hook(
        lambda module, args, kwargs, out: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    records = watch.measure(model, 0)
    handle.remove()
    assert calls == [32, 32, 32, 32, 8]
    assert [(r.probe, r.layer, r.n) for r in records] == [
        (label, f"layer{layer}", n) for label, n in (("a", 64), ("b", 72)) for layer in (0, 1, 3)
    ]
    for record in records:
        (alone,) = monitor(probes[record.probe], layers=int(record.layer[-1])).measure(model, 0)
        assert record.metrics == alone.metrics
    assert len({record.metrics["rankme"] for record in records}) == 6


# --- when ---------------------------------------------------------------------------------------------------------


def test_measured_at_the_scheduled_updates_once_each(tmp_path: Path) -> None:
    watch = monitor(path=tmp_path / "g.jsonl", schedule=Schedule(every=4, per_decade=0, at=(3,)), total_steps=10)
    model = tiny.model()
    measured = []
    for step in range(11):
        for _ in range(2):  # two batches of one update, with gradient accumulation
            measured += [record.step for record in watch.step(model, step)]
    assert measured == [0, 3, 4, 8, 10]
    assert watch.step(model, 10, last=True) == []
    assert [record.step for record in watch.step(model, 11, last=True)] == [11]  # an end that nobody foresaw
    assert [record.step for record in watch.measure(model, 11)] == [11]  # whatever the schedule says
    watch.close()
    assert [line["step"] for line in read_records(tmp_path / "g.jsonl")] == [*measured, 11, 11]


# --- what is recorded ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_accelerate")
def test_record_and_header_carry_what_they_need(tmp_path: Path) -> None:
    model, probe = tiny.model("olmo2"), tiny.probe()
    settings = dict(layers=[-1], batch_size=16, total_steps=50)
    watch = monitor({"books": probe}, path=tmp_path / "g.jsonl", tokens_per_update=128, **settings)
    (record,) = watch.measure(model, 7)
    watch.close()
    header, line = read_lines(tmp_path / "g.jsonl")
    assert header["probes"] == {"books": {"fingerprint": probe.fingerprint, "rows": 64}}
    told = {**settings, "alpha_window": [2, 8], "positions": "last", "precision": "training"}
    assert {key: header["settings"][key] for key in told} == told
    assert header["settings"]["schedule"]["per_decade"] == 8
    assert header["versions"]["torch"] == torch.__version__
    wanted = {
        "step": 7,
        "tokens": 896,
        "probe": "books",
        "fingerprint": probe.fingerprint,
        "layer": "layer3",
        "module": "model",
        "positions": "last",
        "n": 64,
        "d": 16,
        "alpha_window": [2, 8],
        "precision": "fp32",
        "batch_size": 16,
        "reasons": {},
        "intervals": {},
        "notes": ["the precision of training is not known: measured in that of the weights, fp32"],
    }
    assert {key: line[key] for key in wanted} == wanted
    assert {name: line[name] for name in METRIC_NAMES} == record.metrics
    assert line["seconds_forward"] > 0
    assert line["seconds_spectrum"] > 0
    assert "centred covariance" in line["convention"]
    torch.testing.assert_close(read_spectra(tmp_path / "g.jsonl", line), record.eigenvalues.float(), rtol=0, atol=0)
    assert len(record.eigenvalues) == 16


def test_spectra_can_be_left_off(tmp_path: Path) -> None:
    monitor(path=tmp_path / "g.jsonl", spectra=False).measure(tiny.model(), 0)
    assert read_records(tmp_path / "g.jsonl")[0]["spectrum"] is None
    monitor(path=None).measure(tiny.model(), 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_g-probes", "g.jsonl"]
    (kept,) = (tmp_path / "_g-probes").iterdir()
    assert (kept.stem, ProbeSet.load(kept).fingerprint) == (tiny.probe().fingerprint,) * 2


# --- where there is no value --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(60, 6), (30, 50)], ids=["n>d", "n<d"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_rows(tmp_path: Path, n: int, d: int, value: float) -> None:
    model = nn.Sequential(nn.Embedding(100, d))
    model[0].weight.data[[3, 5], 2] = value
    watch = monitor(table_probe(n), layers="0", alpha_window=(1, 4), path=tmp_path / "g.jsonl", batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (record,) = watch.measure(model, 0)
    reason = f"2 of {n} rows are not finite"
    assert record.metrics == dict.fromkeys(METRIC_NAMES)
    assert record.reasons == dict.fromkeys(METRIC_NAMES, reason)
    (line,) = read_records(tmp_path / "g.jsonl")
    assert (line["rankme"], line["reasons"]["rankme"], line["spectrum"]) == (None, reason, None)
    assert "NaN" not in (tmp_path / "g.jsonl").read_text()
    model[0].weight.data[[3, 5], 2] = 0.0
    assert watch.measure(model, 1)[0].metrics["rankme"] > 1


# --- what is wrong with the arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probe": {}}, r"probe=\{\} measures nothing: give a ProbeSet"),
        ({"probe": {"a": ["text"]}}, r"probe 'a' is a list, not a ProbeSet: build one with"),
        ({"positions": "first"}, r"positions='first' is unknown: give 'last'"),
        ({"positions": 8}, r"positions=8 needs rows of at least 9 tokens.*one of 8"),
        ({"alpha_window": (5, 4)}, r"alpha_window=\(5, 4\) is not a window"),
        ({"alpha_window": (11, 64)}, r"alpha_window=\(11, 64\) reaches past the 63 eigenvalues that n = 64 features of"
                                     r" probe 'probe' have: end it at 63 or below, and at the model's d"),
        ({"precision": "fp8"}, r"precision='fp8' is unknown: give 'training', 'fp32' or 'bf16'"),
        ({"batch_size": 0}, r"batch_size=0: give a positive number"),
        ({"layers": 1.5}, "layers=1.5 is no layer"),
        ({"total_steps": -1}, "total_steps=-1: give the number"),
    ],
)  # fmt: skip
def test_arguments_are_refused_at_construction(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        monitor(**{"on_error": "warn", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "gpt_neox.layer.1"}, r"layers='gpt_neox.layer.1' is no submodule.*gpt_neox.layers.1"),
        ({"alpha_window": (11, 40)}, r"alpha_window=\(11, 40\) reaches past the 16 eigenvalues that n = 64 features of"
                                     r" d = 16 of probe 'probe' have: end it at 16 or below, such as .*\(2, 12\)"),
        ({"probe": ProbeSet.from_token_ids(torch.full((64, 5), 120))}, r"probe 'probe' holds token id 120, and the"
                                     r" model's vocabulary ends at 119: build it with the model's own"),
        ({"probe": tiny.probe(t=70)}, r"probe 'probe' has a row of \d+ tokens.*64 positions.*max_length=64"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_what_needs_the_model_is_refused_at_the_start(
    tmp_path: Path, changes: dict[str, object], message: str, on_error: str
) -> None:
    model = tiny.model("gpt2") if "tokens" in message else tiny.model()  # whose positions end
    for begin in ("start", "step", "measure"):
        watch = monitor(**{"on_error": on_error, "path": tmp_path / "g.jsonl", **changes})
        with pytest.raises(ValueError, match=message):
            watch.start(model) if begin == "start" else getattr(watch, begin)(model, 0)
    assert not (tmp_path / "g.jsonl").exists()


def test_few_rows_warn_once() -> None:
    watch, model = monitor(tiny.probe(63)), tiny.model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            watch.measure(model, step)
        watch.start(model)
    (said,) = [str(w.message) for w in caught]
    assert "n = 63 features of d = 16: below 4 d = 64, RankMe and its relatives are biased downward" in said


# --- what goes wrong on the way -----------------------------------------------------------------------------------


def breaks(model: nn.Module, error: Callable[[int], Exception | None]) -> None:
    """Have the backbone raise what `error` makes of the number of rows it is given."""

    def check(module: nn.Module, args: object, kwargs: dict[str, Tensor]) -> None:
        raised = error(len(kwargs["input_ids"]))
        if raised is not None:
            raise raised

    model.gpt_neox.register_forward_pre_hook(check, with_kwargs=True)


@pytest.mark.usefixtures("without_accelerate")
def test_out_of_memory_halves_the_batch(tmp_path: Path) -> None:
    model = tiny.model()
    (wanted,) = monitor(batch_size=32).measure(model, 0)
    watch = monitor(batch_size=32, path=tmp_path / "g.jsonl", on_error="warn")
    watch.start(model)
    seen: list[int] = []
    breaks(model, lambda rows: seen.append(rows) or (torch.OutOfMemoryError("injected") if rows > 5 else None))
    with pytest.warns(UserWarning, match=r"the probe ran out of memory: batch_size is now 4") as caught:
        (record,) = watch.measure(model, 0)
    assert len(caught) == 1
    assert seen == [32, 16, 8] + [4] * 16
    assert record.notes[:-1] == [f"out of memory: batch_size halved to {size}" for size in (16, 8, 4)]
    assert record.batch_size == 4
    assert record.metrics == pytest.approx(wanted.metrics, rel=1e-6)
    assert read_records(tmp_path / "g.jsonl")[0]["notes"] == record.notes
    seen.clear()
    (later,) = watch.measure(model, 1)  # begins where the last one ended
    assert (seen, later.batch_size, later.metrics) == ([4] * 16, 4, record.metrics)


def test_memory_of_a_failed_attempt_is_free_before_the_next() -> None:
    """An exception holds its frames, and they what filled the memory."""
    held: list[weakref.ref[Tensor]] = []

    def forward(model: nn.Module, ids_bt: Tensor, mask_bt: Tensor) -> Any:
        assert all(reference() is None for reference in held)
        activations = torch.ones(8)
        if len(ids_bt) > 8:
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("injected")
        return model(input_ids=ids_bt, attention_mask=mask_bt)

    watch = monitor(batch_size=32, forward=forward)
    with pytest.warns(UserWarning, match="batch_size is now 8"):
        (record,) = watch.measure(tiny.model(), 0)
    assert (len(held), record.batch_size) == (2, 8)


def test_unwritable_record_does_not_end_training(tmp_path: Path) -> None:
    (tmp_path / "g-spectra").write_text("a file where the folder is to be")
    watch = monitor(on_error="warn", path=tmp_path / "g.jsonl")
    with pytest.warns(UserWarning, match=r"g\.jsonl could not be written \(.*training goes on without"):
        records = watch.measure(tiny.model(), 0)
    watch.close()
    assert records[0].metrics["rankme"] == read_records(tmp_path / "g.jsonl")[0]["rankme"]
    assert read_records(tmp_path / "g.jsonl")[0]["spectrum"] is None


def test_failing_probe_leaves_the_others_their_records(tmp_path: Path) -> None:
    failures = []

    def forward(model: nn.Module, ids_bt: Tensor, mask_bt: Tensor) -> Any:
        if ids_bt.shape[1] > 20:
            failures.append(1)
            raise KeyError(f"no {len(failures)}")  # a message that differs each time
        return model(input_ids=ids_bt, attention_mask=mask_bt)

    probes = {"a": tiny.probe(), "b": tiny.probe(t=30), "c": tiny.probe(seed=5)}
    model = tiny.model()
    watch = GeometryMonitor(probes, alpha_window=tiny.WINDOW, forward=forward, path=tmp_path / "g.jsonl")
    with pytest.warns(UserWarning, match="KeyError") as caught:
        found = [[record.probe for record in watch.measure(model, step)] for step in range(3)]
    watch.close()
    assert found == [["a", "c"]] * 3
    assert len([w for w in caught if "KeyError" in str(w.message)]) == 1
    assert [record["probe"] for record in read_records(tmp_path / "g.jsonl")] == ["a", "c"] * 3


def test_updates_counted_by_numpy(tmp_path: Path) -> None:
    watch = monitor(path=tmp_path / "g.jsonl", schedule=Schedule(every=1), tokens_per_update=7)  # what is given wins
    for step in np.arange(3):
        watch.step(tiny.model(), step, tokens=10 * step)
    watch.close()
    assert [(r["step"], r["tokens"]) for r in read_records(tmp_path / "g.jsonl")] == [(0, 0), (1, 10), (2, 20)]
    json.dumps(watch.state_dict())


# --- runs ---------------------------------------------------------------------------------------------------------


def test_length_of_one_run_is_not_that_of_the_next(tmp_path: Path) -> None:
    watch, model = monitor(schedule=Schedule(every=100, per_decade=0)), tiny.model()
    watch.start(model, total_steps=2)
    assert [len(watch.step(model, step)) for step in range(3)] == [1, 0, 1]
    watch.start(model)
    assert [len(watch.step(model, step)) for step in range(3)] == [1, 0, 0]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"alpha_window": (3, 9)}, r"alpha_window = \[2, 8\], and now has \[3, 9\]"),
        ({"positions": 3}, "positions = last, and now has 3"),
        ({"precision": "bf16"}, "precision = training, and now has bf16"),
        ({"probe": {"a": tiny.probe(), "b": tiny.probe()}}, r"probes = \{'a': .*\}, and now has .*'b'"),
    ],
)
def test_checkpoint_of_another_convention_is_refused(changed: dict[str, Any], said: str) -> None:
    state = json.loads(json.dumps(monitor({"a": tiny.probe()}).state_dict())) | {"step": 7}
    changed = {"probe": {"a": tiny.probe()}} | changed
    with pytest.raises(ValueError, match=rf"the run was measured with {said}.*: give it the same, or allow_change"):
        monitor(**changed).load_state_dict(state)
    allowed = monitor(**changed, allow_change=True)
    allowed.load_state_dict(state)
    assert (allowed.resumed_from, allowed.state_dict()["step"]) == (7, 7)
    monitor({"a": tiny.probe()}, batch_size=7).load_state_dict(state)  # the same numbers but for rounding


def test_what_a_checkpoint_left_unmeasured_is_measured(tmp_path: Path) -> None:
    """The end had come before the measurement, yet not before the checkpoint."""
    path, model = tmp_path / "g.jsonl", tiny.model()
    first, ends = monitor(path=path, schedule=Schedule(every=2, per_decade=0)), [False]
    first.start(model, ending=lambda: ends[0])
    for step in range(4):
        first.step(model, step)
    ends[0] = True
    assert first.step(model, 4) == []
    state = first.state_dict()
    first.close()
    assert (state["step"], state["measured"]) == (4, 2)
    for _ in range(2):  # once: the file says so even where the checkpoint is the old one
        again = monitor(path=path, schedule=Schedule(every=2, per_decade=0))
        again.load_state_dict(json.loads(json.dumps(state)))
        again.step(model, 4)
        again.close()
    assert [r["step"] for r in read_records(path)] == [0, 2, 4]


def test_a_file_of_another_kind_costs_the_phases_alone(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    ours = {"kind": "record", "probe": "probe", "layer": "layer3", "fingerprint": None, "positions": None}
    lines = [{"kind": "record", "step": 1, "accuracy": 0.5}, ours | {"step": 2, "rankme": "high"}]
    header = {"kind": "header", "schema": 1, "run_id": "a"}
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *lines)))
    watch = monitor(path=path, schedule=Schedule(every=1))
    with pytest.warns(UserWarning, match="phases start anew"):
        watch.start(tiny.model(), step=2, state={"step": 2, "run_id": "a"})
    assert len(watch.step(tiny.model(), 3)) == 1


def test_an_allowed_change_begins_another_curve(tmp_path: Path) -> None:
    """Values of another probe say nothing of the phase."""
    path, model = tmp_path / "g.jsonl", tiny.model()
    before = monitor(path=path, schedule=Schedule(every=1))
    for step in range(8):
        before.step(model, step)
    state = before.state_dict()
    before.close()
    for probe, curves in ((tiny.probe(seed=9), 0), (tiny.probe(), 1)):
        after = monitor(probe, path=path, allow_change=True)
        after.load_state_dict(state)
        after.start(model, step=7)
        assert len(after._curves) == curves
        after.close()
