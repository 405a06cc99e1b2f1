"""Loads our pytest plugin; pytest wants that at the root. What holds for all tests is chosen here."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

pytest_plugins = ("cord_trio.testing.plugin",)

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=300, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

STUCK = 120.0
"""Seconds on the system clock after which a test is stuck. None takes a tenth of them unless the machine is busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let a busy machine fail no test."""
    for item in items:
        if "autojump_clock" not in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.limit(STUCK))
