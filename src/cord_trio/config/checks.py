"""What the values of a configuration check themselves with. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from cord_trio.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Fault: TypeAlias = tuple[str, str, str]
"""A field's path within its value, what is wrong with it, what to do."""

MAX_SECONDS = 1e9
"""Seconds that a duration may be set to; more is a slip of the pen."""

MAX_COUNT = 2**40
"""What a count or a size in bytes may be set to."""


def texts(values: Iterable[str]) -> tuple[str, ...]:
    """Several texts; one alone counts as one."""
    return (values,) if isinstance(values, str) else tuple(values)


def check_numbers(value: object, least: Mapping[str, int | float]) -> Iterator[Fault]:
    """A fault for each number of `value` out of its range: from an `int` on upwards, or above a `float`."""
    for name, low in least.items():
        number, above = getattr(value, name), isinstance(low, float)
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:  # NaN
            yield name, "is not a number", "give a number"
        elif number < low or (above and number == low):
            yield name, "is too small", f"give a number above {low:g}" if above else f"give {low} or more"
        elif number > (MAX_SECONDS if above else MAX_COUNT):
            yield name, "is too large", f"give {MAX_SECONDS if above else MAX_COUNT:g} or less"


def pairs(values: Mapping[str, str]) -> Mapping[str, str]:
    """A mapping of our own."""
    return dict(values)


def glob_faults(place: str, globs: Iterable[str]) -> Iterator[Fault]:
    """A fault for each of `globs` that matches no name at all."""
    for index, glob in enumerate(globs):
        if not glob.strip():
            yield f"{place}[{index}]", "is an empty glob, which matches nothing", 'write "*" for everything'
        elif "[" in glob and "]" not in glob.partition("[")[2][1:]:
            yield f"{place}[{index}]", "is no glob: its `[` is never closed", "close it, as in [ab]*, or leave it out"


def raise_problems(place: str, faults: Iterable[Fault]) -> None:
    """Raise `ConfigError` if there are faults, each at its path below `place`."""
    problems = [Problem("", ".".join(filter(None, (place, path))), what, remedy) for path, what, remedy in faults]
    if problems:
        raise ConfigError(problems)
