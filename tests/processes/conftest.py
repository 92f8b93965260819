"""The mark of tests that need DeepSpeed."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "sharded: needs DeepSpeed, which is in the extra of that name (make test-sharded)"
    )
