"""The errors that jobs raise; the tree is drawn in `cluster.errors`."""

from cluster.errors import (
    CapacityError,
    DataError,
    FleetuneError,
    InputError,
    Interrupted,
    MachinesFailed,
    OutOfMemory,
    RunFailed,
    SpecError,
    StorageError,
    StorageOutage,
)

__all__ = [
    "CapacityError",
    "DataError",
    "FleetuneError",
    "InputError",
    "Interrupted",
    "MachinesFailed",
    "OutOfMemory",
    "RunFailed",
    "SpecError",
    "StorageError",
    "StorageOutage",
]
