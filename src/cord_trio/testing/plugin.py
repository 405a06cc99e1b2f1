"""Runs async tests with Trio: a pytest plugin, `pytest_plugins = ("cord_trio.testing.plugin",)`.

There are no async fixtures, on purpose: open what a test needs with `async with` inside the test.
"""

from __future__ import annotations

import inspect
from functools import wraps

import pytest
import trio
from trio.testing import MockClock

REAL_LIMIT = 10.0
"""Seconds a test on the system clock may take, unless marked with `limit(seconds)`."""

VIRTUAL_LIMIT = 24 * 3600.0
"""Virtual seconds on a jumping clock, reached at once when every task is stuck."""


@pytest.fixture
def autojump_clock() -> MockClock:
    """Time that jumps ahead whenever every task is blocked. Not for tests that do real I/O."""
    return MockClock(autojump_threshold=0)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", "limit(seconds): how long an async test may take instead of 10 s.")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Wrap an async test function, or the one inside `@given`, in `trio.run`."""
    hypothesis_handle = getattr(pyfuncitem.obj, "hypothesis", None)
    test = hypothesis_handle.inner_test if hypothesis_handle else pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return
    marker = pyfuncitem.get_closest_marker("limit")

    @wraps(test)
    def in_trio(*args: object, **kwargs: object) -> None:
        clock = kwargs.get("autojump_clock") or pyfuncitem.funcargs.get("autojump_clock")
        assert clock is None or isinstance(clock, MockClock)
        limit = VIRTUAL_LIMIT if clock else REAL_LIMIT
        if marker is not None:
            limit = float(marker.args[0])

        async def main() -> None:
            with trio.fail_after(limit):
                await test(*args, **kwargs)

        trio.run(main, clock=clock)

    if hypothesis_handle:
        hypothesis_handle.inner_test = in_trio
    else:
        pyfuncitem.obj = in_trio
