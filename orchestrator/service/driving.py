"""What a job's driver is told: what to run, and whether to go on. The messages are in `cluster.wire`."""

from __future__ import annotations

from cluster.wire import Answer, Beat, Register, Registered
from orchestrator.service.surroundings import Surroundings


def check_attempt(surroundings: Surroundings, token: str, message: Register | Beat) -> None:
    """Before anything else is done with a message.

    Raises:
        NotYourAttempt: the token is not of the attempt that the message names (401).
    """
    raise NotImplementedError


def register(surroundings: Surroundings, message: Register) -> Registered:
    """What the attempt is to run.

    Raises:
        AttemptOver: it is not the newest, or has ended (410).
        QueueError: a secret or a model that the spec names is not there any more (400).
    """
    raise NotImplementedError


def beat(surroundings: Surroundings, message: Beat) -> Answer:
    """Note what it says; an attempt that is over is answered with Order.LEAVE. Raises NotYourAttempt, StoreBroken."""
    raise NotImplementedError
