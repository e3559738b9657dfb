"""Storage with faults that a test turns on and off: `faulty:///path` is the local path, through fsspec.

While `<CONTROL>/full` exists every write of a tensor file ends in "no space left", after some bytes; while
`<CONTROL>/stalled` exists every write waits. While `<CONTROL>/dropped` exists no file can be opened, because the
connection is reset; while `<CONTROL>/dropped rows` exists, no file of prepared data.

The index of a part of a checkpoint can always be seen for a moment before it is whole, as on storage that is no object
store, such as sftp.
"""

from __future__ import annotations

import errno
import pathlib
import time
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem

from cluster.settings import PROTOCOLS_VARIABLE, add_to_environment

BYTES_BEFORE_FULL = 10_000


class FaultyFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec carries no types
    protocol = "faulty"
    control = pathlib.Path()

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "auto_mkdir": True})

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if self._is_dropped("dropped") or ("/prepared/" in path and self._is_dropped("dropped rows")):
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer", path)
        if "w" in mode:  # an object store knows no directories
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        openers = {".safetensors": FaultyFile, ".json": SlowFile} if "w" in mode and "/checkpoints/" in path else {}
        return openers.get(pathlib.Path(path).suffix, LocalFileOpener)(path, mode, fs=self, **options)

    def _is_dropped(self, name: str) -> bool:
        return (self.control / name).exists()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(
            [one.removeprefix("faulty://") for one in path]
            if isinstance(path, list)
            else path.removeprefix("faulty://")
        )


class FaultyFile(LocalFileOpener):  # type: ignore[misc]
    written = 0

    def write(self, data: Any) -> int:
        while (FaultyFileSystem.control / "stalled").exists():
            time.sleep(0.05)
        FaultyFile.written += len(data)
        if (FaultyFileSystem.control / "full").exists() and FaultyFile.written > BYTES_BEFORE_FULL:
            raise OSError(28, "No space left on device")
        return int(super().write(data))


class SlowFile(LocalFileOpener):  # type: ignore[misc]
    def write(self, data: Any) -> int:
        half = len(data) // 2
        super().write(data[:half])
        self.f.flush()
        time.sleep(0.1)
        return half + int(super().write(data[half:]))


def register(control: pathlib.Path) -> None:
    """Make `faulty://` known in this process."""
    FaultyFileSystem.control = control
    add_to_environment({PROTOCOLS_VARIABLE: "faulty"})
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
