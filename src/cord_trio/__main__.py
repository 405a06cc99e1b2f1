"""`python -m cord_trio`, and the script `cord-trio`. Ctrl-C ends it quietly from its first line on."""

import _signal  # type: ignore[import-not-found]  # the bare module: `signal` would load `enum`
import os
from typing import NoReturn

_INTERRUPTED = 130
"""`cord_trio.cli.INTERRUPTED`, which is not imported yet."""


def hush() -> None:
    """Let Ctrl-C end the process at once: while modules are imported, it would show where. A verb watches for itself.

    Whoever started us may want it ignored, as `nohup` and `&` do; it is, then.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, lambda number, frame: os._exit(_INTERRUPTED))


def script() -> NoReturn:
    """Run the command of this process and exit."""
    hush()
    from cord_trio.cli import script as run

    run()


if __name__ == "__main__":
    script()
