"""Which positions give a feature, by hand."""

from __future__ import annotations

import pytest
import torch

from geomcallbacks.reading.positions import check_positions, feature_places, position_count


@pytest.mark.parametrize(
    ("length", "positions", "wanted"),
    [
        (10, 3, [3, 6, 9]), (8, 4, [1, 3, 5, 7]), (5, 4, [1, 2, 3, 4]), (7, 1, [6]), (7, 5, [1, 2, 4, 5, 6]),
        (2, 1, [1]), (7, "last", [6]), (4, "all", [1, 2, 3]),
    ],
)  # fmt: skip
def test_places_by_hand(length: int, positions: object, wanted: list[int]) -> None:
    row, position = feature_places(torch.tensor([length, length]), positions)
    assert position.tolist() == wanted * 2
    assert row.tolist() == [0] * len(wanted) + [1] * len(wanted)
    assert position_count(torch.tensor([length]), positions).tolist() == [len(wanted)]


def test_position_zero_is_never_taken_and_none_twice() -> None:
    for k in range(1, 40):
        place_nk = feature_places(torch.arange(k + 1, 80), k)[1].view(-1, k)
        assert place_nk.min() > 0
        assert (place_nk.diff(dim=1) > 0).all()


@pytest.mark.parametrize("positions", ["first", 0, -1, True, 1.5, None, ["last"]])
def test_unknown_positions_are_refused(positions: object) -> None:
    with pytest.raises(ValueError, match=r"positions=.* is unknown: give 'last', 'all', 'mean' or a positive number"):
        check_positions(positions)


def test_rows_too_short_for_k_positions_are_refused() -> None:
    check_positions(2, torch.tensor([3, 9]))
    with pytest.raises(ValueError, match=r"positions=3 needs rows of at least 4 tokens.*one of 3.*min_length=4"):
        check_positions(3, torch.tensor([9, 3]))
