"""A thousand seeded combinations of faults, on real trainers; a hundred of them in one of two processes."""

from __future__ import annotations

from pathlib import Path

import launcher
import pytest
from combinations_of_faults import FRAMEWORKS, check, run
from drives import Ended

pytestmark = pytest.mark.fault
CHUNK = 20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    return {name: run(name, tmp_path_factory.mktemp(name) / "run", watched=False) for name in FRAMEWORKS}


def test_a_few(undisturbed: dict[str, Ended], tmp_path: Path) -> None:
    for seed in range(CHUNK):
        check(seed, undisturbed, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(1, 45))
def test_nine_hundred(chunk: int, undisturbed: dict[str, Ended], tmp_path: Path) -> None:
    for seed in range(CHUNK * chunk, CHUNK * (chunk + 1)):
        check(seed, undisturbed, tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(45, 50))
def test_in_one_of_two_processes(chunk: int, tmp_path: Path) -> None:
    found = launcher.launch("combined_worker.py", tmp_path, CHUNK * chunk, CHUNK * (chunk + 1), timeout=600)
    assert [process["failed"] for process in found] == [[], []]
    assert [process["seeds"] for process in found] == [CHUNK, CHUNK]
