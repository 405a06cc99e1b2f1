"""Loads our pytest plugin; pytest wants that at the root. Hypothesis's profiles are chosen here for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

pytest_plugins = ("cord_trio.testing.plugin",)

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=300, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=5000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
