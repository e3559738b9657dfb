"""Bundles: the resources that are requested on one node, under the names that Ray uses. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Bundle = Mapping[str, float]

TYPE_RESOURCE = "accelerator_type:"  # a prefix: the rest of the resource's name is the type of the node's accelerators
_LEAST = 0.001  # amount of a resource that only marks a node


def accelerator_of(resources: Iterable[str]) -> str | None:
    """Return the accelerator type in the names of a node's resources; None if no name has one."""
    return next((name.removeprefix(TYPE_RESOURCE) for name in resources if name.startswith(TYPE_RESOURCE)), None)


def bundle(cpus: int, gpus: int, accelerator_type: str | None = None) -> Bundle:
    """Make the bundle for CPUs, GPUs and an accelerator type."""
    found: dict[str, float] = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    return found | {f"{TYPE_RESOURCE}{accelerator_type}": _LEAST} if gpus and accelerator_type else found


def format_bundles(bundles: Iterable[Bundle]) -> str:
    """Format bundles: `2 x (4 CPU, 1 GPU), 1 x (2 CPU)`; `nothing` if there are none."""
    counts: dict[str, int] = {}
    for one in bundles:
        text = ", ".join(f"{amount:g} {name}" for name, amount in one.items() if not name.startswith(TYPE_RESOURCE))
        counts[text] = counts.get(text, 0) + 1
    return ", ".join(f"{count} x ({text})" for text, count in counts.items()) or "nothing"
