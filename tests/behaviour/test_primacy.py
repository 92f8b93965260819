"""Loss by token frequency against a forward pass for each token, on bands cut by hand."""

from __future__ import annotations

import pytest
import tiny
import torch
from behaviour_rows import one_by_one

from geomcallbacks import ProbeSet
from geomcallbacks.behaviour import FrequencyLoss, first_below, learned_at, load_counts, save_counts, token_counts

# Targets, all but the first of each row: 5 5 5 6 | 6 7 8 5. In training 5 occurs most, 6 and 7 equally often, 8 never.
ROWS = [[9, 5, 5, 5, 6], [5, 6, 7, 8, 5]]
COUNTS = torch.tensor([0, 0, 0, 0, 0, 40, 3, 3])
OF_BAND = {1: {5}, 2: {6, 7, 8}}


def made(counts=COUNTS, rows=ROWS, **changed):
    return FrequencyLoss(ProbeSet.from_token_ids(rows), counts, **{"bands": 2, **changed})


def by_hand(model, rows, of_band):
    """Mean loss by band, from a forward pass for each predicted token."""
    losses = {band: [] for band in of_band}
    for row in rows:
        for end in range(1, len(row)):
            band = next(band for band, tokens in of_band.items() if row[end] in tokens)
            losses[band].append(-one_by_one(model, row[:end], row[end : end + 1]))
    return {f"band_{band}": pytest.approx(sum(found) / len(found), rel=1e-5) for band, found in losses.items()}


@pytest.mark.parametrize("kind", ["gpt_neox", "llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_each_band_is_the_mean_of_its_tokens_losses(kind, batch_size):
    """Rows of differing length too, whichever side they were padded on."""
    model, measure = tiny.model(kind), made(batch_size=batch_size)
    assert measure.tokens == [4, 4]
    assert measure.edges == [(40, 40), (0, 3)]
    assert measure(model) == by_hand(model, ROWS, OF_BAND)
    rows = [[9, 5, 5], [5, 6, 7, 8, 5, 5], [6, 6]]
    ids = torch.tensor([[0] * (6 - len(row)) + row for row in rows])
    measure = FrequencyLoss(ProbeSet.from_token_ids(ids, ids > 0), COUNTS, bands=2, batch_size=batch_size)
    assert sum(measure.tokens) == 8
    assert measure(model) == by_hand(model, rows, OF_BAND)


def test_bands_hold_equal_numbers_of_predictions_and_never_part_equal_counts():
    """8,000 predictions of 50 tokens, of frequency 1/i, as often in training as held out: against a sort."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.cat([torch.zeros(3), 1 / torch.arange(1, 51)])
    ids = torch.multinomial(frequency, 8000, replacement=True, generator=generator).view(80, 100)
    counts = token_counts(torch.multinomial(frequency, 2000, replacement=True, generator=generator), 53)
    measure = made(counts, ids, bands=3)
    assert sum(measure.tokens) == 80 * 99
    assert max(measure.tokens) - min(measure.tokens) < 0.12 * 80 * 99  # the most frequent token alone makes 22 %
    assert measure.edges == sorted(measure.edges, reverse=True)
    targets = counts[ids[:, 1:]].flatten().tolist()  # each in one band alone: the sum above is that of all
    assert measure.tokens == [sum(low <= target <= high for target in targets) for low, high in measure.edges]


def test_counts_are_those_of_a_loop_and_survive_a_file(tmp_path):
    counts = token_counts([torch.tensor([[1, 2], [2, 2]]), torch.tensor([0, 2], dtype=torch.int32)], 5)
    assert counts.tolist() == [1, 1, 4, 0, 0]
    assert token_counts(torch.tensor([[1, 2], [2, 2]]), 3).tolist() == [0, 1, 3]
    save_counts(counts, tmp_path / "counts.txt")
    assert (tmp_path / "counts.txt").read_text() == "1\n1\n4\n0\n0\n"
    assert torch.equal(load_counts(tmp_path / "counts.txt"), counts)


def test_fingerprint_sees_rows_counts_and_bands():
    measures = [made(), made(bands=1), made(2 * COUNTS), made(rows=ROWS[::-1])]
    assert len({measure.fingerprint for measure in measures}) == 4
    assert measures[0].fingerprint == made(COUNTS.int(), batch_size=1).fingerprint


@pytest.mark.parametrize(
    ("steps", "losses", "share", "expected"),
    [
        ([0, 10, 20], [8.0, 6.0, 2.0], 0.5, 12.5),  # half of 8 → 2 is 5, a quarter of the way from 6 to 2
        ([0, 10, 20], [8.0, 5.0, 2.0], 0.5, 10),
        ([0, 1, 100], [8.0, 2.0, 4.0], 0.5, 0.5),  # the drop is to the lowest, not to the last
        ([0, 1, 100], [8.0, 2.0, 4.0], 1, 1),
        ([0, 10, 20, 30], [8.0, None, 6.0, 2.0], 0.5, 22.5),
        ([0, 10, 20], [2.0, 2.0, 3.0], 0.5, None),
        ([7], [2.0], 0.5, None),
    ],
)
def test_first_below(steps, losses, share, expected):
    assert first_below(steps, losses, share) == expected


def test_primacy_of_records_in_any_order():
    records = [
        {"step": 100, "primacy/band_1": 2.0, "primacy/band_2": 4.0, "held_out/loss": 3.0},
        {"step": 0, "primacy/band_1": 6.0, "primacy/band_2": 6.0},
        {"step": 10, "primacy/band_1": 2.0, "primacy/band_2": 6.0},
        {"step": 50, "held_out/loss": 3.0},
    ]
    assert learned_at(records) == {"band_1": 5, "band_2": 55}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made(bands=0), "bands=0"),
        (lambda: made(bands=4), r"bands=4 cannot all be filled.*3 different counts.*50%"),
        (lambda: made(counts=COUNTS.float()), "integer tensor"),
        (lambda: made(counts=[1, 2]), "counts are list"),
        (lambda: made(counts=-COUNTS), "negative"),
        (lambda: made(counts=0 * COUNTS), "all zero"),
        (lambda: token_counts(torch.tensor([3]), 3), "vocabulary=3"),
        (lambda: token_counts(torch.tensor([-1]), 3), "from -1"),
        (lambda: first_below([0], [], 0.5), "1 steps, 0 losses"),
        (lambda: first_below([0], [None], 0.5), "no value"),
        (lambda: first_below([0], [1.0], 0), "share=0"),
        (lambda: learned_at([{"step": 0}]), "primacy/band_1"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_file_of_something_else_is_refused(tmp_path):
    for content in ("", "1\nx\n", "1.5\n", "-1\n2\n"):
        (tmp_path / "counts.txt").write_text(content)
        with pytest.raises(ValueError, match=r"counts\.txt holds no token counts"):
            load_counts(tmp_path / "counts.txt")
