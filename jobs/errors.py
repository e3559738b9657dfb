"""The errors that jobs raise; the tree is drawn in `cluster.errors`."""

from cluster.errors import (
    CapacityError,
    DataError,
    Diverged,
    FleetuneError,
    InputError,
    Interrupted,
    MachinesFailed,
    MetricFailed,
    OutOfMemory,
    RunFailed,
    SpecError,
    StorageError,
    StorageOutage,
)

__all__ = [
    "CapacityError",
    "DataError",
    "Diverged",
    "FleetuneError",
    "InputError",
    "Interrupted",
    "MachinesFailed",
    "MetricFailed",
    "OutOfMemory",
    "RunFailed",
    "SpecError",
    "StorageError",
    "StorageOutage",
]
