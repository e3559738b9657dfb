"""What a queue gives a run beside its spec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Assignment:
    """The place of one attempt. Whoever gives it knows that no other attempt drives the run.

    Attributes:
        places: id of the node of each worker; None: wherever there is room.
        num_workers: of this attempt; None: as the spec says.
        variables: of the environment of every process of the run. They may be secret, and are shown nowhere.
        run: root of the run, where it is new; None: under a new name.
    """

    places: tuple[str, ...] | None = None
    num_workers: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    run: str | None = None
