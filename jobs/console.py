"""The output of this process: lines for the user, and everything else, native libraries included, to a log.

Output is redirected at the level of file descriptors.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import NoReturn, TextIO

from jobs.storage import files as storage


def user_stream() -> TextIO:
    """Open a separate stream to the user's terminal, which stays open while `redirected_output` is in force."""
    return os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8", errors="replace")


class Console:
    """Prints lines with a time stamp to the present stdout, even if stdout is redirected later."""

    def __init__(self) -> None:
        self.stream = user_stream()

    def __call__(self, text: str) -> None:
        print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%SZ} {text}", file=self.stream, flush=True)


@contextlib.contextmanager
def redirected_output(log: str) -> Iterator[None]:
    """Append everything that this process writes to stdout and stderr, native code included, to `log`.

    For a log on a URL, a local file is written first and uploaded at the end.
    """
    with contextlib.ExitStack() as ending:
        if storage.is_local(log):
            target = storage.local_path(log)
            os.makedirs(os.path.dirname(target), exist_ok=True)
        else:
            target = os.path.join(ending.enter_context(tempfile.TemporaryDirectory(prefix="fleetune-log-")), "log")
            ending.callback(storage.put_file, target, log)
        with _redirected(target):
            yield


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
