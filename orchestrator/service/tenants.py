"""Who shares the cluster: their settings, and what they have in the queue."""

from __future__ import annotations

from orchestrator.api import Tenants, TenantSent, TenantView
from orchestrator.service.surroundings import Surroundings


def tenants(surroundings: Surroundings) -> Tenants:
    """All of them. Raises StoreBroken."""
    raise NotImplementedError


def put(surroundings: Surroundings, name: str, sent: TenantSent) -> TenantView:
    """Make or change one. May promise more than the cluster has: machines come and go. Raises QueueError."""
    raise NotImplementedError
