"""Other weights than those that training moves: averages, schedule-free optimisers, quantised bases.

The record names what was measured; a trace gives the live number, or says which other weights a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import drives
import lightning as L
import pytest
import tiny
import torch
from drives import FAR, Module, batches, each_checkpoint, fit, make_trainer, watcher
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from geomcallbacks import GeometryMonitor, read_records
from geomcallbacks.cli import main
from geomcallbacks.metrics import METRIC_NAMES
from geomcallbacks.reading.weights import held_by_optimizers, storage_of
from geomcallbacks.trace import Reading, trace
from geomcallbacks.trace.checkpoints.held import lightning_states

CPU = Reading(device="cpu")
DECAY = {"decay": 0.9}


def values(record: dict[str, Any]) -> list[float]:
    return [record[name] for name in METRIC_NAMES]


def rows(path: Path) -> dict[int, dict[str, Any]]:
    return {record["step"]: record for record in read_records(path)}


def live(folder: Path) -> dict[int, dict[str, Any]]:
    return rows(folder / "geometry.jsonl")


def traced(folder: Path, **how: Any) -> dict[int, dict[str, Any]]:
    out = folder / f"{'-'.join(['trace', *map(str, how.values())])}.jsonl"
    summary = trace(folder, out=out, reading=Reading(device="cpu", **how))
    assert not summary.failed
    return rows(out)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return values(one) == pytest.approx(values(other), rel=1e-6)


def in_evaluation(folder: Path, callbacks: list[Any], module: Any = None, **changes: Any) -> tuple[Any, Any]:
    """Fit with dropout and checkpoints, and put the shape beside them, as `trace` wants it."""
    made, module = fit(folder, callbacks, module, **changes)
    module.network.config.save_pretrained(folder)
    return made, module


class StopsAtValidation(Module):
    def val_dataloader(self) -> Any:
        return batches(shuffle=False)

    def configure_callbacks(self) -> Any:
        return EarlyStopping("val/loss", stopping_threshold=1e9, mode="min")


class Averages(L.Callback):
    """Measures the average itself after each update, as nobody of ours does."""

    def __init__(self, average: WeightAveraging) -> None:
        self.average, self.rankme = average, dict[int, float]()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        monitor = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW)
        (record,) = monitor.measure(self.average._average_model, 0)  # type: ignore[arg-type]
        assert record.weights == "average (AveragedModel)"
        self.rankme[trainer.global_step] = record.metrics["rankme"]  # type: ignore[assignment]


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "behind ours"])
@pytest.mark.parametrize("kind", [lambda: EMAWeightAveraging(**DECAY), WeightAveraging], ids=["EMA", "SWA of updates"])
def test_lightnings_averages_are_told_from_what_was_measured(
    tmp_path: Path, kind: Callable[[], WeightAveraging], first: bool
) -> None:
    average, ours = kind(), watcher("lightning", "geometry", tmp_path)
    pair = [average, ours] if first else [ours, average]
    apart = Averages(average)
    in_evaluation(tmp_path, [*pair, apart, each_checkpoint(tmp_path, 2)])
    was, default, averages = live(tmp_path), traced(tmp_path), traced(tmp_path, weights="average")
    name = type(average).__name__
    assert default.keys() == averages.keys() == {2, 4}
    for step, record in default.items():
        assert (was[step]["weights"], record["weights"], record["notes"]) == ("training", "training", [])
        assert same(record, was[step])
        assert averages[step]["weights"] == f"average ({name})"
        assert averages[step]["rankme"] == pytest.approx(apart.rankme[step], rel=1e-6)
        assert averages[step]["rankme"] != pytest.approx(record["rankme"], rel=1e-3)
        (note,) = averages[step]["notes"]
        assert note.startswith(f"the run was measured on training weights, and these are average ({name}) weights")
    (tmp_path / "geometry.jsonl").unlink()  # without records: what Lightning itself would load
    settings = {"alpha_window": tiny.WINDOW}
    trace(tmp_path, probes=tiny.probe(), settings=settings, out=tmp_path / "alone.jsonl", reading=CPU)
    assert {step: row["weights"] for step, row in rows(tmp_path / "alone.jsonl").items()} == dict.fromkeys(
        (2, 4), f"average ({name})"
    )


def test_an_average_that_was_copied_in_before_the_last_measurement_is_named(tmp_path: Path) -> None:
    # An early stop is measured as training ends: WeightAveraging, called before ours, has put the average in by then.
    ours = watcher("lightning", "geometry", tmp_path, schedule=FAR)
    callbacks = [EMAWeightAveraging(**DECAY), ours, each_checkpoint(tmp_path, 1)]
    made, _ = in_evaluation(tmp_path, callbacks, StopsAtValidation(), max_steps=-1)
    last = made.global_step
    named = {step: row["weights"] for step, row in live(tmp_path).items()}
    assert named == {0: "training", last: "average (EMAWeightAveraging)"}
    found = traced(tmp_path)[last]
    assert (found["weights"], found["notes"]) == ("average (EMAWeightAveraging)", [])
    assert same(found, live(tmp_path)[last])


def test_what_is_saved_after_training_holds_the_average_alone(tmp_path: Path) -> None:
    ours = watcher("lightning", "geometry", tmp_path)
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1, annealing_epochs=1)
    callbacks = [ours, swa, each_checkpoint(tmp_path, 2)]
    made, module = in_evaluation(tmp_path, callbacks, max_steps=-1, max_epochs=3, accumulate_grad_batches=4)
    last = made.global_step
    assert last == 12
    for step, record in traced(tmp_path).items():
        assert (record["weights"], record["notes"]) == ("training", [])
        assert same(record, live(tmp_path)[step])
    swa_rows = traced(tmp_path, weights="average")
    assert {row["weights"] for row in swa_rows.values()} == {"average (StochasticWeightAveraging)"}
    for file in tmp_path.glob("step=*.ckpt"):
        file.unlink()
    made.save_checkpoint(tmp_path / f"step={last}.ckpt")
    found = rows(trace(tmp_path, out=tmp_path / "after.jsonl", reading=CPU).path)[last]
    live_now = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW).measure(module, last)
    assert found["rankme"] == pytest.approx(live_now[0].metrics["rankme"], rel=1e-6)
    assert found["weights"] == "average (StochasticWeightAveraging)"
    assert found["notes"][0].startswith("the run was measured on training weights, and these are average (Stochastic")


def test_an_average_in_a_plain_loop_is_named_and_its_checkpoint_said_to_be_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.model()
    average = AveragedModel(model)
    with GeometryMonitorOf(tmp_path) as monitor:
        for step in (1, 2):
            model.get_input_embeddings().weight.data *= 1 + torch.rand(16)  # type: ignore[operator]
            average.update_parameters(model)
            (record,) = monitor.measure(average, step)
            assert record.weights == "average (AveragedModel)"
            model.save_pretrained(tmp_path / f"checkpoint-{step}")
    assert main(["trace", str(tmp_path), "--device", "cpu"]) == 0
    told = "the run was measured on average (AveragedModel) weights, and these are training weights"
    assert capsys.readouterr().err.count(told) == 1  # once, and in each line of the file
    assert [told in row["notes"][0] for row in rows(tmp_path / "geometry-trace.jsonl").values()] == [True, True]
    assert main(["trace", str(tmp_path), "--device", "cpu", "--weights", "average", "--out", str(tmp_path / "x")]) == 1
    assert "holds training weights alone: leave out --weights average" in capsys.readouterr().err


def test_a_loop_says_what_its_model_cannot_show(tmp_path: Path) -> None:
    model, labels = tiny.model(), iter(["average (mine)", "training"])
    with GeometryMonitorOf(tmp_path) as monitor:
        monitor.start(model, weights=lambda: next(labels))
        for step in (1, 2):
            monitor.measure(model, step)
            model.save_pretrained(tmp_path / f"checkpoint-{step}")
    assert {step: row["weights"] for step, row in live(tmp_path).items()} == {1: "average (mine)", 2: "training"}
    assert {step: len(row["notes"]) for step, row in traced(tmp_path).items()} == {1: 1, 2: 0}


def test_another_number_than_the_logged_one_is_said_to_be_one_whatever_made_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A loop that saves an average of its own making: no file says so.
    model = tiny.model()
    with GeometryMonitorOf(tmp_path) as monitor:
        for step, factor in ((1, 1.0), (2, 3.0)):
            (record,) = monitor.measure(model, step)
            model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.data.mul_(
                factor * torch.linspace(1, 9, 32) ** (factor > 1)
            )
            model.save_pretrained(tmp_path / f"checkpoint-{step}")
    assert main(["trace", str(tmp_path), "--device", "cpu"]) == 0
    first, second = rows(tmp_path / "geometry-trace.jsonl").values()
    assert (first["notes"], first["rankme"]) == ([], live(tmp_path)[1]["rankme"])
    told = f"the run logged RankMe {record.metrics['rankme']:.4g} on probe/layer3 at step 2, and this is"
    assert second["notes"][0].startswith(f"{told} {second['rankme']:.4g}: the checkpoint holds other weights")
    assert told in capsys.readouterr().err
    otherwise = trace(tmp_path, settings={"positions": 4}, out=tmp_path / "otherwise.jsonl", reading=CPU)
    assert rows(otherwise.path)[2]["notes"] == []  # measured in another way, it is held against nothing


class GeometryMonitorOf:
    """A monitor that writes to a folder, closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.monitor = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, path=folder / "geometry.jsonl")

    def __enter__(self) -> GeometryMonitor:
        return self.monitor

    def __exit__(self, *_: Any) -> None:
        self.monitor.close()


# --- schedule-free ------------------------------------------------------------------------------------------------


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD after Defazio et al. 2024 (arXiv 2405.15682), with the interface of their package."""

    def __init__(self, parameters: Any, lr: float = 0.5, beta: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    def _mix(self, weight: Callable[[float], float], mode: bool) -> None:
        for group in self.param_groups:
            for p in group["params"] if group["train_mode"] != mode else ():
                if "z" in self.state[p]:
                    p.data.lerp_(self.state[p]["z"], weight(group["beta"]))
            group["train_mode"] = mode

    def eval(self) -> None:  # y to x
        self._mix(lambda beta: 1 - 1 / beta, False)

    def train(self) -> None:  # x to y
        self._mix(lambda beta: 1 - beta, True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            assert group["train_mode"]
            group["k"] += 1
            for p in (p for p in group["params"] if p.grad is not None):
                z = self.state[p].setdefault("z", p.clone())
                x = p.lerp(z, 1 - 1 / group["beta"])
                z.sub_(p.grad, alpha=group["lr"])
                x.lerp_(z, 1 / group["k"])
                p.copy_(x.lerp(z, 1 - group["beta"]))
        return loss


def optimiser_of(kind: str) -> Callable[[Any], Any]:
    if kind == "own":
        return ScheduleFree
    package = pytest.importorskip("schedulefree", reason="pip install schedulefree")
    return lambda parameters: package.AdamWScheduleFree(parameters, lr=1e-2)


@pytest.mark.parametrize("kind", ["own", "schedulefree"])
def test_schedule_free_weights_under_trainer(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.model(**drives.DROPOUT)
    optimiser = optimiser_of(kind)(model.parameters())
    ours = watcher("trainer", "geometry", tmp_path)
    changes = dict(save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=4)  # y at 2; at 4 x
    made = make_trainer(tmp_path, [ours], model, **changes)
    made.optimizer = optimiser
    made.train()
    tiny.tokenizer().save_pretrained(tmp_path / "checkpoint-2")
    assert {row["weights"] for row in live(tmp_path).values()} == {"training (schedule-free y)"}
    assert main(["trace", str(tmp_path), "--device", "cpu"]) == 0
    was, found = live(tmp_path), rows(tmp_path / "geometry-trace.jsonl")
    assert (found[2]["weights"], found[2]["notes"]) == ("training (schedule-free y)", [])
    assert same(found[2], was[2])
    assert not same(found[4], was[4])
    told = "the run was measured on training (schedule-free y) weights, and these are average (schedule-free x) weights"
    assert found[4]["notes"][0].startswith(told)
    assert told in capsys.readouterr().err


class ScheduleFreeModule(Module):
    kind = "own"

    def configure_optimizers(self) -> Any:
        return optimiser_of(self.kind)(self.parameters())

    def on_train_epoch_start(self) -> None:
        self.optimizers(use_pl_optimizer=False).train()  # type: ignore[union-attr]


class EvaluatesBeforeSaving(L.Callback):
    """What the package's README asks for before a checkpoint; back to training at the next batch."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.optimizers[0].eval()  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.optimizers[0].train()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["own", "schedulefree"])
@pytest.mark.parametrize("evaluates", [None, "before ours", "behind ours"])
def test_schedule_free_weights_under_lightning(tmp_path: Path, kind: str, evaluates: str | None) -> None:
    module, ours = ScheduleFreeModule(), watcher("lightning", "geometry", tmp_path)
    module.kind = kind
    pair = {
        None: [ours],
        "before ours": [EvaluatesBeforeSaving(), ours],
        "behind ours": [ours, EvaluatesBeforeSaving()],
    }
    in_evaluation(tmp_path, [*pair[evaluates], each_checkpoint(tmp_path, 2)], module, accumulate_grad_batches=1)
    was, found = live(tmp_path), traced(tmp_path)
    y, x = "training (schedule-free y)", "average (schedule-free x)"
    held = (x if evaluates == "before ours" else y, x if evaluates else y)
    for step, record in found.items():
        assert (was[step]["weights"], record["weights"]) == held
        assert same(record, was[step]) == (held[0] == held[1])
        assert [f"measured on {y} weights, and these are {x} weights" in note for note in record["notes"]] == [True] * (
            held[0] != held[1]
        )


def test_before_the_first_update_both_sets_of_a_schedule_free_optimiser_are_the_same() -> None:
    model = tiny.model()
    optimiser = ScheduleFree(model.parameters())
    assert held_by_optimizers([optimiser]) == "training (schedule-free y)"
    assert held_by_optimizers([torch.optim.SGD(model.parameters())]) == held_by_optimizers([]) == "training"
    assert held_by_optimizers([None, object()]) == "training"  # no optimiser of PyTorch's


# --- quantised ----------------------------------------------------------------------------------------------------


class Int8Linear(nn.Module):
    """A Linear whose weight is stored as int8 with a scale for each row, frozen, as a quantised base's."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = nn.Parameter(linear.weight.detach().abs().amax(1, keepdim=True) / 127, requires_grad=False)
        whole = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


class Packing(Int8Linear):
    """Packs its weight anew in evaluation, as bitsandbytes' Linear4bit does on a CPU."""

    support_avx512bf16_for_cpu = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not x.requires_grad:
            self.weight.data = self.weight.data.flip(0)
        return super().forward(x)


def test_a_weight_that_is_packed_anew_in_evaluation_is_left_as_it_is() -> None:
    model = tiny.model("llama")
    linear = model.model.layers[1].mlp.up_proj = Packing(model.model.layers[1].mlp.up_proj)
    before = linear.weight.clone()
    (record,) = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW).measure(model, 0)
    assert record.storage == "int8"
    assert linear.training
    assert torch.equal(linear.weight, before)


def test_a_four_bit_base_is_trained_as_without_us(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = tiny.CONFIGS["llama"]()
    config.hidden_size = config.intermediate_size = 128  # what its kernels can pack
    config.head_dim = 64
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    four = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    ends = []
    for ours in ([], [watcher("trainer", "geometry", tmp_path, positions=4)]):
        torch.manual_seed(0)
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=four, device_map="cpu")
        lora = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        made = make_trainer(tmp_path, ours, peft.get_peft_model(base, lora), gradient_checkpointing=False)
        ends.append(drives.trained(made))
    assert drives.differences(*ends) == []
    assert {row["storage"] for row in live(tmp_path).values()} == {"nf4"}


def quantised(model: nn.Module) -> nn.Module:
    for layer in model.model.layers:  # type: ignore[union-attr]
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(layer.mlp, name, Int8Linear(getattr(layer.mlp, name)))  # type: ignore[union-attr, arg-type]
    return model


@pytest.mark.parametrize("stored", [None, "int8"])
def test_adapters_are_traced_on_their_base_and_a_quantised_base_is_named(tmp_path: Path, stored: str | None) -> None:
    peft = pytest.importorskip("peft")
    tiny.model("llama").save_pretrained(tmp_path / "base")
    model: Any = type(tiny.model("llama")).from_pretrained(tmp_path / "base")
    model = quantised(model) if stored else model
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    ours = watcher("trainer", "geometry", tmp_path)
    changes = dict(save_strategy="steps", save_steps=2, gradient_checkpointing=False)
    make_trainer(tmp_path / "run", [ours], model, **changes).train()
    assert not (tmp_path / "run" / "checkpoint-2" / "config.json").exists()  # the adapter alone
    was, found = live(tmp_path / "run"), traced(tmp_path / "run")
    assert {(row["weights"], row["storage"], row["precision"]) for row in was.values()} == {
        ("training", stored, "fp32")
    }
    for step, record in found.items():
        assert record["storage"] is None
        assert same(record, was[step]) == (stored is None)
        assert [note.split(":")[0] for note in record["notes"]] == (
            ["the run was measured on weights stored as int8, and these are plain weights"] if stored else []
        )


@pytest.mark.parametrize("base", ["org/none", None, "/nowhere"])
def test_an_adapter_without_its_base_is_told_what_it_lacks(tmp_path: Path, base: str | None) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny.model("llama"), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(tmp_path / "checkpoint-3")
    settings = {"alpha_window": tiny.WINDOW}
    (reason,) = trace(tmp_path, probes=tiny.probe(), settings=settings, reading=CPU).failed.values()
    assert f"checkpoint-3 holds an adapter, and its base {base!r} cannot be read" in reason
    assert reason.endswith("or name its folder as base_model_name_or_path in adapter_config.json")


def test_storage_is_told_by_the_weights_themselves() -> None:
    assert storage_of(tiny.model()) is storage_of(tiny.model("gpt2")) is None
    assert storage_of(tiny.model().to(torch.bfloat16)) is None
    assert storage_of(quantised(tiny.model("llama"))) == "int8"
    fp8 = tiny.model()
    fp8.gpt_neox.layers[0].mlp.dense_h_to_4h.weight.data = torch.zeros(32, 16, dtype=torch.float8_e4m3fn)
    assert storage_of(fp8) == "float8_e4m3fn"
    rounded = tiny.model("llama")
    rounded.model.layers[0].mlp.up_proj = type("FakeQuantizedLinear", (nn.Linear,), {})(
        16, 32
    )  # torchao's, in training
    assert storage_of(rounded) == "FakeQuantizedLinear"
    packed = nn.Linear(4, 4)
    packed.weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    packed.weight.quant_type = "nf4"  # type: ignore[attr-defined]  # as bitsandbytes marks its Params4bit
    assert storage_of(packed) == "nf4"


def test_a_checkpoint_of_another_tool_holds_what_it_is_loaded_with() -> None:
    state = {"w": torch.zeros(1)}
    assert lightning_states({"state_dict": state}) == {"training": state}
    assert lightning_states({"state_dict": state, "callbacks": {"x": 3}, "optimizer_states": []}) == {"training": state}
