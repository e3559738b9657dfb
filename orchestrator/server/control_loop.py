"""Passes of a controller, one after the other, for as long as a server lives."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from typing import Protocol

from cluster.errors import BackendUnreachable, Fenced
from orchestrator.queue.errors import StoreBroken

EVERY_S = 1.0


class Steps(Protocol):
    """A controller, or what stands before one."""

    def step(self) -> bool: ...


def run_passes(
    controller: Steps,
    stop: threading.Event,
    wake: threading.Event,
    say: Callable[[str], None],
    every_s: float = EVERY_S,
) -> None:
    """Until `stop` is set. `wake` makes the next pass come at once, `stop` only at the end of one.

    What does not answer is waited for; it is said once, and that it answers again.
    """
    trouble = ""
    while not stop.is_set():
        try:
            controller.step()
        except Exception as error:  # a fault of ours must not end the queue for everybody
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
