"""Reads the end of a text file, such as a log, without the rest of it."""

from __future__ import annotations

import os

from jobs.storage import files as storage


def read_end(path: str, most: int) -> str:
    """Return the last lines of a text file, at most `most` bytes: the end of the last line if that is longer.

    Raises:
        StorageError: the file cannot be read.
    """
    with storage.open_read(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - most, 0))
        text = file.read().decode(errors="replace").rstrip()
    return text if size <= most else text.partition("\n")[2] or text
