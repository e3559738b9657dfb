"""SIGTERM while Ray starts: Ray's own handlers would end the process without a word."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def left_on_sigterm(handler: Any) -> Iterator[Callable[[], None]]:
    """Raise SystemExit on SIGTERM, in place of Ray's handlers: at once, or at the end if that exception is lost.

    Python drops an exception that a handler raises inside a destructor or a callback. The context provides a function
    that raises it again before the end.

    Args:
        handler: what handles SIGTERM before and afterwards.
    """
    from ray._private import utils

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    received, set_handler = list[int](), utils.set_sigterm_handler

    def leave(number: int, frame: object) -> None:
        received.append(number)
        sys.exit(number)

    def leave_again() -> None:
        if received:
            sys.exit(received[0])

    utils.set_sigterm_handler = lambda of_ray: None
    signal.signal(signal.SIGTERM, leave)
    try:
        yield leave_again
    finally:
        utils.set_sigterm_handler = set_handler
        signal.signal(signal.SIGTERM, handler)
        leave_again()
