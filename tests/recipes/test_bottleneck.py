"""The bottleneck model against NumPy, autograd and explicit copies; and what it shows."""

from __future__ import annotations

import dataclasses
import json
import math

import matplotlib.image
import numpy as np
import pytest
import softmax_bottleneck as bottleneck
import torch
from torch.nn import functional
from tractable.large import Large, Task, _measure, _slopes, make_task, start_large, train_large
from tractable.model import Setting, constructed_start, rankme_curves, singular_values, start_of, train, turns
from tractable.table import _phases


def by_numpy(setting, seed):
    """The course of one seed, sample by sample."""
    features, weights = (values.numpy() for values in start_of(setting, seed))
    labels = np.repeat(np.arange(len(setting.counts)), setting.counts)
    course = [features]
    for _ in range(setting.steps):
        by_weights, moved = np.zeros_like(weights), features.copy()
        for sample, label in enumerate(labels):
            output = weights @ features[sample]
            if setting.loss == "cross-entropy":
                output = np.exp(output - output.max())
                output /= output.sum()
            output[label] -= 1
            by_weights += np.outer(output, features[sample]) / len(labels)
            moved[sample] -= setting.rate * weights.T @ output / len(labels)
        features, weights = moved, weights - setting.rate * by_weights
        course.append(features)
    return np.array(course), weights


@pytest.mark.parametrize("loss", ["cross-entropy", "squared error"])
@pytest.mark.parametrize("start", ["constructed", "random"])
def test_training_is_gradient_descent_on_both(loss, start):
    setting = Setting("", loss=loss, start=start, scale=0.3, d=3, steps=40, seeds=2)
    paths = train(setting)
    assert paths.features.shape == (41, 2, 6, 3)
    for seed in range(2):
        course, weights = by_numpy(setting, seed)
        np.testing.assert_allclose(paths.features[:, seed].numpy(), course, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(paths.weights[-1, seed].numpy(), weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross-entropy", "squared error"])
def test_the_step_is_the_gradient_of_the_mean_loss(loss):
    setting = Setting("", loss=loss, start="random", scale=0.5, steps=1, seeds=1)
    features, weights = (values.requires_grad_() for values in start_of(setting, 0))
    logits, labels = features @ weights.T, torch.tensor([0, 0, 1, 1, 2, 3])
    if loss == "cross-entropy":
        value = functional.cross_entropy(logits, labels)
    else:
        value = 0.5 * (logits - functional.one_hot(labels)).square().sum(1).mean()
    value.backward()
    paths = train(setting)
    torch.testing.assert_close(paths.features[1, 0], features.detach() - 0.25 * features.grad)
    torch.testing.assert_close(paths.weights[1, 0], weights.detach() - 0.25 * weights.grad)


def test_constructed_start():
    """Two clusters as the sheet of the paper has them: .6 at 100°, .75 at 2°, weights .6 and .74, the rest at 0."""
    features, weights = constructed_start(Setting(""))
    assert features[:2].mean(0).tolist() == pytest.approx([0.6 * math.cos(math.radians(100)), 0.590885], rel=1e-5)
    assert features[2:4].mean(0).norm().item() == pytest.approx(0.75)
    assert (features[0] - features[1]).norm().item() == pytest.approx(0.1)
    assert weights.norm(dim=1).tolist() == pytest.approx([0.6, 0.74, 0, 0])
    assert features[4:].abs().sum() == 0


@pytest.mark.parametrize("centred", [False, True])
def test_rankme_of_paths_against_numpy(centred):
    paths = train(Setting("", start="random", scale=0.3, steps=3, seeds=2))
    curves = rankme_curves(paths.features, centred)
    for seed in range(2):
        for step in range(4):
            rows = paths.features[step, seed].numpy()
            sigma = np.linalg.svd(rows - rows.mean(0) * centred, compute_uv=False)
            share = sigma**2 / (sigma**2).sum()
            assert curves[seed][step] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-10)
            assert singular_values(paths.features, centred)[step, seed].tolist() == pytest.approx(sigma)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        # dip, peak, low; then up again, but not as high
        ([5.0, 2.0, 4.0, 3.5, 6.0, 3.0, 4.0], (2.0, 1, 6.0, 4, 3.0, 5, 3.0, 3.0)),
        ([5.0, 2.0, 4.0, 3.5, 6.0], (2.0, 1, 6.0, 4, 6.0, 4, 0.0, 0.5)),  # a fall with a higher peak behind it
        ([1.0, 2.0, 3.0], (1.0, 0, 3.0, 2, 3.0, 2, 0.0, 0.0)),
        ([3.0, 2.0, 1.0], (1.0, 2, 1.0, 2, 1.0, 2, 0.0, 0.0)),
    ],
)
def test_turns(curve, expected):
    found = turns(curve)
    dip, dip_step, peak, peak_step, low, low_step, drawdown, fall = expected
    assert (found.start, found.end) == (curve[0], curve[-1])
    assert (found.dip, found.dip_step, found.peak, found.peak_step) == (dip, dip_step, peak, peak_step)
    assert (found.low, found.low_step, found.drawdown, found.largest_fall) == (low, low_step, drawdown, fall)


def test_turns_of_nothing_are_refused():
    with pytest.raises(ValueError, match="curve is empty"):
        turns([])


def drawdowns(name, **changed):
    setting = next(setting for setting in (*bottleneck.SETTINGS, *bottleneck.CONDITIONS) if setting.name == name)
    curves = rankme_curves(train(dataclasses.replace(setting, **changed)).features, False)
    return [turns(curve) for curve in curves]


def test_the_model_compresses_from_the_constructed_start():
    """An earlier check of the same model found 1.933, a dip of 1.906 at 14, 1.9997 at 205, and a drawdown of .0067."""
    for found in drawdowns("skewed classes", steps=500):
        assert found.start == pytest.approx(1.933, abs=0.003)
        assert found.dip == pytest.approx(1.906, abs=0.02)
        assert found.peak == pytest.approx(1.9997, abs=5e-4)
        assert 10 < found.dip_step < 20 < 150 < found.peak_step < 300
        assert found.drawdown == pytest.approx(0.0067, abs=0.001)


@pytest.mark.parametrize("name", ["squared error, skewed", "squared error, uniform", "uniform classes"])
def test_the_controls_end_in_their_highest_value(name):
    assert all(found.drawdown < 0.001 for found in drawdowns(name))


def test_from_a_random_start_it_seldom_does():
    falls = [found.drawdown > 0.001 for found in drawdowns("skewed, random start")]
    assert not any(falls[:5])
    assert sum(falls) <= 4


SMALL = Large("", classes=6, contexts=5, d=3, skew=1.0)


def explicit(task, features, weights):
    """Every sample with a feature row of its own: features (n, d), labels or target rows, weights."""
    copies = task.copies_n.long()
    rows = features.repeat_interleave(copies, 0).detach().requires_grad_()
    return rows, task.target_nv.repeat_interleave(copies, 0), weights.detach().requires_grad_(), copies


@pytest.mark.parametrize("targets", ["one class", "distribution"])
def test_one_row_stands_for_all_samples_of_a_class(targets):
    generator = torch.Generator().manual_seed(0)
    setting = dataclasses.replace(SMALL, targets=targets)
    task = make_task(setting, generator)
    features, weights = torch.randn(len(task.copies_n), 3), torch.randn(6, 3)
    rows, target, w, copies = explicit(task, features, weights)
    functional.cross_entropy(rows @ w.T, target, reduction="sum").backward()
    by_feature, by_weights = _slopes(setting, features, weights, task, generator)
    torch.testing.assert_close(by_feature.repeat_interleave(copies, 0), rows.grad)
    torch.testing.assert_close(by_weights, w.grad)
    if targets == "one class":
        assert copies.tolist() == [6, 3, 2, 2, 1, 1]


def test_a_batch_is_an_unbiased_share_of_everything():
    generator = torch.Generator().manual_seed(0)
    setting = dataclasses.replace(SMALL, targets="distribution", batch=40_000, strength=1.0)
    task = make_task(setting, generator)
    features, weights = torch.randn(5, 3), torch.randn(6, 3)
    noisy = _slopes(setting, features, weights, task, generator)
    exact = _slopes(dataclasses.replace(setting, batch=0), features, weights, task, generator)
    for values, wanted in zip(noisy, exact, strict=True):
        torch.testing.assert_close(values, wanted, atol=0.05, rtol=0)  # a row's deviation is about 0.01


def test_draws_follow_the_targets():
    task = Task(torch.tensor([[0.0, 0.25, 0.75], [1.0, 0.0, 0.0]]), torch.tensor([3.0, 1.0]))
    row_b, label_b = task.draw(40_000, torch.Generator().manual_seed(0))
    found = torch.zeros(2, 3).index_put_((row_b, label_b), torch.ones(40_000), accumulate=True) / 40_000
    wanted = torch.tensor([[0.0, 0.1875, 0.5625], [0.25, 0.0, 0.0]])
    torch.testing.assert_close(found, wanted, atol=0.015, rtol=0)
    assert found[wanted == 0].sum() == 0


@pytest.mark.parametrize("targets", ["one class", "distribution"])
def test_measured_over_every_sample(targets):
    generator = torch.Generator().manual_seed(1)
    task = make_task(dataclasses.replace(SMALL, targets=targets), generator)
    features, weights = torch.randn(len(task.copies_n), 3), torch.randn(6, 3)
    rows, target, w, _ = explicit(task, features, weights)
    found = _measure(features, weights, task)
    with torch.no_grad():
        assert found["loss"] == pytest.approx(functional.cross_entropy(rows @ w.T, target).item(), rel=1e-5)
    shares = target.double().clamp_min(1e-300)
    assert found["floor"] == pytest.approx(-(shares * shares.log()).sum(1).mean().item(), abs=1e-6)
    for key, values in {
        "rankme": rows.detach().double() - rows.detach().double().mean(0),
        "rankme_uncentred": rows.detach().double(),
        "rankme_weights": weights.double() - weights.double().mean(0),
    }.items():
        share = np.linalg.svd(values.numpy(), compute_uv=False) ** 2
        share /= share.sum()
        assert found[key] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


@pytest.mark.parametrize("targets", ["one class", "distribution"])
@pytest.mark.parametrize("optimiser", ["GD", "Adam"])
def test_a_course_is_that_of_every_sample_trained_by_torch(targets, optimiser):
    setting = dataclasses.replace(
        SMALL, targets=targets, optimiser=optimiser, rate=0.02, weight_decay=0.5, scale=1.0, steps=25
    )
    generator = torch.Generator().manual_seed(7)
    task = make_task(setting, generator)
    rows, target, weights, _ = explicit(task, *start_large(setting, len(task.target_nv), generator))
    kinds = {"GD": torch.optim.SGD, "Adam": torch.optim.AdamW}
    reference = kinds[optimiser]([rows, weights], lr=0.02, weight_decay=0.5)
    for _ in range(25):
        reference.zero_grad()
        functional.cross_entropy(rows @ weights.T, target, reduction="sum").backward()
        reference.step()
    course = train_large(setting, 7)
    assert [row["step"] for row in course][-2:] == [24, 25]
    wanted = functional.cross_entropy(rows @ weights.T, target).item()
    assert course[-1]["loss"] == pytest.approx(wanted, rel=1e-4)
    assert abs(course[0]["loss"] - wanted) > 0.1


def test_divergence_is_said():
    with pytest.raises(ValueError, match=r"'wild' diverged before update .*rate=1e\+30 is too high"):
        train_large(dataclasses.replace(SMALL, name="wild", rate=1e30, scale=1.0, steps=30), 0)


def test_phases_of_seeds_are_grouped():
    warm = {"name": "warm-up", "end": 10, "rankme_end": 2.0}
    rise = {"name": "entropy-seeking", "end": 99, "rankme_end": 8.0}
    more = rise | {"rankme_end": 9.0}
    curves = [[5.0, 2.0, 8.0], [7.0, 2.0, 9.0], [4.0, 4.0]]
    shown = _phases([[warm, rise], [warm | {"end": 20}, more], []], curves)
    assert shown == "w e (2): 6.0 → 2.0 (10) → 8.5; – (1): 4.0 → 4.0"


def test_one_command_writes_table_numbers_and_figure(tmp_path, monkeypatch, capsys):
    tiny = dict(classes=24, contexts=16, d=4, steps=12, seeds=2)
    monkeypatch.setattr(bottleneck, "LARGE", [dataclasses.replace(setting, **tiny) for setting in bottleneck.LARGE])
    monkeypatch.setattr(bottleneck, "CONDITIONS", bottleneck.CONDITIONS[:1])
    bottleneck.main(["--large", "--output_dir", str(tmp_path / "out")])
    numbers = json.loads((tmp_path / "out" / "bottleneck.json").read_text())
    assert [row["name"] for row in numbers["large"]] == [setting.name for setting in bottleneck.LARGE]
    assert [len(row["uncentred"]) for row in numbers["small"]] == [5, 5, 5, 5, 5, 20, 5]
    table = (tmp_path / "out" / "bottleneck.md").read_text()
    assert table in capsys.readouterr().out
    cells = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(cells) == 2 * 2 + len(numbers["small"]) + len(numbers["large"])
    skewed = next(line for line in cells if line.startswith("| skewed classes"))
    peaks = [row["peak"] for row in numbers["small"][0]["uncentred"]]
    assert f"{sum(peaks) / 5:.4f}" in skewed
    assert min(matplotlib.image.imread(tmp_path / "out" / "bottleneck.png").shape[:2]) > 1000


def test_without_large_there_is_one_table_and_a_smaller_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(bottleneck, "CONDITIONS", ())
    bottleneck.main(["--output_dir", str(tmp_path)])
    assert "1,024 classes" not in (tmp_path / "bottleneck.md").read_text()
    assert json.loads((tmp_path / "bottleneck.json").read_text())["large"] == []
    height, width = matplotlib.image.imread(tmp_path / "bottleneck.png").shape[:2]
    assert width > 1.5 * height
