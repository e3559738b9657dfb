"""Lets one process prepare a source while others wait: a lock file in the prepared directory, on any storage.

It saves work but protects nothing: all processes write the same bytes, and continue only if all parts are there, so two
holders at once do no harm. A living holder rewrites the file every few seconds. If the file does not change for
some time, by the clock of a waiting process, the holder counts as dead.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from cluster.errors import StorageError
from cluster.local.supervisor import process_lives
from jobs.run.events import this_driver
from jobs.storage import files as storage

BEAT_S = 5.0  # interval at which the holder rewrites the file
DEAD_S = 30.0  # without a change of the file, after which the holder counts as dead
SAY_EVERY_S = 20.0


class PrepareLock:
    """The lock of one prepared directory."""

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._token = secrets.token_hex(8)
        self._ended = threading.Event()

    @contextlib.contextmanager
    def held_unless(self, done: Callable[[], bool]) -> Iterator[bool]:
        """Wait for the lock and hold it in the `with` block. Stop waiting once `done` returns True.

        Yields:
            Whether the lock is held.

        Raises:
            StorageError: the storage does not answer.
        """
        if not self._waited(done):
            yield False
            return
        thread = threading.Thread(target=self._keep, name="prepare-lock", daemon=True)
        thread.start()
        try:
            yield True
        finally:
            self._ended.set()
            thread.join(BEAT_S)
            self._give_back()

    def _waited(self, done: Callable[[], bool]) -> bool:
        seen, seen_at = b"", time.monotonic()
        said_at = -SAY_EVERY_S
        while not done():
            found = self._read()
            now = time.monotonic()
            if found is None or self._is_gone(found) or (found == seen and now - seen_at > DEAD_S):
                self._write()
                time.sleep(0.05 if storage.is_local(self._path) else 0.5)  # the last process to write gets the lock
                if self._is_ours():
                    return True
                continue
            if found != seen:
                seen, seen_at = found, now
            if now - said_at >= SAY_EVERY_S:
                said_at = now
                self._say(f"{_who(found)} is preparing the same data: waiting for it")
            time.sleep(min(BEAT_S, 0.5))
        return False

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(StorageError):  # the next beat tries again
                if not self._is_ours():
                    return  # this process counted as dead, and another one continues; both write the same bytes
                self._write()

    def _read(self) -> bytes | None:
        try:
            return storage.read_bytes(self._path) if storage.exists(self._path) else None
        except StorageError:
            if storage.exists(self._path):
                raise
            return None

    def _write(self) -> None:
        holder = {"token": self._token, "beat": time.time(), **this_driver()}
        storage.write_bytes(self._path, json.dumps(holder).encode())

    def _is_ours(self) -> bool:
        found = self._read()
        return found is not None and _holder(found).get("token") == self._token

    def _is_gone(self, found: bytes) -> bool:
        """Whether the holder was a process of this machine that has ended."""
        holder, here = _holder(found), this_driver()
        if (holder.get("host"), holder.get("machine")) != (here["host"], here["machine"]):
            return False
        return not process_lives(int(holder.get("pid", 0)))

    def _give_back(self) -> None:
        with contextlib.suppress(StorageError):
            if self._is_ours():
                storage.remove_file(self._path)


def _holder(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _who(content: bytes) -> str:
    holder = _holder(content)
    return f"process {holder.get('pid', '?')} on host {holder.get('host', '?')}"
