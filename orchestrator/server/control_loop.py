"""The loop of passes, for the lifetime of a server."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Protocol

from cluster.errors import BackendUnreachable, Fenced
from orchestrator.queue.errors import StoreBroken

EVERY_S = 1.0


class Steps(Protocol):
    """A controller, or an object that wraps one."""

    def step(self) -> bool: ...


def run_passes(
    controller: Steps,
    stop: threading.Event,
    wake: threading.Event,
    say: Callable[[str], None],
    every_s: float = EVERY_S,
) -> None:
    """Run passes until `stop` is set.

    `wake` makes the next pass start at once. `stop` takes effect after the current pass. A pass that fails is repeated;
    the error is reported once, and so is its end.
    """
    trouble = ""
    while not stop.is_set():
        try:
            controller.step()
        except Exception as error:  # an internal error must not end the queue
            known = isinstance(error, StoreBroken | BackendUnreachable | Fenced)
            text = str(error) if known else "".join(traceback.format_exception(error))
            if text != trouble:
                trouble = text
                say(text)
        else:
            if trouble:
                trouble = ""
                say("it answers again")
        wake.wait(every_s)
        wake.clear()
