"""Locks on files, without waiting. Light to import."""

from __future__ import annotations

import fcntl


def try_lock(descriptor: int, shared: bool = False) -> bool:
    """Lock an open file, and return True; False if others hold the lock.

    Args:
        shared: a lock that several may hold, but not while there is an exclusive one.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
