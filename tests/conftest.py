"""Settings of all tests: no network, no tracker account, one thread's arithmetic repeatable; the tally of faults."""

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)


Tally = Callable[..., None]


@pytest.fixture
def tally(record_property: Callable[[str, Any], None]) -> Tally:
    """`tally(kind, injected=1)` counts faults for the table at the end of `make test-faults`.

    They are survived where the test passes, and not where it fails; or give the number that the test has `survived`.
    """

    def count(kind: str, injected: int = 1, survived: int | None = None) -> None:
        record_property("fault", [kind, injected, survived])

    return count


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How many faults of each kind were injected and survived, where faults alone were asked for."""
    if "fault" not in (config.option.markexpr or "").split():
        return
    injected, survived = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for key, value in report.user_properties:
                if key == "fault" and report.when == "call":
                    kind, number, known = value
                    injected[kind] += number
                    survived[kind] += known if known is not None else number if report.passed else 0
    terminalreporter.section("faults")
    width = max(map(len, injected), default=0)
    terminalreporter.write_line(f"{'kind':<{width}} {'injected':>10} {'survived':>10}")
    for kind in sorted(injected):
        terminalreporter.write_line(f"{kind:<{width}} {injected[kind]:>10,} {survived[kind]:>10,}")
