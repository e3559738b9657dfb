"""Writes a large local file sequentially, bypassing the kernel's page cache.

Writing a checkpoint through the cache costs as much processor time as a training step: 0.8 to 1.9 s of system time for
800 MB, against 0.03 s without the cache. It also evicts other files from the cache. Where the system does not support
direct writes, ordinary ones are used.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from typing import Any

_BLOCK_BYTES = 4 * 2**20  # the block is a memory map, whose start is aligned to a page, as direct writes require
_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile:
    """Writes to an open file descriptor at its end. Call `finish` to write the last bytes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._block = mmap.mmap(-1, _BLOCK_BYTES)
        self._held = 0
        self._direct = _set_direct(descriptor, True)

    def write(self, data: Any) -> int:
        """Write bytes, or any object that exposes its memory as bytes. Raises OSError."""
        view = memoryview(data).cast("B")
        size = len(view)
        while len(view):
            taken = view[: _BLOCK_BYTES - self._held]
            self._block[self._held : self._held + len(taken)] = taken
            self._held += len(taken)
            view = view[len(taken) :]
            if self._held == _BLOCK_BYTES:
                self._write_block()
        return size

    def finish(self) -> None:
        """Write the rest, which is less than a block, with an ordinary write. Raises OSError."""
        if self._direct:
            self._direct = not _set_direct(self._descriptor, False)
        self._write_block()
        self._block.close()

    def _write_block(self) -> None:
        with memoryview(self._block) as block:
            done = 0
            while done < self._held:
                try:
                    done += os.write(self._descriptor, block[done : self._held])
                except OSError as error:
                    if not self._direct or error.errno != errno.EINVAL:
                        raise
                    self._direct = not _set_direct(self._descriptor, False)  # the file system has no direct writes
        self._held = 0


def _set_direct(descriptor: int, on: bool) -> bool:
    """Turn direct writes on or off. Returns whether that succeeded."""
    try:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _DIRECT if on else flags & ~_DIRECT)
    except OSError:
        return False
    return bool(_DIRECT) or not on
