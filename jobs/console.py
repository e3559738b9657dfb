"""The output of this process: lines for the user, and everything else, native libraries included, to a log.

Output is redirected at the level of file descriptors.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import NoReturn, TextIO

from cluster.text import when
from jobs.storage import files as storage

_MOST_EARLIER_BYTES = 64 << 20  # kept of earlier attempts, because each attempt copies them once more


def user_stream() -> TextIO:
    """Open a separate stream to the user's terminal, which stays open while `redirected_output` is in force."""
    return os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")


class Console:
    """Prints lines with a time stamp to the present stdout, even if stdout is redirected later."""

    def __init__(self) -> None:
        self.stream = user_stream()

    def __call__(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the reader is gone, or the disk is full
            print(f"{when(datetime.datetime.now(datetime.UTC))} {text}", file=self.stream, flush=True)


@contextlib.contextmanager
def redirected_output(log: str) -> Iterator[None]:
    """Append everything that this process writes to stdout and stderr, native code included, to `log`.

    For a log at a URL, a local file is written first. At the end it replaces the object, together with what the object
    held: earlier attempts have written that, and readers may stand anywhere in it.

    Raises:
        StorageError: the log at a URL cannot be read or written.
    """
    with contextlib.ExitStack() as ending:
        if storage.is_local(log):
            target = storage.local_path(log)
            os.makedirs(os.path.dirname(target), exist_ok=True)
        else:
            target = os.path.join(ending.enter_context(tempfile.TemporaryDirectory(prefix="fleetune-log-")), "log")
            ending.callback(_append_object, target, log)
        with _redirected(target):
            yield


def _append_object(written: str, log: str) -> None:
    """Append a local file to an object. Of an object above `_MOST_EARLIER_BYTES` only its last lines stay."""
    whole = f"{written}.whole"
    with open(whole, "wb") as target:
        if storage.exists(log):
            with storage.open_read(log) as earlier:
                excess = earlier.seek(0, os.SEEK_END) - _MOST_EARLIER_BYTES
                earlier.seek(max(excess - 1, 0))
                if excess > 0:
                    earlier.readline()  # the rest of a line that is cut
                shutil.copyfileobj(earlier, target)
        with open(written, "rb") as new:
            shutil.copyfileobj(new, target)
    storage.put_file(whole, log)


@contextlib.contextmanager
def _redirected(target: str) -> Iterator[None]:
    _flush()
    kept = [os.dup(1), os.dup(2)]
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    try:
        yield
    finally:
        _flush()
        for descriptor, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):  # closed, or replaced by an object without a file
            stream.flush()


def end_process(code: int) -> NoReturn:
    """End this process now, without the interpreter's cleanup: its threads may wait forever."""
    _flush()
    os._exit(code)
