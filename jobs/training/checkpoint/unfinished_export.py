"""The directory beside `model` or `merged` into which `fleetune export` writes, and who writes there now."""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any, Final

from cluster.errors import InputError, StorageError
from cluster.local.supervisor import process_lives
from jobs.run.events import this_driver
from jobs.storage import files as storage
from jobs.storage.listing import listing

WRITER: Final = "writer.json"  # who writes in the directory
# Seconds without a newer file, after which an export of another machine counts as dead. A file has at most 5 GB.
_DEAD_S: Final = 3600.0
_PURPOSE: Final = "fleetune export writes here, then moves the model. After a kill, the next export removes this"


@contextlib.contextmanager
def unfinished(target: str) -> Iterator[str]:
    """Provide the directory for an unfinished export to `target`, and remove it at the end.

    What an export that was killed has left there is removed first.

    Raises:
        InputError: another export writes there.
    """
    new = f"{target}.new"
    if (other := _other_writer(new)) is not None:
        raise InputError(other)
    storage.remove_dir(new)
    token = secrets.token_hex(8)
    content = json.dumps({"purpose": _PURPOSE, "token": token, "since": time.time(), **this_driver()})
    storage.write_bytes(storage.join(new, WRITER), content.encode())
    time.sleep(0.05 if storage.is_local(new) else 0.5)  # of two that begin at once, the last one to write goes on
    if _writer(new).get("token") != token:
        raise InputError(_other_writer(new) or f"another export writes to {new}")
    try:
        yield new
    finally:
        with contextlib.suppress(StorageError):
            if _writer(new).get("token") in (token, None):
                storage.remove_dir(new)


def _other_writer(new: str) -> str | None:
    """Return a message if an export that may live writes to this directory; None if not."""
    writer, here = _writer(new), this_driver()
    files = listing(new)
    if not files:
        return None
    if (writer.get("host"), writer.get("machine")) == (here["host"], here["machine"]):
        pid = int(writer["pid"])
        lives = pid != here["pid"] and process_lives(pid)
    else:
        times = [file.modified_s for file in files if file.modified_s is not None]
        lives = bool(times) and time.time() - max(times) < _DEAD_S
    if not lives:
        return None
    who = f"process {writer['pid']} on {writer['host']}" if "pid" in writer else "another process"
    return f"{who} writes an export to {new}. Wait until it ends. If it was killed, remove that directory"


def _writer(new: str) -> dict[str, Any]:
    """Return what the writer of a directory has left about itself; empty if nothing can be read."""
    path = storage.join(new, WRITER)
    with contextlib.suppress(StorageError, ValueError):
        if storage.exists(path) and isinstance(found := json.loads(storage.read_bytes(path)), dict):
            return found
    return {}
