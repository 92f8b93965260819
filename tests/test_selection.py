"""Growth of singular values between spectra: hand-worked, against NumPy, and from a record file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch
from scipy import stats

from geomcallbacks import GeometryMonitor, read_records
from geomcallbacks.metrics import rankme
from geomcallbacks.record_writer import RecordWriter
from geomcallbacks.selection import growth, selection
from geomcallbacks.spectrum import spectrum_of_rows


def spectrum(sigma):
    return torch.tensor(sigma, dtype=torch.float64).square()


def test_hand_worked():
    """σ 4, 2, 1 → 8, 3, 1 in ten updates: Δσ 0.4, 0.1, 0 an update, and σ·Δσ sums to 1.8, σ² to 21, Δσ² to 0.17."""
    found = growth(spectrum([4.0, 2.0, 1.0]), spectrum([8.0, 3.0, 1.0]), 20, 30)
    assert (found.step_from, found.step_to) == (20, 30)
    assert found.sigma.tolist() == [4, 2, 1]
    assert found.delta.tolist() == pytest.approx([0.4, 0.1, 0.0], abs=1e-15)
    assert found.slope == pytest.approx(1.8 / 21)
    assert found.r2 == pytest.approx(1.8**2 / 21 / 0.17)
    # ln σ is 2, 1, 0 in units of ln 2, about its mean 1, 0, −1; the logarithms of growth are ln 2, ln 1.5 and 0.
    assert found.excess == pytest.approx(1 / 2)


def test_against_numpy_on_features():
    rng = np.random.default_rng(0)
    before = rng.standard_normal((50, 8)) * np.arange(8, 0, -1) + 5
    after = before * 1.5 + rng.standard_normal((50, 8))
    spectra = [spectrum_of_rows(torch.tensor(rows)).eigenvalues for rows in (before, after)]
    found = growth(*spectra, 0, 4)
    sigma, later = (np.linalg.svd(rows - rows.mean(0), compute_uv=False) / np.sqrt(49) for rows in (before, after))
    delta = (later - sigma) / 4
    assert found.sigma.tolist() == pytest.approx(sigma, rel=1e-9)
    assert found.delta.tolist() == pytest.approx(delta, rel=1e-9)
    slope, residual, *_ = np.linalg.lstsq(sigma[:, None], delta, rcond=None)
    assert found.slope == pytest.approx(slope[0])
    assert found.r2 == pytest.approx(1 - residual[0] / (delta**2).sum())
    assert found.correlation == pytest.approx(stats.pearsonr(sigma, delta).statistic)
    assert found.excess == pytest.approx(stats.linregress(np.log(sigma), np.log(later / sigma)).slope)


@pytest.mark.parametrize(("power", "excess"), [(1.0, 0.0), (1.2, 0.2), (0.7, -0.3)])
def test_excess_has_the_sign_of_compression(power, excess):
    """Where σ becomes 3 σ^p, excess is p − 1, and RankMe falls exactly where it is above 0."""
    sigma = torch.arange(1, 21).double().pow(-0.8)
    later = 3 * sigma.pow(power)
    found = growth(sigma.square(), later.square(), 100, 200)
    assert found.excess == pytest.approx(excess, abs=1e-12)
    change = float(rankme(later.square()) - rankme(sigma.square()))
    assert change == pytest.approx(0, abs=1e-9) if power == 1 else change * excess < 0
    if power == 1:
        assert found.slope == pytest.approx(0.02)
        assert found.r2 == pytest.approx(1)
        assert found.correlation == pytest.approx(1)


def test_shrinking_is_a_negative_slope():
    found = growth(spectrum([4.0, 2.0, 1.0]), spectrum([2.0, 1.0, 0.5]), 0, 1)
    assert found.slope == pytest.approx(-0.5)
    assert found.correlation == pytest.approx(-1)


def test_what_no_line_fits_is_nan():
    still = growth(spectrum([4.0, 2.0, 1.0]), spectrum([4.0, 2.0, 1.0]), 0, 1)
    assert still.slope == 0
    assert math.isnan(still.r2)
    assert math.isnan(still.correlation)
    assert still.excess == 0
    assert math.isnan(growth(spectrum([2.0] * 3), spectrum([3.0, 2.0, 1.0]), 0, 1).excess)


def test_values_within_the_round_off_of_a_kept_spectrum_are_left_out():
    found = growth(spectrum([4.0, 2.0, 1.0, 1e-5]), spectrum([8.0, 3.0, 1.0, 0.5]), 0, 1)
    assert found.sigma.tolist() == [4, 2, 1]


def write(path, curves):
    """A record file with spectra: {(step, layer): σ}, in the order given."""
    writer = RecordWriter(path, 0, {})
    for step in sorted({step for step, _ in curves}):
        kept = {f"probe/{layer}": spectrum(sigma) for (at, layer), sigma in curves.items() if at == step}
        file = writer.write_spectra(step, kept)
        for key in kept:
            layer = key.partition("/")[2]
            writer.write({"step": step, "probe": "probe", "layer": layer, "rankme": 2.0, "spectrum": [file, key]})
    writer.write({"step": 99, "probe": "probe", "layer": "a", "rankme": None, "spectrum": None})
    writer.close()
    return path


def test_a_file_gives_each_pair_in_order(tmp_path):
    sigmas = [[4.0, 2.0, 1.0], [8.0, 3.0, 1.0], [9.0, 5.0, 3.0]]
    path = write(tmp_path / "g.jsonl", {(step, "a"): sigma for step, sigma in zip((0, 10, 30), sigmas, strict=True)})
    first, second = selection(path)
    assert (first.step_from, first.step_to, second.step_from, second.step_to) == (0, 10, 10, 30)
    assert first.slope == pytest.approx(1.8 / 21)
    assert second.delta.tolist() == pytest.approx([0.05, 0.1, 0.1])


def test_one_curve_of_several_is_named(tmp_path):
    curves = {(step, layer): [4.0 + step, 2.0, 1.0] for step in (0, 1) for layer in "ab"}
    curves[1, "b"] = [9.0, 2.0, 1.0]
    path = write(tmp_path / "g.jsonl", curves)
    with pytest.raises(ValueError, match=r"several curves.*'a'.*'b'.*name one"):
        selection(path)
    assert selection(path, layer="b")[0].delta.tolist() == pytest.approx([5, 0, 0])
    assert selection(path, probe="probe", layer="a")[0].delta.tolist() == pytest.approx([1, 0, 0])
    for wrong in ({"layer": "c"}, {"probe": "x"}):
        with pytest.raises(ValueError, match="0 spectra"):
            selection(path, **wrong)


def test_the_file_of_a_monitor(tmp_path):
    """σ of a model whose features are doubled between two measurements."""
    model = tiny.model("llama")
    monitor = GeometryMonitor(tiny.probe(), alpha_window=tiny.WINDOW, path=tmp_path / "g.jsonl", on_error="raise")
    monitor.start(model)
    monitor.measure(model, 0)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    monitor.measure(model, 5)
    monitor.close()
    (found,) = selection(tmp_path / "g.jsonl")
    assert len(found.sigma) == 16
    assert float(found.sigma.square().sum()) == pytest.approx(read_records(tmp_path / "g.jsonl")[0]["trace"], rel=1e-5)
    assert found.slope == pytest.approx(1 / 5, rel=1e-4)
    assert found.r2 == pytest.approx(1, rel=1e-6)
    assert found.excess == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((spectrum([3.0, 2.0, 1.0]), spectrum([3.0, 2.0, 1.0]), 5, 5), "step_to=5 is not after step_from=5"),
        ((spectrum([3.0, 2.0, 1.0]), spectrum([3.0, 2.0]), 0, 1), r"\(3,\) and \(2,\)"),
        ((spectrum([3.0, 2.0, 0.0]), spectrum([3.0, 2.0, 1.0]), 0, 1), "2 and 3 eigenvalues above round-off"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        growth(*arguments)


def test_a_run_without_spectra_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"1 spectra.*spectra=True"):
        selection(write(tmp_path / "g.jsonl", {(0, "a"): [3.0, 2.0, 1.0]}))
