"""Why a job is where it is, in words, and when it is expected to start."""

from __future__ import annotations

from orchestrator.api import WhyView
from orchestrator.service.caller import ANYBODY, Caller
from orchestrator.service.surroundings import Surroundings


class Explainer:
    """For many threads. Keeps what it has found for a few seconds."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings

    def why(self, job_id: str, caller: Caller = ANYBODY) -> WhyView:
        """Jobs that the caller may not see are not named.

        Raises:
            UnknownJob, StoreBroken.
        """
        raise NotImplementedError
