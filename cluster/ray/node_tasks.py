"""Runs functions on given nodes of the connected cluster. They need no free slots there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from cluster.ray.connection import NODE_LABEL

_ASK_AGAIN_S = 0.5  # seconds between two checks of `wanted` while waiting for answers


def ask_nodes(
    node_ids: Iterable[str],
    question: Callable[..., Any],
    *arguments: Any,
    timeout_s: float = 30.0,
    wanted: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """Run a function on several nodes at once.

    Returns:
        The results by node: those that come in time, while they are `wanted`.
    """
    import ray

    def on(node_id: str) -> Any:
        return ray.remote(num_cpus=0, max_retries=0, label_selector={NODE_LABEL: node_id})(question)

    asked = {on(node_id).remote(*arguments): node_id for node_id in dict.fromkeys(node_ids)}
    silent, answered = list(asked), list[Any]()
    deadline = time.monotonic() + timeout_s
    while silent and wanted() and time.monotonic() < deadline:
        ready, silent = ray.wait(silent, num_returns=len(silent), timeout=_ASK_AGAIN_S)
        answered += ready
    results = {}
    for reference in silent:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(reference, force=True)
    for reference in answered:
        with contextlib.suppress(ray.exceptions.RayError):  # the node has died, or the function has failed
            results[asked[reference]] = ray.get(reference)
    return results
