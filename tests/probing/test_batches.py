"""Batches are dealt whole, and as many to each process."""

from __future__ import annotations

import pytest
import tiny

from geomcallbacks.probe import deal


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rows", [1, 4, 9])
def test_dealing_gives_whole_batches_and_equal_shares(rows: int, world_size: int) -> None:
    batches = tiny.probe(rows).batches(2)
    shares = [deal(batches, rank, world_size) for rank in range(world_size)]
    assert {len(share) for share in shares} == {-(-len(batches) // world_size)}
    counted = [batch for share in shares for batch, counts in share if counts]
    assert sorted(map(id, counted)) == sorted(map(id, batches))
